"""A function as an operator of torch that costs the host little where nobody looks.

torch.compile, fake tensors and dispatch modes (opcheck, the planner's dry run) see through a
custom operator; each call of one costs the host several times what a launch does, 50 to 100 us on
the machine of docs/benchmarks' H100, and a step of a 7B makes 400. So on plain tensors the function
itself runs, its gradient by an `autograd.Function`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[..., Any]


class Operator:
    """`function` as the operator `name`; called as the function is.

    Args:
        name: "namespace::name".
        function: with the annotations that torch.library.custom_op asks for; the first argument is
            a tensor, and none is written to.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.registered = torch.library.custom_op(name, function, mutates_args=())
        self._with_gradient: type[torch.autograd.Function] | None = None

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Says the results' shapes; see torch.library."""
        self.registered.register_fake(function)

    def register_autograd(self, backward: Backward, setup_context: SetupContext) -> None:
        """Gives it a gradient; the arguments are those of torch.library.register_autograd."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        function = self.function

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            setup_context(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._with_gradient = type(
            self.name.replace("::", "_"), (torch.autograd.Function,), members
        )

    def __call__(self, *inputs: Any) -> Any:
        """The function of `inputs`."""
        if _is_looked_at(inputs[0]):
            return self.registered(*inputs)
        if self._with_gradient is not None and torch.is_grad_enabled():
            return self._with_gradient.apply(*inputs)
        return self.function(*inputs)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Makes the decorated function an `Operator`."""
    return lambda function: Operator(name, function)


def _is_looked_at(tensor: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
    )

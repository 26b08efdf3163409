"""Operations of a model's step, by torch's own formulas and, for our kernels, by ours.

A multiplication and an addition are two operations. What is not a product of matrices counts
nothing, as is customary (PaLM, arXiv 2204.02311, appendix B).

Shapes: T query rows, S keys of a sequence, H heads, K head width.
"""

from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry


def flops_of(function: Any, arguments: Any, options: Any, result: Any) -> int:
    """Operations of one call of an operator, from the shapes alone.

    Args:
        function: the overload that torch dispatches (`aten.mm.default`).
        arguments: of the call.
        options: keyword arguments of the call.
        result: what it returned.
    """
    ours = _OURS.get(function._schema.name)
    if ours is not None:
        return ours(arguments)
    formula = flop_registry.get(function._overloadpacket)
    return 0 if formula is None else int(formula(*arguments, **options, out_val=result))


def attention_flops(query_THK: Tensor, max_key: int, causal: bool, products: int) -> int:
    """`products` products of T x S x K for each head; a causal mask leaves half of the pairs.

    Sequences are taken to be equally long, so that `max_key` is the length of each.
    """
    rows, heads, width = query_THK.shape
    pairs = rows * max_key
    if causal:
        pairs = rows * (max_key + 1) // 2
    return 2 * products * pairs * heads * width


# Forward: scores, output. Backward: scores again; gradients of weights, query, key and value.
_OURS = {
    "ibtrain::varlen_attention": lambda arguments: attention_flops(
        arguments[0], arguments[6], arguments[7], 2
    ),
    "ibtrain::varlen_attention_backward": lambda arguments: attention_flops(
        arguments[1], arguments[9], arguments[10], 5
    ),
}

"""Mends Triton's interpreter, which tests run the kernels in; on a card nothing of this is used.

Triton 3.6 turns a loop's bounds, which are arrays of one number there, into integers in a way that
numpy refuses from 2.4 on ("only 0-dimensional arrays can be converted to Python scalars"). Triton
3.7 has it as below.
"""

from typing import Any

import triton

from ibtrain.kernels.triton_support import interpreted


def _mend() -> None:
    from triton.runtime import interpreter

    plain = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched


if interpreted() and triton.__version__.startswith("3.6."):
    _mend()

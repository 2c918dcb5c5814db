"""Triton's interpreter, without what it does again at every call of a ``@triton.jit`` function and of an operator.

At each such call it goes through all members of triton.language for builtins that it has to play: 46 % of the time of
the all-pairs kernels' tests, under a profiler (Triton 3.6). Which names are builtins does not change, so they are found
once; whether one is to be replaced now is still asked every time. The table of NumPy's dtypes, which it makes anew for
each tensor, is made once too.
"""

from __future__ import annotations

import inspect
from typing import Any

USED = ("_patch_builtin", "_patch_attr", "_get_np_dtype")


def found_once() -> bool:
    """Before any kernel runs in this process. False, with no effect, where the interpreter is not built as in 3.6."""
    import triton.language as tl
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in USED):
        return False
    is_builtin = tl.core.is_builtin
    places = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    names = {id(place): [name for name, value in inspect.getmembers(place) if is_builtin(value)] for place in places}
    search, look_up = interpreter._patch_builtin, interpreter._get_np_dtype
    dtypes: dict[str, Any] = {}

    def replace(place: Any, builder: Any, scope: Any) -> None:
        if id(place) not in names:
            return search(place, builder, scope)
        for name in names[id(place)]:
            value = getattr(place, name)
            if is_builtin(value):
                interpreter._patch_attr(place, name, value, builder, scope)

    def np_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = look_up(dtype)
        return dtypes[name]

    interpreter._patch_builtin, interpreter._get_np_dtype = replace, np_dtype
    return True

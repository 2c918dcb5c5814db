"""Triton's interpreter, without what it does again at every call of a ``@triton.jit`` function and of an operator.

At each such call it goes through all members of triton.language for builtins that it has to play: 46 % of the time of
the all-pairs kernels' tests, under a profiler (Triton 3.6). Which names are builtins does not change, so they are found
once; whether one is to be replaced now is still asked every time. The table of NumPy's dtypes, which it makes anew for
each tensor, is made once too. A ``tl.reduce`` by a function of the kernel's own, which it calls for each single number,
is called for each place along the axis with all numbers of that place, in the same order: the same bits.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

USED = ("_patch_builtin", "_patch_attr", "_get_np_dtype", "ReduceOps")


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
    one_by_one = interpreter.ReduceOps.generic_reduce

    def reduce(self: Any, blocks: tuple[Any, ...]) -> list[Any]:
        shape = blocks[0].handle.data.shape
        if self.axis is None or len(shape) < 2:  # numbers, which a function could branch on
            return one_by_one(self, blocks)
        places = [
            tuple(self.to_tensor(block.handle.data.take(place, self.axis), block.dtype) for block in blocks)
            for place in range(shape[self.axis])
        ]
        total = places[0]
        for place in places[1:]:
            joined = self.combine_fn.fn(*total, *place)
            total = joined if isinstance(joined, tuple) else (joined,)
        found = (part.handle.data for part in total)
        kept = (np.expand_dims(data, self.axis) if self.keep_dims else data for data in found)
        return [self.to_tensor(data, block.dtype) for data, block in zip(kept, blocks)]

    interpreter.ReduceOps.generic_reduce = reduce
    return True

"""What the tests change in Triton's interpreter changes nothing that it does."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests.conftest import HAS_GPU
from tests.interpreter import found_once

tl = pytest.importorskip("triton.language")
pytestmark = pytest.mark.skipif(HAS_GPU, reason="no interpreter where there is a GPU")
PLACES = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)


def test_all_builtins_are_played_and_put_back() -> None:
    from triton.runtime import interpreter

    if not found_once():
        pytest.skip("another interpreter than Triton 3.6's: it is left as it is, and slower")

    def function() -> Any:
        return tl

    def builtins() -> set[tuple[str, str]]:
        return {(str(p), name) for p in PLACES for name, value in inspect.getmembers(p) if tl.core.is_builtin(value)}

    before = builtins()
    scope = interpreter._patch_lang(function)
    left = {name for place, name in builtins() if place != str(tl.core)}  # the function does not see this module
    scope.restore()
    assert len(before) > 100
    assert not left
    assert builtins() == before


def test_dtypes_are_those_of_the_interpreter() -> None:
    from triton.runtime import interpreter

    for dtype in (*tl.dtype.SINT_TYPES, *tl.dtype.UINT_TYPES, "fp16", "bf16", "fp32", "fp64", "fp8e5", "int1"):
        scalar = tl.dtype(dtype)
        for kind in (scalar, tl.block_type(scalar, [2, 4])):
            for _ in range(2):
                assert interpreter._get_np_dtype(kind).itemsize == max(1, scalar.primitive_bitwidth // 8)
    for pointer in (tl.pointer_type(tl.float32), tl.block_type(tl.pointer_type(tl.int8), [2])):
        assert interpreter._get_np_dtype(pointer).name == "uint64"

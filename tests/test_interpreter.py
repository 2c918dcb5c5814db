"""What the tests change in Triton's interpreter changes nothing that it does."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import HAS_GPU
from tests.interpreter import found_once

triton: Any = pytest.importorskip("triton")
tl: Any = triton.language
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


@triton.jit
def of_two(b_x, b_i, b_y, b_j):  # type: ignore[no-untyped-def]
    """Neither commutative nor associative."""
    return b_x - 0.5 * b_y, tl.where(b_y > b_x, b_j, b_i)


@triton.jit
def reduced_kernel(p_x, p_sums, p_places, AXIS: tl.constexpr, KEEP: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :]
    b_sums, b_places = tl.reduce((tl.load(p_x + o), o), AXIS, of_two, keep_dims=KEEP)
    o_result = tl.arange(0, 4 if AXIS == 1 else 8)
    tl.store(p_sums + o_result, tl.reshape(b_sums, o_result.shape))
    tl.store(p_places + o_result, tl.reshape(b_places, o_result.shape))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reductions_by_own_functions_go_in_order(axis: int, keep: bool, dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    sums, places = x.new_zeros(x.shape[1 - axis]), torch.zeros(x.shape[1 - axis], dtype=torch.int32)
    reduced_kernel[(1,)](x, sums, places, axis, keep)
    rows = x.numpy() if axis == 1 else x.numpy().T
    number = np.arange(32).reshape(4, 8) if axis == 1 else np.arange(32).reshape(4, 8).T
    for row, numbers, total, place in zip(rows, number, sums.numpy(), places.numpy()):
        expected, at = row[0], numbers[0]
        for value, other in zip(row[1:], numbers[1:]):
            expected, at = expected - row.dtype.type(0.5) * value, other if value > expected else at
        assert (total, place) == (expected, at)

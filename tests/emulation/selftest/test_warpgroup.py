"""Matrix instructions of warpgroups: products agree with numpy, every planted fault is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.host import build
from tests.emulation.host.run import Result, server
from tests.emulation.selftest.test_emulator import bf16_of, operand

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

Array = np.ndarray[Any, Any]

CHUNKS = 3
INNER = 64 * CHUNKS
# How a and b lie: a in registers ("r"), transposed ("t") or not ("n"); b transposed or not.
LAYOUTS = ("nn", "nt", "tn", "tt", "rn", "rt")
# In the order of WarpgroupFault (warpgroup_kernel.cuh): what the message says.
FAULTS = {
    "no proxy fence": "multiplies shared memory .* no async_proxy_fence of it",
    "no arrival barrier": "race|no async_proxy_fence|never written|copy_async .* under way",
    "overwritten": "copies asynchronously .* a matrix instruction that reads byte .* is under way",
    "no reuse barrier": "race|a matrix instruction that reads byte .* is under way",
    "read early": "uses c of a matrix instruction before the warpgroup_wait",
    "written early": r"has written to c\[3\] .* before the warpgroup_wait",
    "no register fence": "before any warpgroup_fence",
    "early register fence": "a in registers that were written after its last warpgroup_fence",
    "late register write": "c in registers that were written after its last warpgroup_fence",
    "other shape": "another shape under way",
    "no wait": "ends with 4 matrix instructions that no warpgroup_wait has completed",
    "row off": "warp . multiplies b .* misaligned, does not start in a row",
    "column off": "warp . multiplies b .* misaligned, crosses the right end",
    "warp apart": "divergent warpgroup",
    "warp ahead": "warp (4|5|6|7) takes .* where another warp of its warpgroup took .*divergent warpgroup",
    "lane apart": "lane 7.* where lane 0 takes .*divergent warpgroup",
    "warp elsewhere": r"takes warpgroup_commit at .*cuh:(\d+) where another warp .* took .* at .*cuh:(?!\1\b)\d+ \(div",
    "barrier of a group": "race|no async_proxy_fence|never written|copy_async .* under way",
    "no turn": "128 threads have arrived at barrier 4 and no more come, 128 of them wait",
    "turn left": "128 threads have arrived at barrier 4 and no more come, 0 of them wait",
    "late letter": "race, thread 0 .* wrote byte|never written",
}
OF_REGISTERS = ("early register fence",)  # faults of kernels with a in registers


def problem(type_: str, layout: str, columns: int) -> tuple[dict[str, Any], Array]:
    """The arguments of a product, and the result."""
    transposed_b = layout[1] == "t"
    rng = np.random.default_rng(columns)
    a, a_values = operand(type_, rng, 2, 64, INNER)
    b, b_values = operand(type_, rng, INNER, 192)
    b_rows = 100 if transposed_b else 190
    b_values = b_values.copy()
    if transposed_b:
        b_values[b_rows:] = 0
    else:
        b_values[:, b_rows:] = 0
    b_start = (32 if columns == 32 else 64) if transposed_b else 72
    given = {
        "type": type_,
        "columns": columns,
        "a_in_registers": layout[0] == "r",
        "transposed_a": layout[0] == "t",
        "transposed_b": transposed_b,
        "initial": 3.0,
        "scale": 0.5,
        "chunks": CHUNKS,
        "b_start": b_start,
        "b_rows": b_rows,
    }
    arguments = {
        "a": np.ascontiguousarray(a.transpose(0, 2, 1) if layout[0] == "t" else a),
        "b": np.ascontiguousarray(b if transposed_b else b.T),
        "given": given,
    }
    chosen = b_values[:, b_start : b_start + columns].astype(np.float64)
    return arguments, (3 + a_values.astype(np.float64) @ chosen) * 0.5


def panels(matrix: Array, transposed: bool) -> tuple[Array, int]:
    """Panels of 64 rows that hold a matrix [m, 16] (of b: its transpose) at k = 16 to 31 of 64, in NaN of either type,
    and the element where it begins."""
    memory = np.full((len(matrix) + 63) // 64 * 64 * 64, 0x7FFF, np.uint16)
    i, k = np.arange(len(matrix))[:, None], 16 + np.arange(16)
    row, column = (i // 64 * 64 + k, i % 64) if transposed else (i, k)
    memory[row * 64 + (column // 8 ^ row % 8) * 8 + column % 8] = matrix
    return memory, 16 * 64 if transposed else 16


def call(function: str, **arguments: Any) -> Result:
    return server(Path(__file__).with_name("warpgroup_kernels.cpp")).call(function, **arguments)


def product(arguments: dict[str, Any], fault: str = "", seed: int = 0) -> Result:
    number = 1 + list(FAULTS).index(fault) if fault else 0
    given = {**arguments["given"], "fault": number, "seed": seed}
    return call("product", **{**arguments, "given": given})


@pytest.mark.parametrize("columns", [32, 64, 104])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("type_", ["bf16", "f16"])
def test_product_agrees_with_numpy(type_: str, layout: str, columns: int) -> None:
    arguments, exact = problem(type_, layout, columns)
    for seed in range(3):
        np.testing.assert_allclose(product(arguments, seed=seed).unwrap(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("type_", ["bf16", "f16"])
def test_every_shape_multiplies_integers_exactly(type_: str, layout: str) -> None:
    """One instruction each, with a's fragments and c laid over the lanes after the tables of the PTX ISA."""
    rng = np.random.default_rng(LAYOUTS.index(layout))
    thread = np.arange(128)
    row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
    for columns in (*range(16, 129, 16), 104, 192, 200, 256):
        a, b = (rng.integers(-8, 9, (m, 16)).astype(np.float32) for m in (64, columns))
        a_bits, b_bits = (bf16_of(x) if type_ == "bf16" else x.astype(np.float16).view(np.uint16) for x in (a, b))
        of_a, a_at = panels(a_bits, layout[0] == "t")
        of_b, b_at = panels(b_bits, layout[1] == "t")
        fragments = np.stack([a_bits[row + i // 2 % 2 * 8, column + i % 2 + i // 4 * 8] for i in range(8)], axis=1)
        given = {
            "type": type_,
            "columns": columns,
            "a_in_registers": layout[0] == "r",
            "transposed_a": layout[0] == "t",
            "transposed_b": layout[1] == "t",
            "a_at": a_at,
            "b_at": len(of_a) + b_at,
        }
        arguments = {"memory": np.concatenate([of_a, of_b]), "a": fragments.view(np.uint32), "given": given}
        got = call("multiply_in_place", **arguments).unwrap()
        exact = a @ b.T
        held = [exact[row + i // 2 % 2 * 8, column + i % 2 + i // 4 * 8] for i in range(columns // 2)]
        np.testing.assert_array_equal(got, np.stack(held, axis=1), err_msg=f"{columns} columns")


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault: str) -> None:
    layout = "rn" if fault in OF_REGISTERS else "nn"
    for seed in range(2):
        error = product(problem("bf16", layout, 64)[0], fault, seed).error
        assert error is not None
        assert re.search(FAULTS[fault], error), error

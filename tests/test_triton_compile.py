"""Compile-time proof of the Triton kernels, without a GPU: matrix instructions, shared memory, spills.

``python tests/compile_kernels.py 90 bfloat16 paper`` prints what these tests look at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from tests.compile_kernels import SHARED_MEMORY_KB  # noqa: E402

ROOT = Path(__file__).parent.parent
TUNED_WITH = "3.6."
CAPABILITIES = sorted(SHARED_MEMORY_KB)
# A backward in one program holds S, dU and U at once, and spills: bytes per thread at 256 patches. No other may.
MAY_SPILL = {"pair_backward_kernel": 1536, "rows_backward_kernel": 512}


@cache
def compiled(capability: int, dtype: str, shapes: str, precision: str = "highest") -> list[dict[str, Any]]:
    """Every kernel of both rooms, compiled by ``compile_kernels.py``."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), str(capability), dtype, shapes, precision]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(kernels: list[dict[str, Any]], capability: int, *, half: bool = True, matrix_unit: bool = True) -> None:
    """What every compiled kernel must satisfy."""
    assert len(kernels) >= 6
    for kernel in kernels:
        where = f"{kernel['kernel']} {kernel['op']} P={kernel['P']} for sm_{capability}"
        assert kernel["agrees"], f"{where}: not compiled as the launcher would"
        assert kernel["shared_kb"] <= SHARED_MEMORY_KB[capability], f"{where}: {kernel['shared_kb']} kB"
        if kernel["has_products"] and matrix_unit:
            assert kernel["matrix"], f"{where}: no matrix instruction"
        # some words given up for the next step of occupancy (80, 96, 128 registers) are no want of registers
        rounding = 16 if not half and kernel["registers"] <= 128 else 0
        if not triton.__version__.startswith(TUNED_WITH):
            rounding = 32  # the tiles are chosen with one release; another's compiler may differ by some words
        allowed = MAY_SPILL.get(kernel["kernel"], rounding)
        assert kernel["stack"] <= allowed, f"{where}: spills {kernel['stack']} bytes"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("shapes", ["paper", "large"])
def test_bfloat16(capability: int, shapes: str) -> None:
    check(compiled(capability, "bfloat16", shapes), capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_float16(capability: int) -> None:
    check(compiled(capability, "float16", "paper"), capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_float32(capability: int, precision: str) -> None:
    check(
        compiled(capability, "float32", "paper", precision), capability, half=False, matrix_unit=precision != "highest"
    )


def test_instructions_of_each_chip() -> None:
    """Hopper gets wgmma and Blackwell's data-centre chips tcgen05, not the slower mma.sync."""
    expected = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
    for capability, instruction in expected.items():
        forward = [k for k in compiled(capability, "bfloat16", "paper") if k["kernel"] == "pair_forward_kernel"]
        assert forward
        assert all(kernel["matrix"] == [instruction] for kernel in forward)

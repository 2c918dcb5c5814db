"""Compile-time proof of the Triton kernels, without a GPU: matrix instructions, shared memory, spills.

``python -m tests.compile_kernels 90 bfloat16 paper`` prints what these tests look at.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from sparc_kernels.ops._room import rooms  # noqa: E402
from tests.compile_kernels import SHARED_MEMORY_KB  # noqa: E402

ROOT = Path(__file__).parent.parent
TUNED_WITH = "3.6."
CAPABILITIES = sorted(SHARED_MEMORY_KB)


@cache
def compiled(capability: int, dtype: str, shapes: str, precision: str = "highest") -> list[dict[str, Any]]:
    """Every kernel of every room, compiled by ``compile_kernels.py``."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compile_kernels", str(capability), dtype, shapes, precision]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(kernels: list[dict[str, Any]], capability: int, *, half: bool = True, matrix_unit: bool = True) -> None:
    """What every compiled kernel must satisfy."""
    served = {room.name for room in rooms() if "triton" in room.dtypes}
    assert {kernel["room"] for kernel in kernels} == served
    assert len({kernel["kernel"] for kernel in kernels}) >= 2 * len(served)
    for kernel in kernels:
        where = f"{kernel['kernel']} {kernel['op']} {kernel['shape']} for sm_{capability}"
        assert kernel["agrees"], f"{where}: not compiled as the launcher would"
        assert kernel["shared_kb"] <= SHARED_MEMORY_KB[capability], f"{where}: {kernel['shared_kb']} kB"
        if kernel["has_products"] and matrix_unit:
            assert kernel["matrix"], f"{where}: no matrix instruction"
        assert not kernel["races"], f"{where}: copies overwrite what a product may be reading: {kernel['races']}"
        # some words given up for the next step of occupancy (80, 96, 128 registers) are no want of registers
        rounding = 16 if not half and kernel["registers"] <= 128 else 0
        if not triton.__version__.startswith(TUNED_WITH):
            rounding = 32  # the tiles are chosen with one release; another's compiler may differ by some words
        allowed = kernel["may_spill"] or rounding
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


@pytest.mark.skipif(not triton.__version__.startswith(TUNED_WITH), reason="of one release of Triton's pipeliner")
@pytest.mark.parametrize(
    ("squares", "stages", "described"),
    [(True, 2, False), (True, 3, False), (False, 2, False), (False, 3, False), (True, 3, True), (False, 3, True)],
)
def test_races_are_seen(squares: bool, stages: int, described: bool) -> None:
    """A tile that a product and a register sum share has one slot too few; without the sum it has enough. So it is by
    pointers and by tensor descriptors."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.racing_kernel", str(int(squares)), str(stages), str(int(described))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-4000:]
    assert bool(json.loads(result.stdout)) == squares


def shared_first_values(source: str) -> set[str]:
    """Variables that a loop sets and that share their value before it with another one (`a = b`) that it sets.

    Triton 3.6 takes such an `a` for a constant of the loop where the loop sets it to `b`: the interpreter does not, so
    that only results on a GPU are wrong.
    """
    found = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        aliases = {}
        for statement in function.body:
            match statement:
                case ast.Assign(targets=[ast.Name(name)], value=ast.Name(other)):
                    aliases[name] = other
                case ast.For():
                    names = {
                        x.id for x in ast.walk(statement) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
                    }
                    found |= {name for name, other in aliases.items() if {name, other} <= names}
    return found


def test_no_loop_takes_a_variable_for_a_constant() -> None:
    planted = "def kernel(n):\n  a = load()\n  before = a\n  for i in range(n):\n    before = a\n    a = step(a)\n"
    assert shared_first_values(planted) == {"before"}
    for path in sorted((ROOT / "sparc_kernels").rglob("triton*.py")):
        assert not shared_first_values(path.read_text()), path

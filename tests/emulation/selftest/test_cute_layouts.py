"""The emulator's operand layouts against those of NVIDIA's CuTe (PyPI: nvidia-cutlass, of which only headers are used:
``pip install --no-deps nvidia-cutlass``)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.host import build
from tests.emulation.host.run import server

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

Array = np.ndarray[Any, Any]

HERE = Path(__file__).parent
ROWS, COLUMNS, INNER = 64, 96, 16  # of the warpgroup's instruction
THREADS = 128


def headers() -> list[Path]:
    """The folders with the headers of CuTe and of the CUDA toolkit; skips the test where one is missing."""
    found = importlib.util.find_spec("cutlass_library")
    if found is None or not found.submodule_search_locations:
        pytest.skip("nvidia-cutlass is not installed")
    nvcc = shutil.which("nvcc")
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    if not (home / "include").is_dir() and nvcc is not None:
        home = Path(nvcc).resolve().parents[1]
    if not (home / "include" / "cuda_runtime_api.h").is_file():
        pytest.skip("CuTe needs the headers of a CUDA toolkit")
    cute = Path(found.submodule_search_locations[0]) / "source" / "include"
    return [cute, home / "include", home / "include" / "cccl"]


@pytest.fixture(scope="module")
def cute(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """The tables that cute_layouts.cpp prints."""
    program = tmp_path_factory.mktemp("cute") / "layouts"
    flags = [flag for folder in headers() for flag in ("-isystem", str(folder))]
    subprocess.run(["g++", "-std=c++17", "-w", *flags, str(HERE / "cute_layouts.cpp"), "-o", str(program)], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in printed.splitlines() if line and not line.startswith("ERROR")]
    return {name: np.array(values, np.int64) for name, *values in lines}


def call(module: str, function: str, **arguments: Any) -> Any:
    return server(HERE / module).call(function, **arguments).unwrap()


def random_halves(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float16)


def by_thread(table: Array, threads: int, matrix: Array) -> Array:
    """[threads, values]: the elements of ``matrix`` that the table, the thread fastest, gives to each thread."""
    return np.ascontiguousarray(matrix.T.ravel()[table.reshape(-1, threads).T])


@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("layout_a", ["registers", "plain", "transposed"])
def test_operands_of_a_warpgroup_lie_where_cute_puts_them(
    cute: dict[str, Array], layout_a: str, transposed_b: bool
) -> None:
    a, b = random_halves(0, ROWS, INNER), random_halves(1, INNER, COLUMNS)
    memory = np.full(3 * 64 * 64, np.nan, np.float16)  # a panel for a, two for b

    def place(first: int, transposed: bool, matrix: Array, k: int) -> int:
        """Puts a matrix [m or n, k] to where its rows and k to k + 15 lie in a tile that begins at ``first``; returns
        where it begins."""
        table = cute["mn_major" if transposed else "k_major"].reshape(64, 128).T
        memory[first + table[: len(matrix), k : k + INNER]] = matrix
        return first + (k * 64 if transposed else k)

    transposed_a = layout_a == "transposed"
    given = {
        "type": "f16",
        "columns": COLUMNS,
        "a_in_registers": layout_a == "registers",
        "transposed_a": transposed_a,
        "transposed_b": transposed_b,
        "a_at": place(0, transposed_a, a, 32),
        "b_at": place(64 * 64, transposed_b, b.T, 48),
    }
    registers = by_thread(cute["group_a"], THREADS, a).view(np.uint32)
    got = call("warpgroup_kernels.cpp", "multiply_in_place", memory=memory.view(np.uint16), a=registers, given=given)
    exact = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_array_equal(got, by_thread(cute["group_c"], THREADS, exact))


def test_descriptor_of_a_panel_is_that_of_cute(cute: dict[str, Array]) -> None:
    descriptor = call("warpgroup_kernels.cpp", "descriptor")
    leading, stride, base, swizzle = (
        descriptor >> shift & (1 << bits) - 1 for shift, bits in ((16, 14), (32, 14), (49, 3), (62, 2))
    )
    assert [leading, stride, base, swizzle] == cute["mn_major_fields"].tolist()
    assert [stride, base, swizzle] == cute["k_major_fields"][1:].tolist()  # there the leading distance is not used


def test_fragments_of_a_warp_lie_where_cute_puts_them(cute: dict[str, Array]) -> None:
    a, b = random_halves(2, 16, 16), random_halves(3, 16, 8)
    c = np.random.default_rng(4).integers(-8, 9, (16, 8)).astype(np.float32)
    got = call(
        "emulator_kernels.cpp",
        "multiply_fragments",
        a=by_thread(cute["warp_a"], 32, a).view(np.uint32),
        b=by_thread(cute["warp_b"], 32, b.T).view(np.uint32),
        c=by_thread(cute["warp_c"], 32, c),
        type="f16",
    )
    exact = c + a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_array_equal(got, by_thread(cute["warp_c"], 32, exact))


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_of_a_warp_lie_where_cute_puts_them(cute: dict[str, Array], transposed: bool) -> None:
    rows = np.arange(256, dtype=np.uint16).reshape(32, 8)
    bits = np.empty(32 * 128, np.int64)  # of what the rows hold, by the bit that CuTe calls them
    source = cute["rows"].reshape(128, 32).T
    bits[source] = rows[np.arange(32)[:, None], np.arange(128)[None, :] // 16]
    table = cute["matrices_transposed" if transposed else "matrices"].reshape(128, 32).T
    got = call("emulator_kernels.cpp", "matrices_of", rows=rows, transposed=transposed)
    np.testing.assert_array_equal(got.view(np.uint16), bits[table[:, ::16]])

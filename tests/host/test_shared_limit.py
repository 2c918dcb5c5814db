"""Host code of launches, compiled with g++ against a CUDA runtime that a test plays."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "csrc"
HEADER = SOURCES / "common" / "shared_limit.h"

pytestmark = [
    pytest.mark.skipif(not SOURCES.is_dir(), reason="runs from a checkout only"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def run(folder: Path, *flags: str, include: Path = SOURCES) -> subprocess.CompletedProcess[str]:
    program = folder / "shared_limit"
    folders = [f"-I{include}", f"-I{HERE / 'fake'}"]
    command = ["g++", "-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", *flags, *folders]
    built = subprocess.run([*command, HERE / "shared_limit.cpp", "-o", program], capture_output=True, text=True)
    if built.returncode != 0 and flags:
        pytest.skip(f"g++ has no {' '.join(flags)} here")
    assert built.returncode == 0, built.stderr
    return subprocess.run([program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flags", [(), ("-fsanitize=thread",)], ids=["plain", "thread sanitizer"])
def test_the_limit_is_raised_once_per_kernel_and_device(flags: tuple[str, ...], tmp_path: Path) -> None:
    result = run(tmp_path, *flags)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("the thread sanitizer does not start on this kernel")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("MaxDynamicSharedMemorySize, most)", "MaxDynamicSharedMemorySize, static_cast<int>(bytes))"),
        ("if (raised.count({kernel, device})) return cudaSuccess;", ""),
        ("raised.count({kernel, device})", "raised.count({kernel, 0})"),
        ("if (status == cudaSuccess) raised", "raised"),
    ],
    ids=["what the launch needs", "at each launch", "one device for all", "failures kept"],
)
def test_mistakes_are_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    text = HEADER.read_text()
    assert right in text
    mutant = tmp_path / "common" / HEADER.name
    mutant.parent.mkdir()
    mutant.write_text(text.replace(right, wrong))
    result = run(tmp_path, include=tmp_path)
    assert result.returncode == 1
    assert "not " in result.stdout


def test_no_launch_sets_a_limit_of_its_own() -> None:
    users = [
        path.name for path in sorted(SOURCES.rglob("*")) if path.is_file() and "FuncSetAttribute" in path.read_text()
    ]
    assert users == [HEADER.name]

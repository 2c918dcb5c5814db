"""The parts of ``make wheel-matrix`` that need no network: what it installs, and how it words what it saw."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import wheel_check, wheel_matrix


def test_finds_this_python() -> None:
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = wheel_matrix.find_python(minor)
    if found is not None:  # not every system has it on the path
        asked = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
        assert asked.startswith(f"Python {minor}")
    assert wheel_matrix.find_python("3.0") is None


@pytest.mark.parametrize(
    "lines, expected",
    [
        ("Requires-Dist: filelock\n", []),
        ('Requires-Dist: nvidia-nccl-cu12==2.27.5; platform_system == "Linux"\n', ["nvidia-nccl-cu12==2.27.5"]),
        (
            'Requires-Dist: cuda-toolkit[cublas,nvtx]==13.0.2; platform_system == "Linux"\nRequires-Dist: triton\n',
            ["cuda-toolkit[cublas,nvtx]==13.0.2"],
        ),
    ],
)
def test_reads_what_a_cuda_build_needs(tmp_path: Path, lines: str, expected: list[str]) -> None:
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text(f"Name: torch\n{lines}\nBody\n")
    assert wheel_matrix.nvidia_requirements(tmp_path) == expected


@pytest.mark.parametrize(
    "result, expected",
    [
        ({"ok": None, "reason": "no wheel"}, "| 9.9 |  | 3.11 | not run: no wheel |  |"),
        ({"ok": False, "reason": "OSError: x"}, "| 9.9 |  | 3.11 | **fails**: OSError: x |  |"),
        (
            {"ok": True, "reason": None, "torch": "9.9.0+cu13", "python": "3.11.7", "cuda": "13.0"}
            | {"cuda_half": {"loads": True, "ops": ["a", "b"]}},
            "| 9.9.0+cu13 | CUDA 13.0 | 3.11.7 | passes | loads (2 ops) |",
        ),
        (
            {
                "ok": True,
                "reason": None,
                "torch": "9.9.0",
                "python": "3.11.7",
                "cuda": None,
                "cuda_half": {"loads": None},
            },
            "| 9.9.0 | CPU | 3.11.7 | passes |  |",
        ),
    ],
)
def test_rows(result: dict[str, Any], expected: str) -> None:
    assert wheel_matrix.row({**result, "asked": "9.9", "minor": "3.11"}) == expected


def test_failures_keep_what_was_said() -> None:
    with pytest.raises(wheel_matrix.Failed, match="AssertionError: told"):
        wheel_matrix.run(sys.executable, "-c", "raise AssertionError('told')")
    with pytest.raises(wheel_matrix.Failed, match="exit status 3"):
        wheel_matrix.run(sys.executable, "-c", "raise SystemExit(3)")


def test_checks_hold_here_and_notice_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if wheel_check.sk.available_backends()["cpu"] is not None:
        pytest.skip("needs the CPU half")
    wheel_check.check_cpu_ops()
    wheel_check.check_arrays()
    right: Callable[..., Callable[..., torch.Tensor]] = vars(wheel_check.Entry)["function"].fget

    def wrong(entry: wheel_check.Entry) -> Callable[..., torch.Tensor]:
        function = right(entry)

        @functools.wraps(function)
        def call(*, backend: str, **arguments: Any) -> torch.Tensor:
            return function(**arguments, backend=backend) * (1.01 if backend == "cpu" else 1)

        return call

    monkeypatch.setattr(wheel_check.Entry, "function", property(wrong))
    with pytest.raises(AssertionError, match="of the largest"):
        wheel_check.check_cpu_ops()

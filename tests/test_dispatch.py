"""Which backend serves a call, and the doctor that tells."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

import sparc_kernels as sk
from sparc_kernels import _dispatch
from tests.conftest import HAS_GPU

CPU = torch.device("cpu")


def test_kernels_of_this_machine_are_there() -> None:
    """A missing build must not hide behind skipped tests: C++ and Triton are expected wherever the tests run."""
    backends = sk.available_backends()
    assert list(backends) == ["cuda", "triton", "cpu", "eager"]
    assert backends["cpu"] is None
    assert backends["triton"] is None
    assert backends["eager"] is None
    assert backends["cuda"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("op", ["fine_grained", "grouping"])
def test_auto_takes_cpu_kernels_on_the_cpu(op: str, dtype: torch.dtype) -> None:
    assert _dispatch.resolve(op, "auto", CPU, dtype) == "cpu"


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    _dispatch._announce.cache_clear()
    caplog.set_level(logging.INFO, "sparc_kernels")
    for _ in range(3):
        assert _dispatch.resolve("grouping", "auto", CPU, torch.float16) == "eager"
        assert _dispatch.resolve("grouping", "auto", CPU, torch.float32) == "cpu"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "grouping on cpu float16 runs on the eager backend (cpu: it serves float32" in caplog.text


def test_environment_chooses_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARC_BACKEND", "eager")
    assert _dispatch.resolve("fine_grained", "auto", CPU, torch.float32) == "eager"
    assert _dispatch.resolve("fine_grained", "cpu", CPU, torch.float32) == "cpu"
    monkeypatch.setenv("SPARC_BACKEND", "cuda")
    with pytest.raises(NotImplementedError, match="backend='cuda' cannot serve fine_grained"):
        _dispatch.resolve("fine_grained", "auto", CPU, torch.float32)
    assert _dispatch.resolve("contrastive", "auto", CPU, torch.float32) == "eager"
    monkeypatch.setenv("SPARC_BACKEND", "fastest")
    with pytest.raises(ValueError, match="SPARC_BACKEND must be one of auto, cuda, triton, cpu, eager, got 'fastest'"):
        _dispatch.resolve("fine_grained", "auto", CPU, torch.float32)


def test_unknown_op_is_refused() -> None:
    with pytest.raises(ValueError, match="op must be 'fine_grained', 'grouping' or 'contrastive', got 'softmax'"):
        sk.available_backends("softmax")


def test_doctor() -> None:
    result = subprocess.run([sys.executable, "-m", "sparc_kernels"], capture_output=True, text=True, check=True)
    for word in (
        "sparc_kernels",
        sk.__version__,
        "torch",
        torch.__version__,
        "python",
        "eager",
        "usable",
        "cuda",
    ):
        assert word in result.stdout, word


@pytest.mark.gpu
def test_auto_takes_triton_on_a_gpu() -> None:
    assert HAS_GPU
    assert _dispatch.resolve("fine_grained", "auto", torch.device("cuda"), torch.bfloat16) == "triton"

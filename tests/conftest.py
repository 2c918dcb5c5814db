"""Shared fixtures: the backends under test, poisoned memory, the interpreter where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from sparc_kernels import _native

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # read by triton at import: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16")  # instruction sets of the CPU half
BACKENDS = [
    "eager",
    "cpu",
    "triton",
    pytest.param("cuda", marks=pytest.mark.gpu),
]
FUSED = [backend for backend in BACKENDS if backend != "eager"]
DTYPES = {
    "eager": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def device_of(backend: str) -> str:
    """Where a backend's tensors live in these tests."""
    return "cuda" if backend == "cuda" or (backend == "triton" and HAS_GPU) else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """``torch.empty`` hands out NaN, so that a kernel that leaves a place unwritten is caught."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the CPU half, in use."""
    if _native.cpu_reason() is not None:
        pytest.skip(str(_native.cpu_reason()))
    ops = torch.ops.sparc_kernels
    try:
        before = ops.set_cpu_capability(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    assert ops.cpu_capability() == request.param
    yield request.param
    ops.set_cpu_capability(before)

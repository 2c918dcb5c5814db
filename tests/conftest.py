"""Shared fixtures: the backends under test, poisoned memory, the interpreter where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from sparc_kernels import _native
from tests.emulation.host import build
from tests.emulation.host.backend import DEVICES, WARPGROUP_DEVICES, Device, Emulated, played
from tests.interpreter import found_once

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # read by triton at import: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None:
        found_once()

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


def emulated(device: Device) -> Any:
    """A parameter for the CUDA kernels in the emulator."""
    mark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
    return pytest.param(Emulated(device), id=f"emulated-{device}", marks=mark)


EMULATED = [emulated(device) for device in DEVICES]
EMULATED_WARPGROUPS = [emulated(device) for device in WARPGROUP_DEVICES]
EMULATED_FLOAT32 = [emulated(device) for device in DEVICES if device.dtype == torch.float32]


def dtypes_of(backend: str, some: tuple[torch.dtype, ...] = ()) -> tuple[torch.dtype, ...]:
    """All dtypes in which a backend is tested, or some of them; an emulated device has one of its own."""
    return (backend.device.dtype,) if isinstance(backend, Emulated) else some or DTYPES[backend]


def with_cases(cases: Iterable[Any], backends: Iterable[Any]) -> list[Any]:
    """Parameters ``case, backend``: every case on every backend, on emulated devices where ``case.emulated_by(device)``
    says so."""
    found = []
    for case in cases:
        for parameter in backends:
            (backend,) = getattr(parameter, "values", (parameter,))
            if isinstance(backend, Emulated) and not case.emulated_by(backend.device):
                continue
            name = getattr(parameter, "id", None) or backend
            found.append(pytest.param(case, backend, id=f"{case}-{name}", marks=getattr(parameter, "marks", ())))
    return found


def device_of(backend: str) -> str:
    """Where a backend's tensors live in these tests."""
    if isinstance(backend, Emulated):
        return "cpu"
    return "cuda" if backend == "cuda" or (backend == "triton" and HAS_GPU) else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests first, then those with many: no worker ends with a long file while the others are idle.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    places = {path: place for place, path in enumerate(tests)}
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path], places[item.path]))
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def threads() -> Iterator[None]:
    """PyTorch's number of threads may be changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def emulated_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Plays the device of a test's ``backend`` where that is an emulated one."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    with played(parameters.get("backend", "")):
        yield


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """``torch.empty`` hands out NaN, so that a kernel that leaves a place unwritten is caught."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
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


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of Triton kernels run from their tapes at the first call already."""
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setattr("sparc_kernels.ops._triton.replay.RECORDED_FROM", 1)

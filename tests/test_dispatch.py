"""Which backend serves a call, and the doctor that tells."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparc_kernels as sk
from sparc_kernels import _dispatch
from sparc_kernels.ops._room import Room, rooms
from tests.conftest import HAS_GPU

CPU = torch.device("cpu")
WITH_KERNELS = [room.name for room in rooms() if room.dtypes]
MADE_UP = (
    Room(
        "dense",
        {
            "cuda": (torch.float32, torch.bfloat16, torch.float16),
            "triton": (torch.bfloat16,),
            "cpu": (torch.float32, torch.float64, torch.bfloat16),
        },
        entries=(),
        sample=lambda device, dtype: {},
        triton_first={(8, 0): {"large"}, (8, 6): {"small"}, (9, 0): {"small"}},
    ),
    Room("narrow", {"cpu": (torch.float32,)}, entries=(), sample=lambda device, dtype: {}),
    Room("bare", {}, entries=(), sample=lambda device, dtype: {}),
)


@pytest.fixture
def made_up_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "rooms", lambda: MADE_UP)


def test_kernels_of_this_machine_are_there() -> None:
    """A missing build must not hide behind skipped tests: C++ and Triton are expected wherever the tests run."""
    backends = sk.available_backends()
    assert list(backends) == ["cuda", "triton", "cpu", "eager"]
    assert backends["cpu"] is None
    assert backends["triton"] is None
    assert backends["eager"] is None
    if HAS_GPU:
        assert backends["cuda"] is None
    else:
        assert backends["cuda"]


@pytest.mark.parametrize("room", [room for room in rooms() if "cpu" in room.dtypes], ids=lambda room: room.name)
def test_auto_takes_cpu_kernels_on_the_cpu(room: Room) -> None:
    for dtype in room.dtypes["cpu"]:
        assert _dispatch.resolve(room.name, "auto", CPU, dtype) == "cpu"


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture, made_up_rooms: None) -> None:
    _dispatch._announce.cache_clear()
    caplog.set_level(logging.INFO, "sparc_kernels")
    for _ in range(3):
        assert _dispatch.resolve("dense", "auto", CPU, torch.float16) == "eager"
        assert _dispatch.resolve("dense", "auto", CPU, torch.float32) == "cpu"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "dense on cpu float16 runs on the eager backend (cpu: it serves float32" in caplog.text


def test_environment_chooses_for_auto(monkeypatch: pytest.MonkeyPatch, made_up_rooms: None) -> None:
    monkeypatch.setenv("SPARC_BACKEND", "eager")
    assert _dispatch.resolve("dense", "auto", CPU, torch.float32) == "eager"
    assert _dispatch.resolve("dense", "cpu", CPU, torch.float32) == "cpu"
    monkeypatch.setenv("SPARC_BACKEND", "cuda")
    with pytest.raises(NotImplementedError, match="backend='cuda' cannot serve dense"):
        _dispatch.resolve("dense", "auto", CPU, torch.float32)
    assert _dispatch.resolve("narrow", "auto", CPU, torch.float32) == "cpu", "it was never written for cuda"
    assert _dispatch.resolve("bare", "auto", CPU, torch.float32) == "eager"
    with pytest.raises(NotImplementedError, match="narrow has no CUDA kernel"):
        _dispatch.resolve("narrow", "cuda", CPU, torch.float32)
    monkeypatch.setenv("SPARC_BACKEND", "fastest")
    with pytest.raises(ValueError, match="SPARC_BACKEND must be one of auto, cuda, triton, cpu, eager, got 'fastest'"):
        _dispatch.resolve("dense", "auto", CPU, torch.float32)


def test_who_was_written_for_what(made_up_rooms: None) -> None:
    found = {
        room.name: [name for name in sk.available_backends() if _dispatch.has_kernels(room.name, name)]
        for room in MADE_UP
    }
    assert found == {"dense": ["cuda", "triton", "cpu", "eager"], "narrow": ["cpu", "eager"], "bare": ["eager"]}
    assert all(_dispatch.has_kernels(room.name, "auto") for room in MADE_UP)


def test_unknown_op_is_refused() -> None:
    *others, last = (repr(room.name) for room in rooms())
    with pytest.raises(ValueError, match=f"op must be {', '.join(others)} or {last}, got 'softmax'"):
        sk.available_backends("softmax")


@pytest.mark.parametrize("room", rooms(), ids=lambda room: room.name)
def test_each_room_says_what_serves_it(room: Room) -> None:
    reasons = sk.available_backends(room.name)
    assert reasons["eager"] is None
    for backend in ("cuda", "triton", "cpu"):
        if backend not in room.dtypes:
            assert str(reasons[backend]).startswith(f"{room.name} has no ")
        else:
            assert reasons[backend] == sk.available_backends()[backend]


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
        "cuda architectures",
        *(f"backends of {room.name}:" for room in rooms()),
    ):
        assert word in result.stdout, word
    if (Path(sk.__file__).parent / "libsparc_cuda.so").exists():
        assert re.search(r"cuda architectures +sm_\d+", result.stdout)


@pytest.mark.parametrize("op", WITH_KERNELS)
def test_auto_takes_cuda_then_triton_on_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order, whatever GPU there is or is not."""
    asked: list[str] = []
    broken: set[str] = set()

    def refuse(backend: str) -> Callable[..., str | None]:
        def reason(*arguments: object) -> str | None:
            asked.append(backend)
            return f"{backend} is out of order" if backend in broken else None

        return reason

    monkeypatch.setattr(_dispatch, "_REASONS", {name: refuse(name) for name in _dispatch.BACKENDS})
    gpu = torch.device("cuda")
    for breaks, taken in (([], "cuda"), (["cuda"], "triton"), (["triton"], "eager")):
        broken.update(breaks)
        assert _dispatch.resolve(op, "auto", gpu, torch.bfloat16) == taken
    assert asked == ["cuda", "cuda", "triton", "cuda", "triton"]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, made_up_rooms: None) -> set[str]:
    """Backends that refuse every call; the others serve every one, and Triton finds a C compiler."""
    found: set[str] = set()

    def asked(backend: str) -> Callable[..., str | None]:
        return lambda *_: "out of order" if backend in found else None

    monkeypatch.setattr(_dispatch, "_REASONS", {name: asked(name) for name in _dispatch.BACKENDS})
    monkeypatch.setattr(_dispatch, "_c_compiles", lambda: True)
    return found


def take(op: str, backend: str, kind: str | None = None) -> str:
    return _dispatch.resolve(op, backend, torch.device("cuda"), torch.bfloat16, kind)


@pytest.mark.parametrize(
    ("capability", "small", "large"),
    [
        ((8, 0), "cuda", "triton"),
        ((8, 6), "triton", "cuda"),
        ((8, 7), "triton", "cuda"),  # by 8.6
        ((9, 0), "triton", "cuda"),
        ((10, 0), "cuda", "cuda"),  # of a major version that the room does not know
        ((7, 5), "cuda", "cuda"),
    ],
)
def test_auto_takes_triton_where_a_room_says_so(
    capability: tuple[int, int], small: str, large: str, broken: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a capability, or the one before it of its major version, and a kind of call."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert [take("dense", "auto", kind) for kind in ("small", "large", None)] == [small, large, "cuda"]
    assert take("dense", "cuda", "small") == "cuda"
    assert take("narrow", "auto", "small") == "cuda", "its room says nothing"


def test_whoever_is_first_the_other_serves_where_it_cannot(broken: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for breaks, taken in (
        ({"triton"}, ["cuda", "cuda"]),
        ({"cuda"}, ["triton", "triton"]),
        (set(), ["triton", "cuda"]),
    ):
        broken.clear()
        broken.update(breaks)
        assert [take("dense", "auto", kind) for kind in ("large", "small")] == taken
    broken.update({"cuda", "triton"})
    assert take("dense", "auto", "large") == "eager"


COMPILES = _dispatch._c_compiles.__wrapped__


def test_triton_is_first_only_where_it_can_compile(
    broken: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A compiler and Python's headers; it still serves who asks for it, since its cache may hold what is needed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(_dispatch, "_c_compiles", COMPILES)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(_dispatch.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(_dispatch.shutil, "which", lambda name: "/bin/clang" if name == "clang" else None)
    assert take("dense", "auto", "large") == "cuda", "no headers"
    (tmp_path / "Python.h").touch()
    assert take("dense", "auto", "large") == "triton"
    monkeypatch.setattr(_dispatch.shutil, "which", lambda name: None)
    assert take("dense", "auto", "large") == "cuda", "no compiler"
    assert take("dense", "triton", "large") == "triton"
    monkeypatch.setenv("CC", "/opt/cc")
    assert take("dense", "auto", "large") == "triton"


@pytest.mark.parametrize(
    ("op", "device", "dtype", "reason"),
    [
        ("bare", "cuda", torch.bfloat16, "bare has no CUDA kernel"),
        ("dense", "cpu", torch.bfloat16, "it serves tensors on CUDA devices, not on cpu"),
        ("dense", "cuda", torch.float64, "it serves float32, bfloat16, float16, not float64"),
    ],
)
def test_what_cuda_does_not_serve(op: str, device: str, dtype: torch.dtype, reason: str, made_up_rooms: None) -> None:
    assert _dispatch.supports(op, "cuda", torch.device(device), dtype) == reason


def test_what_other_kernels_do_not_serve(made_up_rooms: None) -> None:
    for backend, words in (("cpu", "no C++ kernel"), ("triton", "no Triton kernel")):
        assert _dispatch.supports("bare", backend, CPU, torch.float32) == f"bare has {words}"
    assert _dispatch.supports("dense", "triton", CPU, torch.float32) == "it serves bfloat16, not float32"
    assert "not float64" in str(_dispatch.supports("dense", "triton", CPU, torch.float64))
    assert _dispatch.supports("dense", "triton", CPU, torch.bfloat16) is None


def test_cuda_wants_capability_8(monkeypatch: pytest.MonkeyPatch, made_up_rooms: None) -> None:
    monkeypatch.setattr(_dispatch._native, "cuda_reason", lambda: None)
    monkeypatch.setattr(_dispatch._native, "cuda_device_reason", lambda index: None)
    gpu = torch.device("cuda", 0)
    for capability, reason in (
        ((7, 5), "it needs compute capability 8.0, the device has 7.5"),
        ((8, 0), None),
        ((12, 0), None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert _dispatch.supports("dense", "cuda", gpu, torch.float16) == reason


@pytest.mark.gpu
@pytest.mark.parametrize("room", [room for room in rooms() if "cuda" in room.dtypes], ids=lambda room: room.name)
def test_auto_takes_cuda_on_a_gpu(room: Room) -> None:
    assert HAS_GPU
    assert _dispatch.resolve(room.name, "auto", torch.device("cuda"), torch.bfloat16) == "cuda"
    assert _dispatch.resolve(room.name, "auto", torch.device("cuda"), torch.float64) == "eager"

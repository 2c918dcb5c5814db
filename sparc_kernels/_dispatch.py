"""The backends: which of them can serve a call, and which one ``"auto"`` takes.

The only reader of the ``SPARC_*`` environment variables (docs/design.md lists them).
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Collection
from functools import cache
from pathlib import Path

import torch

from sparc_kernels import _native, _validate
from sparc_kernels._compile import constant_when_compiled
from sparc_kernels._validate import BACKENDS
from sparc_kernels.ops._room import Room, rooms

CUDA_CAPABILITY = (8, 0)  # the matrix instructions on bfloat16, and asynchronous copies

_log = logging.getLogger("sparc_kernels")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def room_of(op: str) -> Room:
    """
    Raises:
        ValueError: there is no room of that name.
    """
    for room in rooms():
        if room.name == op:
            return room
    *others, last = (repr(room.name) for room in rooms())
    raise ValueError(f"op must be {', '.join(others)} or {last}, got {op!r}")


def _dtype_reason(room: Room, backend: str, dtype: torch.dtype) -> str | None:
    served = room.dtypes[backend]
    return None if dtype in served else f"it serves {', '.join(map(_short, served))}, not {_short(dtype)}"


def _cuda_reason(room: Room, device: torch.device, dtype: torch.dtype) -> str | None:
    if "cuda" not in room.dtypes:
        return f"{room.name} has no CUDA kernel"
    if device.type != "cuda":
        return f"it serves tensors on CUDA devices, not on {device.type}"
    reason = _dtype_reason(room, "cuda", dtype) or _native.cuda_reason() or _native.undeclared(room.schemas)
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < CUDA_CAPABILITY:
        return "it needs compute capability {}.{}, the device has {}.{}".format(*CUDA_CAPABILITY, *capability)
    return _native.cuda_device_reason(torch.cuda.current_device() if device.index is None else device.index)


def _cpu_reason(room: Room, device: torch.device, dtype: torch.dtype) -> str | None:
    if "cpu" not in room.dtypes:
        return f"{room.name} has no C++ kernel"
    if device.type != "cpu":
        return f"it serves tensors on the CPU, not on {device.type}"
    return _dtype_reason(room, "cpu", dtype) or _native.cpu_reason() or _native.undeclared(room.schemas)


def _triton_reason(room: Room, device: torch.device, dtype: torch.dtype) -> str | None:
    if "triton" not in room.dtypes:
        return f"{room.name} has no Triton kernel"
    try:
        from sparc_kernels.ops._triton import launch
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return launch.unsupported_reason(device, dtype) or _dtype_reason(room, "triton", dtype)


def _eager_reason(room: Room, device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_REASONS = {"cuda": _cuda_reason, "triton": _triton_reason, "cpu": _cpu_reason, "eager": _eager_reason}


@constant_when_compiled
def supports(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where ``backend`` can serve ``op`` for tensors of ``dtype`` on ``device``, else the reason why it cannot.

    Args:
        op: the name of a room.
        backend: one of ``BACKENDS``.

    Raises:
        ValueError: there is no room of that name.
    """
    return _REASONS[backend](room_of(op), device, dtype)


@constant_when_compiled
def has_kernels(op: str, backend: str) -> bool:
    """Whether ``op`` was written for ``backend`` at all, whatever the machine; eager and auto serve every op."""
    return backend in ("auto", "eager") or backend in room_of(op).dtypes


def _exports_to_onnx() -> bool:
    """ONNX knows PyTorch's operators, not ours."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


@constant_when_compiled
def resolve(op: str, backend: str, device: torch.device, dtype: torch.dtype, kind: str | None = None) -> str:
    """The backend that serves the call.

    ``"auto"`` takes the first of cuda, triton (on a GPU) or cpu (on the CPU) that can, then eager (which it takes for
    meta tensors and in an export to ONNX too); triton before cuda where the room's ``triton_first`` names this kind of
    call for such a device and Triton finds a C compiler. The choice is logged once per op, device type and
    dtype to the logger ``sparc_kernels``, as a warning where kernels exist and eager had to be taken. An explicit
    request never falls back.

    Raises:
        ValueError: ``backend`` is no backend.
        NotImplementedError: the backend asked for cannot serve this call; the message says why.
    """
    _validate.backend(backend)
    if backend == "auto":
        backend = os.environ.get("SPARC_BACKEND", "auto")
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"SPARC_BACKEND must be one of {', '.join(('auto', *BACKENDS))}, got {backend!r}")
        if not has_kernels(op, backend):
            backend = "auto"  # the variable speaks to all ops
        if not room_of(op).dtypes:
            backend = "eager"
    if backend == "auto" and (device.type == "meta" or _exports_to_onnx()):
        return "eager"
    if backend == "auto":
        return _first_that_serves(op, device, dtype, kind)
    reason = supports(op, backend, device, dtype)
    if reason is not None:
        raise NotImplementedError(
            f"backend={backend!r} cannot serve {op} for {_short(dtype)} on {device.type}: {reason}"
        )
    return backend


def is_switched_on(variable: str) -> bool:
    """Whether the environment asks for what is off otherwise."""
    return os.environ.get(variable) == "1"


def _triton_first(room: Room, device: torch.device) -> Collection[str]:
    """Kinds of calls; of a capability that the room does not know, those of the one before it of its major version."""
    table = room.triton_first
    if not table:
        return ()
    capability = torch.cuda.get_device_capability(device)
    known = [one for one in table if one[0] == capability[0] and one <= capability]
    return table[max(known)] if known else ()


@cache
def _c_compiles() -> bool:
    """Whether Triton can compile what launches a kernel: it takes CC, gcc or clang, and Python's headers. Where it
    cannot, as in many a container, CUDA C++ needs neither."""
    scheme = sysconfig.get_default_scheme()
    headers = sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)["include"]
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and Path(headers, "Python.h").exists()


def _first_that_serves(op: str, device: torch.device, dtype: torch.dtype, kind: str | None) -> str:
    refused = {}
    order = ("cpu",) if device.type == "cpu" else ("cuda", "triton")
    if kind is not None and device.type == "cuda" and kind in _triton_first(room_of(op), device) and _c_compiles():
        order = ("triton", "cuda")
    for backend in order:
        reason = supports(op, backend, device, dtype)
        if reason is None:
            _announce(op, device.type, dtype, backend, "")
            return backend
        refused[backend] = reason
    _announce(op, device.type, dtype, "eager", "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return "eager"


@cache
def _announce(op: str, device_type: str, dtype: torch.dtype, backend: str, refused: str) -> None:
    level = logging.WARNING if refused and backend == "eager" else logging.INFO
    suffix = f" ({refused})" if refused else ""
    _log.log(level, "%s on %s %s runs on the %s backend%s", op, device_type, _short(dtype), backend, suffix)


def available_backends(op: str | None = None) -> dict[str, str | None]:
    """Which backends can serve ``op`` on this machine: None, or the reason why not.

    Asked for a dtype that its kernels take, on the device that the backend is made for.

    Args:
        op: the name of a room; None = all rooms, each asked for the backends that it has kernels for.

    >>> available_backends()["eager"] is None
    True
    """
    gpu = torch.device("cuda")
    reasons: dict[str, str | None] = {}
    for backend in BACKENDS:
        on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
        reasons[backend] = machine_reason(backend, gpu if on_gpu else torch.device("cpu"), op)
    return reasons


def machine_reason(backend: str, device: torch.device, op: str | None = None) -> str | None:
    """Why ``backend`` cannot serve ``op`` on ``device`` whatever its dtype, or None; without ``op``, the first reason
    of a room that has kernels for the backend."""
    asked = [room_of(op)] if op is not None else [room for room in rooms() if backend in room.dtypes]
    for room in asked:
        dtypes = room.dtypes.get(backend, (torch.float32,))
        reason = supports(room.name, backend, device, dtypes[0])
        if reason is not None:
            return reason
    return None

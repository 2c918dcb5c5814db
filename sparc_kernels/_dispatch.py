"""The backends: which of them can serve a call, and which one ``"auto"`` takes.

The only reader of the ``SPARC_*`` environment variables (docs/design.md lists them).
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache

import torch

from sparc_kernels import _native, _validate
from sparc_kernels._compile import constant_when_compiled
from sparc_kernels._validate import BACKENDS

NATIVE_OPS = ("fine_grained", "grouping")  # rooms with kernels; the others have their eager definition only
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CUDA_CAPABILITY = (8, 0)  # the matrix instructions on bfloat16, and asynchronous copies

_log = logging.getLogger("sparc_kernels")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cuda_reason(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if op not in NATIVE_OPS:
        return f"{op} has no CUDA kernel"
    if device.type != "cuda":
        return f"it serves tensors on CUDA devices, not on {device.type}"
    if dtype not in _CUDA_DTYPES:
        return f"it serves {', '.join(map(_short, _CUDA_DTYPES))}, not {_short(dtype)}"
    reason = _native.cuda_reason()
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < CUDA_CAPABILITY:
        return "it needs compute capability {}.{}, the device has {}.{}".format(*CUDA_CAPABILITY, *capability)
    return _native.cuda_device_reason(torch.cuda.current_device() if device.index is None else device.index)


def _cpu_reason(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if op not in NATIVE_OPS:
        return f"{op} has no C++ kernel"
    if device.type != "cpu":
        return f"it serves tensors on the CPU, not on {device.type}"
    if dtype not in _CPU_DTYPES:
        return f"it serves {', '.join(map(_short, _CPU_DTYPES))}, not {_short(dtype)}"
    return _native.cpu_reason()


def _triton_reason(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if op not in NATIVE_OPS:
        return f"{op} has no Triton kernel"
    try:
        if op == "fine_grained":
            from sparc_kernels.ops.fine_grained import triton as room
        else:
            from sparc_kernels.ops.grouping import triton as room  # type: ignore[no-redef]
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return room.unsupported_reason(device, dtype)


def _eager_reason(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_REASONS = {"cuda": _cuda_reason, "triton": _triton_reason, "cpu": _cpu_reason, "eager": _eager_reason}


@constant_when_compiled
def supports(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where ``backend`` can serve ``op`` for tensors of ``dtype`` on ``device``, else the reason why it cannot.

    Args:
        op: the room: ``"fine_grained"``, ``"grouping"`` or ``"contrastive"``.
        backend: one of ``BACKENDS``.
    """
    return _REASONS[backend](op, device, dtype)


def _exports_to_onnx() -> bool:
    """ONNX knows PyTorch's operators, not ours."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


@constant_when_compiled
def resolve(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that serves the call.

    ``"auto"`` takes the first of cuda, triton (on a GPU) or cpu (on the CPU) that can, then eager (which it takes for
    meta tensors and in an export to ONNX too); the choice is logged
    once per op, device type and dtype to the logger ``sparc_kernels``, as a warning where kernels exist and eager had
    to be taken. An explicit request never falls back.

    Raises:
        ValueError: ``backend`` is no backend.
        NotImplementedError: the backend asked for cannot serve this call; the message says why.
    """
    _validate.backend(backend)
    if backend == "auto":
        backend = os.environ.get("SPARC_BACKEND", "auto")
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"SPARC_BACKEND must be one of {', '.join(('auto', *BACKENDS))}, got {backend!r}")
        if op not in NATIVE_OPS:
            backend = "eager"
    if backend == "auto" and (device.type == "meta" or _exports_to_onnx()):
        return "eager"
    if backend == "auto":
        return _first_that_serves(op, device.type, device, dtype)
    reason = supports(op, backend, device, dtype)
    if reason is not None:
        raise NotImplementedError(
            f"backend={backend!r} cannot serve {op} for {_short(dtype)} on {device.type}: {reason}"
        )
    return backend


def _first_that_serves(op: str, device_type: str, device: torch.device, dtype: torch.dtype) -> str:
    refused = {}
    for backend in ("cpu",) if device_type == "cpu" else ("cuda", "triton"):
        reason = supports(op, backend, device, dtype)
        if reason is None:
            _announce(op, device_type, dtype, backend, "")
            return backend
        refused[backend] = reason
    _announce(op, device_type, dtype, "eager", "; ".join(f"{name}: {why}" for name, why in refused.items()))
    return "eager"


@cache
def _announce(op: str, device_type: str, dtype: torch.dtype, backend: str, refused: str) -> None:
    level = logging.WARNING if refused and backend == "eager" else logging.INFO
    suffix = f" ({refused})" if refused else ""
    _log.log(level, "%s on %s %s runs on the %s backend%s", op, device_type, _short(dtype), backend, suffix)


def available_backends(op: str = "fine_grained") -> dict[str, str | None]:
    """Which backends can serve ``op`` on this machine: None, or the reason why not.

    Asked for bfloat16, which every kernel serves, on the device that the backend is made for.

    >>> available_backends()["eager"] is None
    True
    """
    if op not in (*NATIVE_OPS, "contrastive"):
        raise ValueError(f"op must be 'fine_grained', 'grouping' or 'contrastive', got {op!r}")
    gpu = torch.device("cuda")
    reasons: dict[str, str | None] = {}
    for backend in BACKENDS:
        on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
        reasons[backend] = supports(op, backend, gpu if on_gpu else torch.device("cpu"), torch.bfloat16)
    return reasons

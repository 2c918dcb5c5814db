"""Loads the native library; keeps the reason where it cannot.

Two shared objects beside this file, on PyTorch's stable ABI: ``libsparc_cpu.so`` declares the ops and implements them
on the CPU, ``libsparc_cuda.so`` implements them on CUDA and can be loaded by a CUDA build of PyTorch only. Nothing here
raises: a half that cannot be used says why.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path

import torch

from sparc_kernels import _elf

_CPU_LIBRARY = Path(__file__).with_name("libsparc_cpu.so")
_CUDA_LIBRARY = Path(__file__).with_name("libsparc_cuda.so")


def _load(library: Path, how_to_build: str) -> str | None:
    """None where the library is loaded, else the reason why not."""
    if not library.is_file():
        return f"the native library is not built: {library.name} is missing ({how_to_build})"
    if library == _CPU_LIBRARY and hasattr(torch.ops.sparc_kernels, "cpu_capability"):
        return f"another copy of {library.name} is loaded into this process already"
    try:
        missing = _elf.incomplete(library)
        if missing is not None:
            return f"{library.name} is incomplete: {missing} ({how_to_build})"
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:  # the cause, where there is one, holds the words of the dynamic loader
        return f"{library.name} cannot be loaded by PyTorch {torch.__version__}: {error.__cause__ or error}"
    return None


def _load_cpu() -> str | None:
    reason = _load(_CPU_LIBRARY, "`pip install .` builds it, and needs a C++17 compiler")
    if reason is None and not hasattr(torch.ops.sparc_kernels, "cpu_capability"):
        return f"{_CPU_LIBRARY.name} does not declare the ops of this package"
    return reason


def _load_cuda(cpu_reason: str | None) -> str | None:
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is not a CUDA build"
    if cpu_reason is not None:  # the CPU half declares the ops
        return cpu_reason
    return _load(_CUDA_LIBRARY, "`SPARC_BUILD_CUDA=1 pip install .` builds it, and needs nvcc")


_CPU_REASON = _load_cpu()
_CUDA_REASON = _load_cuda(_CPU_REASON)


def cpu_reason() -> str | None:
    """None where the C++ kernels can be used, else the reason why not."""
    return _CPU_REASON


def cuda_reason() -> str | None:
    """None where the CUDA half is loaded and there is a device, else the reason why not."""
    if _CUDA_REASON is None and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return _CUDA_REASON


@cache
def undeclared(schemas: tuple[str, ...]) -> str | None:
    """None where the loaded library declares ops of these schemas, ``"name(arguments) -> (results)"``, else the reason
    why they cannot be used: it was built from other sources."""
    for schema in schemas:
        wanted = torch._C.parse_schema(f"sparc_kernels::{schema}")
        name = schema.partition("(")[0]
        op = getattr(torch.ops.sparc_kernels, name, None)
        if op is None or op.default._schema != wanted:
            built = "was built from other sources, it declares no such"
            return f"{_CPU_LIBRARY.name} {built} {name} (`pip install .` builds it)"
    return None


@cache
def cuda_device_reason(index: int) -> str | None:
    """None where the loaded CUDA half can run on that device, else the reason why not: the driver is older than the
    CUDA runtime in the library, or the library holds no code that the device takes.

    Asked of the device itself, once.
    """
    try:
        refusal = ctypes.CDLL(str(_CUDA_LIBRARY)).sparc_cuda_refusal
    except (OSError, AttributeError) as error:
        return f"{_CUDA_LIBRARY.name} does not belong to this package: {error}"
    refusal.argtypes, refusal.restype = (ctypes.c_int,), ctypes.c_char_p
    text = refusal(index)
    return None if text is None else f"{_CUDA_LIBRARY.name} cannot run on CUDA device {index}: {text.decode()}"


def step_reason(op: str, tensor: torch.Tensor) -> str | None:
    """Why an op of the CUDA half that plans take as a step, with matrix instructions of compute capability 9.0, is not
    there for the device of this tensor; or None."""
    if not tensor.is_cuda:
        return f"it serves tensors on CUDA devices, not on {tensor.device.type}"
    reason = cuda_reason()
    if reason is not None:
        return reason
    if not hasattr(torch.ops.sparc_kernels, op):
        return "libsparc_cuda.so was built without compute capability 9.0"
    if torch.version.hip is not None or torch.cuda.get_device_capability(tensor.device) != (9, 0):
        return "it needs compute capability 9.0"
    return cuda_device_reason(tensor.get_device())


def build_info() -> dict[str, str | None]:
    """What was built and what of it is in use.

    Keys: ``cpu_library`` and ``cuda_library`` (paths, None where missing), ``cpu_capability`` (the instruction set that
    the CPU kernels use here, None where they are not loaded), ``cuda_architectures`` (what the CUDA half holds code
    for).
    """
    architectures = None
    if _CUDA_LIBRARY.is_file():
        marker = re.search(rb"sparc_cuda_architectures=([\w,]+);", _CUDA_LIBRARY.read_bytes())
        architectures = marker.group(1).decode() if marker else "unknown"
    return {
        "cpu_library": str(_CPU_LIBRARY) if _CPU_LIBRARY.is_file() else None,
        "cpu_capability": torch.ops.sparc_kernels.cpu_capability() if _CPU_REASON is None else None,
        "cuda_library": str(_CUDA_LIBRARY) if _CUDA_LIBRARY.is_file() else None,
        "cuda_architectures": architectures,
    }

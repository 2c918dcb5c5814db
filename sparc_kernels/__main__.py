"""``python -m sparc_kernels``: versions, and which backends this machine can use, as a doctor would ask.

Exits with 1 where something does not work that should, and names it on the error output:

- the CPU half of the native library is missing or cannot be used;
- on a GPU of compute capability 8.0 or newer that a CUDA build of PyTorch sees: the CUDA half is there but cannot be
  used, or it is not there and triton cannot be used either.

Else with 0: a CUDA half that was not built is no fault while triton serves the GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys

import torch

from sparc_kernels import __version__, _dispatch, _native, available_backends
from sparc_kernels.ops._room import rooms


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    if not torch.cuda.is_available():
        return f"none (torch is built {f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'})"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return ", ".join(names)


def faults() -> list[str]:
    """What should work on this machine and does not, as the text above has it."""
    found = []
    cpu_reason = _native.cpu_reason()
    if cpu_reason is not None:
        found.append(f"the cpu backend cannot be used: {cpu_reason}")
    if torch.version.cuda is None or not torch.cuda.is_available():
        return found
    has_cuda_half = _native.build_info()["cuda_library"] is not None
    for index in range(torch.cuda.device_count()):
        if torch.cuda.get_device_capability(index) < _dispatch.CUDA_CAPABILITY:
            continue
        device = torch.device("cuda", index)
        reasons = {backend: _dispatch.machine_reason(backend, device) for backend in ("cuda", "triton")}
        if has_cuda_half and reasons["cuda"] is not None:
            found.append(f"the cuda backend cannot be used on device {index}: {reasons['cuda']}")
        elif None not in reasons.values():
            refused = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
            found.append(f"no kernel serves device {index}: {refused}")
    return found


def main() -> int:
    """Print the report; the exit status."""
    argparse.ArgumentParser(
        prog="python -m sparc_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = {
        "sparc_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "GPUs": _devices(),
    }
    rows |= {key.replace("_", " "): value or "none" for key, value in _native.build_info().items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    for room in rooms():
        print(f"\nbackends of {room.name}:")
        for backend, reason in available_backends(room.name).items():
            print(f"  {backend:<7} {'usable' if reason is None else f'not usable: {reason}'}")
    found = faults()
    for fault in found:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

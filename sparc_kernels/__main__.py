"""``python -m sparc_kernels``: versions, and which backends this machine can use, as a doctor would ask."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from sparc_kernels import __version__, _native, available_backends


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


def main() -> None:
    """Print the report."""
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
    for op in ("fine_grained", "grouping", "contrastive"):
        print(f"\nbackends of {op}:")
        for backend, reason in available_backends(op).items():
            print(f"  {backend:<7} {'usable' if reason is None else f'not usable: {reason}'}")


if __name__ == "__main__":
    main()

"""Loads the native library; keeps the reason where it cannot."""

from __future__ import annotations


def cpu_reason() -> str | None:
    """None where the C++ kernels are loaded, else the reason why not."""
    return "the native library is not built"


def cuda_reason() -> str | None:
    """None where the CUDA kernels are loaded, else the reason why not."""
    return "the native library is not built"

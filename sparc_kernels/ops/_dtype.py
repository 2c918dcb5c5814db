"""The dtype rules that every op shares."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from sparc_kernels._compile import constant_when_compiled


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of similarities, minima, norms, softmaxes and losses: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@constant_when_compiled  # up to PyTorch 2.11 at least, its compiler cannot trace the question
def has_autocast(device_type: str) -> bool:
    """Whether there is an autocast for the device: ``meta`` has none."""
    return torch.amp.is_autocast_available(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which operations keep their dtypes, on every device."""
    if not has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)

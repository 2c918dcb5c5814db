"""The dtype rules that every op shares."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of similarities, minima, norms, softmaxes and losses: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which operations keep their dtypes, on every device (``meta`` knows no autocast)."""
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)

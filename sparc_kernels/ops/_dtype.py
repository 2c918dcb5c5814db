"""The dtype rule that every op shares."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of similarities, minima, norms, softmaxes and losses: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32

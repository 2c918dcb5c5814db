"""Eager definition of weighted dot products: the truth that the kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def paired_dot_reference(
    left: Tensor,  # [B, N, D]
    right: Tensor,  # [B, N, D]
    weight: Tensor,  # []
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [B, N]
    """Weighted dot products in the accumulation dtype (eq 1-2)."""
    with without_autocast(left.device.type):
        accumulation = accumulation_dtype(left.dtype)
        dtype = compute_dtype or accumulation
        products = (left.to(dtype) * right.to(dtype)).sum(-1).to(accumulation)  # eq 1
        return weight.to(accumulation) * products  # eq 2

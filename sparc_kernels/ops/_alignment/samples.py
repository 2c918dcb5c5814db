"""Inputs to try the family's functions and ops with."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._dtype import accumulation_dtype


def pairs(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Two image-text pairs, one of them with padding; tokens lean towards patches, as trained embeddings do."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 9, 20, generator=generator)
    tokens = torch.randn(2, 5, 20, generator=generator) + patches[:, :5]
    return {
        "patch_embeds": patches.to(device, dtype),
        "token_embeds": tokens.to(device, dtype),
        "token_mask": (torch.arange(5) < torch.tensor([[5], [3]])).to(device),
        "patch_mask": (torch.arange(9) < torch.tensor([[9], [6]])).to(device),
        "logit_scale": torch.tensor(3.0, dtype=accumulation_dtype(dtype), device=device),
        "similarity_threshold": 0.25,
    }

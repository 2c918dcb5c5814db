"""Inputs to try the family's functions and ops with."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._dtype import accumulation_dtype


def pairs(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Three image-text pairs, the last with masked patches; tokens lean towards patches, as trained embeddings do."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 19, 32, generator=generator)
    tokens = torch.randn(3, 7, 32, generator=generator) + patches[:, :7]
    return {
        "patch_embeds": patches.to(device, dtype),
        "token_embeds": tokens.to(device, dtype),
        "token_mask": (torch.arange(7) < torch.tensor([[7], [3], [5]])).to(device),
        "patch_mask": (torch.arange(19) < torch.tensor([[19], [19], [12]])).to(device),
        "logit_scale": torch.tensor(3.0, dtype=accumulation_dtype(dtype), device=device),
        "similarity_threshold": 0.25,
    }

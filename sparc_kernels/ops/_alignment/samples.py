"""Inputs to try the family's functions and ops with."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._dtype import accumulation_dtype


def pairs(device: torch.device, dtype: torch.dtype, P: int = 9, L: int = 5, D: int = 20, B: int = 2) -> dict[str, Any]:
    """Image-text pairs, the second half of them with padding; tokens lean towards patches, as trained embeddings do."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(B, P, D, generator=generator)
    tokens = torch.randn(B, L, D, generator=generator) + patches[:, torch.arange(L) % P]
    padded = (torch.arange(B) >= B // 2)[:, None]
    return {
        "patch_embeds": patches.to(device, dtype),
        "token_embeds": tokens.to(device, dtype),
        "token_mask": (torch.arange(L) < L - 2 * padded).to(device),
        "patch_mask": (torch.arange(P) < P - 3 * padded).to(device),
        "logit_scale": torch.tensor(3.0, dtype=accumulation_dtype(dtype), device=device),
        "similarity_threshold": 0.25,
    }


# A pair in one tile, odd sizes, and more patches and tokens than one tile holds.
SIZES = (
    {"B": 2, "P": 16, "L": 8, "D": 32},
    {"B": 2, "P": 49, "L": 13, "D": 40},
    {"B": 1, "P": 130, "L": 20, "D": 72},
    {"B": 1, "P": 300, "L": 70, "D": 64},
)

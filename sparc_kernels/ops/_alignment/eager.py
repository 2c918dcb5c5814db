"""Equations 2-4 in plain PyTorch, shared by the references of ``fine_grained`` and ``grouping``."""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._alignment.flatness import FLAT_EPS


def alignment_weights(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None,  # [B, P] bool
    similarity_threshold: float | Tensor | None,
) -> Tensor:  # [B, L, P]
    """Alignment weights of every token over the patches of its image (eq 2-4), in the dtype of the embeddings."""
    similarity = token_embeds @ patch_embeds.transpose(-1, -2)  # [B, L, P]
    if patch_mask is None:
        valid = similarity.new_ones((1, 1, similarity.shape[-1]), dtype=torch.bool)
    else:
        valid = patch_mask[:, None, :]
    valid_patches = valid.sum(-1, keepdim=True)  # [B or 1, 1, 1]

    row_min = similarity.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)  # [B, L, 1]
    row_max = similarity.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    row_range = row_max - row_min
    rounding = FLAT_EPS * torch.finfo(similarity.dtype).eps
    constant = row_range <= rounding * torch.maximum(row_min.abs(), row_max.abs())

    normalised = (similarity - row_min) / row_range.masked_fill(constant, 1)  # eq 2
    if similarity_threshold is None:  # 1 / (a count) would be float32 whatever the embeddings are
        threshold: Tensor | float = 1 / valid_patches.to(torch.promote_types(similarity.dtype, torch.float32))
    else:
        threshold = similarity_threshold
    kept = (normalised >= threshold) | (similarity == row_max)
    sparse = normalised.masked_fill(~kept, 0)  # eq 3
    sparse = sparse.masked_fill(constant, 1).masked_fill(~valid, 0)
    return sparse / sparse.sum(-1, keepdim=True)  # eq 4

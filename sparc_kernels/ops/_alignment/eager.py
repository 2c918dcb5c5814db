"""Equations 2-6 in plain PyTorch, shared by the references of the family's rooms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._alignment.flatness import FLAT_EPS
from sparc_kernels.ops._dtype import accumulation_dtype


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


def without_padding(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """[B, N, D] with zeros in masked rows: what stands there, NaN included, changes nothing."""
    return embeds if mask is None else embeds.masked_fill(~mask[..., None], 0)


def token_losses(
    weights: Tensor,  # [B, L, P]
    patches: Tensor,  # [B, P, D]
    tokens: Tensor,  # [B, L, D]
    token_mask: Tensor | None,  # [B, L] bool
    logit_scale: Tensor,  # []
) -> Tensor:  # [B, L]
    """Loss of every token against its weighted mean of the patches (eq 5-6), 0 at padding.

    Products in the dtype of the embeddings, which have no padding; norms and cross-entropies in its accumulation dtype.
    """
    dtype, accumulation = patches.dtype, accumulation_dtype(patches.dtype)
    if token_mask is None:
        token_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    groups = weights @ patches  # eq 5   [B, L, D]
    group_directions = F.normalize(groups.to(accumulation), dim=-1).to(dtype)
    token_directions = F.normalize(tokens.to(accumulation), dim=-1).to(dtype)
    cosine = group_directions @ token_directions.transpose(-1, -2)  # [B, L, L]
    logits = logit_scale.to(accumulation) * cosine.to(accumulation)

    # eq 6: both cross-entropies against the diagonal, over the valid tokens of the caption.
    diagonal = logits.diagonal(dim1=-2, dim2=-1)  # [B, L]
    rows = logits.masked_fill(~token_mask[:, None, :], -torch.inf).logsumexp(-1) - diagonal
    columns = logits.masked_fill(~token_mask[:, :, None], -torch.inf).logsumexp(-2) - diagonal
    return ((rows + columns) / 2).masked_fill(~token_mask, 0)

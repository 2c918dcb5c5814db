"""Eager definition of the SPARC fine-grained loss: the truth that the kernels are held to.

Source: Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), equations 2-6.
Differentiable by autograd any number of times, on any device, in any floating dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._alignment.eager import alignment_weights
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def fine_grained_reference(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    token_mask: Tensor | None,  # [B, L] bool
    patch_mask: Tensor | None,  # [B, P] bool
    logit_scale: Tensor,  # []
    similarity_threshold: float | Tensor | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [B, L]
    """Fine-grained loss of every token, 0 at padding (eq 2-6).

    Computed in ``compute_dtype`` (default: the accumulation dtype of the inputs), except that norms and
    cross-entropies always run in the accumulation dtype, which is also the dtype of the result.
    ``compute_dtype=torch.bfloat16`` gives what forty lines of PyTorch give on bfloat16 tensors.
    """
    with without_autocast(patch_embeds.device.type):
        accumulation = accumulation_dtype(patch_embeds.dtype)
        dtype = compute_dtype or accumulation
        # What stands in a masked row, NaN included, changes nothing.
        if token_mask is None:
            token_mask = torch.ones(token_embeds.shape[:2], dtype=torch.bool, device=token_embeds.device)
        tokens = token_embeds.masked_fill(~token_mask[..., None], 0).to(dtype)
        patches = patch_embeds
        if patch_mask is not None:
            patches = patches.masked_fill(~patch_mask[..., None], 0)
        patches = patches.to(dtype)

        weights = alignment_weights(patches, tokens, patch_mask, similarity_threshold)  # eq 2-4   [B, L, P]
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

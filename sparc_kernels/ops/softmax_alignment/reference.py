"""Eager definition of the loss of tokens against their attention over patches: the truth that kernels are held to.

Source: Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning"
(MGCA, 2022), its token-wise alignment, as the default of the code published with it (``MATH.md`` says what differs).
Differentiable by autograd any number of times, on any device, in any floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._alignment.eager import token_losses, without_padding
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def softmax_alignment_reference(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    token_mask: Tensor | None,  # [B, L] bool
    patch_mask: Tensor | None,  # [B, P] bool
    logit_scale: Tensor,  # []
    attention_scale: float | Tensor,  # []
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [B, L]
    """Loss of every token, 0 at padding and where the image has no valid patch.

    Computed in ``compute_dtype`` (default: the accumulation dtype of the inputs), except that softmaxes, norms and
    cross-entropies always run in the accumulation dtype, which is also the dtype of the result.
    """
    with without_autocast(patch_embeds.device.type):
        accumulation = accumulation_dtype(patch_embeds.dtype)
        dtype = compute_dtype or accumulation
        if patch_mask is not None:
            seen = patch_mask.any(1, keepdim=True)  # [B, 1]
            token_mask = seen.expand(token_embeds.shape[:2]) if token_mask is None else token_mask & seen
        tokens = without_padding(token_embeds, token_mask).to(dtype)
        patches = without_padding(patch_embeds, patch_mask).to(dtype)
        scores = attention_scale * (tokens @ patches.transpose(-1, -2)).to(accumulation)  # [B, L, P]
        if patch_mask is not None:  # a finite number: a row without a valid patch would be 0/0, and its gradient NaN
            scores = scores.masked_fill(~patch_mask[:, None], torch.finfo(accumulation).min)
        weights = scores.softmax(-1).to(dtype)
        return token_losses(weights, patches, tokens, token_mask, logit_scale)

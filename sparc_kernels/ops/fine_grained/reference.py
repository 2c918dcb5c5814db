"""Eager definition of the SPARC fine-grained loss: the truth that the kernels are held to.

Source: Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), equations 2-6.
Differentiable by autograd any number of times, on any device, in any floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._alignment.eager import alignment_weights, token_losses, without_padding
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
        dtype = compute_dtype or accumulation_dtype(patch_embeds.dtype)
        tokens = without_padding(token_embeds, token_mask).to(dtype)
        patches = without_padding(patch_embeds, patch_mask).to(dtype)
        weights = alignment_weights(patches, tokens, patch_mask, similarity_threshold)  # eq 2-4   [B, L, P]
        return token_losses(weights, patches, tokens, token_mask, logit_scale)  # eq 5-6

"""Eager definition of language-grouped embeddings and alignment weights: the truth that the kernels are held to.

Source: Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), equations 2-5.
Differentiable by autograd any number of times, on any device, in any floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._alignment.eager import alignment_weights as _alignment_weights
from sparc_kernels.ops._alignment.eager import without_padding
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def _cast(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    dtype = dtype or accumulation_dtype(patch_embeds.dtype)
    return without_padding(patch_embeds, patch_mask).to(dtype), token_embeds.to(dtype)


def alignment_weights_reference(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None = None,  # [B, P] bool
    similarity_threshold: float | Tensor | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [B, L, P]
    """Alignment weights (eq 2-4).

    Computed in ``compute_dtype`` (default: the accumulation dtype of the inputs), returned in the inputs' dtype.
    """
    with without_autocast(patch_embeds.device.type):
        patches, tokens = _cast(patch_embeds, token_embeds, patch_mask, compute_dtype)
        return _alignment_weights(patches, tokens, patch_mask, similarity_threshold).to(patch_embeds.dtype)


def grouped_embeddings_reference(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None = None,  # [B, P] bool
    similarity_threshold: float | Tensor | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [B, L, D]
    """Language-grouped vision embeddings (eq 5).

    Computed in ``compute_dtype`` (default: the accumulation dtype of the inputs), returned in the inputs' dtype.
    """
    with without_autocast(patch_embeds.device.type):
        patches, tokens = _cast(patch_embeds, token_embeds, patch_mask, compute_dtype)
        weights = _alignment_weights(patches, tokens, patch_mask, similarity_threshold)
        return (weights @ patches).to(patch_embeds.dtype)  # eq 5

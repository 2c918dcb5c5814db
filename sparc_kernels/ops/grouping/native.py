"""The grouping ops of the native library: typed calls, fake implementations.

One op for every device that the library has kernels for; the dispatcher chooses by where the tensors are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels import _native
from sparc_kernels.ops._registration import complete, float32_precision
from sparc_kernels.ops.grouping import schema

if _native.cpu_reason() is None:
    complete("sparc_kernels::grouped_embeddings_forward", schema.fake_embeddings_forward)
    complete("sparc_kernels::grouped_embeddings_backward", schema.fake_backward)
    complete("sparc_kernels::alignment_weights_forward", schema.fake_weights_forward)
    complete("sparc_kernels::alignment_weights_backward", schema.fake_backward)


def grouped_embeddings_forward(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None,  # [B, P] bool
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    """``(embeddings [B, L, D], stats [3, B, L])``; see ``MATH.md``, the ops' signatures."""
    return torch.ops.sparc_kernels.grouped_embeddings_forward(
        patch_embeds, token_embeds, patch_mask, similarity_threshold, float32_precision()
    )


def grouped_embeddings_backward(
    grad_embeddings: Tensor,  # [B, L, D]
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None,  # [B, P] bool
    stats: Tensor,  # [3, B, L]
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    """``(grad_patch_embeds [B, P, D], grad_token_embeds [B, L, D])``."""
    return torch.ops.sparc_kernels.grouped_embeddings_backward(
        grad_embeddings,
        patch_embeds,
        token_embeds,
        patch_mask,
        stats,
        similarity_threshold,
        float32_precision(),
    )


def alignment_weights_forward(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None,  # [B, P] bool
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    """``(weights [B, L, P], stats [3, B, L])``; see ``MATH.md``, the ops' signatures."""
    return torch.ops.sparc_kernels.alignment_weights_forward(
        patch_embeds, token_embeds, patch_mask, similarity_threshold, float32_precision()
    )


def alignment_weights_backward(
    grad_weights: Tensor,  # [B, L, P]
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    patch_mask: Tensor | None,  # [B, P] bool
    stats: Tensor,  # [3, B, L]
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    """``(grad_patch_embeds [B, P, D], grad_token_embeds [B, L, D])``."""
    return torch.ops.sparc_kernels.alignment_weights_backward(
        grad_weights,
        patch_embeds,
        token_embeds,
        patch_mask,
        stats,
        similarity_threshold,
        float32_precision(),
    )

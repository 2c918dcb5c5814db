"""Signatures of the fine-grained ops and what they return, shared by every backend that registers them."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

FORWARD = (
    "(Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? patch_mask, "
    "Tensor logit_scale, Tensor? similarity_threshold, bool pool_patches, bool pool_tokens, str float32_precision) "
    "-> (Tensor token_loss, Tensor stats, Tensor pooled_patches, Tensor pooled_tokens)"
)
BACKWARD = (
    "(Tensor grad_token_loss, Tensor? grad_pooled_patches, Tensor? grad_pooled_tokens, "
    "Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? patch_mask, "
    "Tensor logit_scale, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
    "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)"
)

STATS = ("row_min", "row_max", "group_norm", "token_norm", "row_logsumexp", "column_logsumexp", "scale_derivative")


def fake_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: Tensor | None,
    pool_patches: bool,
    pool_tokens: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes and dtypes of ``fine_grained_forward`` (``MATH.md``, the op's signature)."""
    b, l, d = token_embeds.shape
    dtype = accumulation_dtype(token_embeds.dtype)
    return (
        token_embeds.new_empty((b, l), dtype=dtype),
        token_embeds.new_empty((len(STATS), b, l), dtype=dtype),
        patch_embeds.new_empty((b, d) if pool_patches else (0,)),
        token_embeds.new_empty((b, d) if pool_tokens else (0,)),
    )


def fake_backward(
    grad_token_loss: Tensor,
    grad_pooled_patches: Tensor | None,
    grad_pooled_tokens: Tensor | None,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: Tensor | None,
    stats: Tensor,
    need_patches: bool,
    need_tokens: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``fine_grained_backward`` (``MATH.md``, the op's signature)."""
    return (
        patch_embeds.new_empty(patch_embeds.shape if need_patches else (0,)),
        token_embeds.new_empty(token_embeds.shape if need_tokens else (0,)),
    )

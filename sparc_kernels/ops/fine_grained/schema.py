"""Signatures of the fine-grained ops and what they return, shared by every backend that registers them."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

FORWARD = (
    "(Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? patch_mask, "
    "Tensor logit_scale, float? similarity_threshold) -> (Tensor token_loss, Tensor stats)"
)
BACKWARD = (
    "(Tensor grad_token_loss, Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, "
    "Tensor? patch_mask, Tensor logit_scale, Tensor stats, float? similarity_threshold) "
    "-> (Tensor grad_patch_embeds, Tensor grad_token_embeds, Tensor grad_logit_scale)"
)

STATS = ("row_min", "row_max", "group_norm", "token_norm", "row_logsumexp", "column_logsumexp")


def fake_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: float | None,
    float32_precision: str = "highest",
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``fine_grained_forward`` (``MATH.md``, the op's signature)."""
    b, l = token_embeds.shape[:2]
    dtype = accumulation_dtype(token_embeds.dtype)
    return token_embeds.new_empty((b, l), dtype=dtype), token_embeds.new_empty((len(STATS), b, l), dtype=dtype)


def fake_backward(
    grad_token_loss: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    stats: Tensor,
    similarity_threshold: float | None,
    float32_precision: str = "highest",
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of ``fine_grained_backward`` (``MATH.md``, the op's signature)."""
    return (
        patch_embeds.new_empty(patch_embeds.shape),
        token_embeds.new_empty(token_embeds.shape),
        stats.new_empty(patch_embeds.shape[:1]),
    )

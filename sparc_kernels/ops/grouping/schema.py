"""Signatures of the grouping ops and what they return, shared by every backend that registers them."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

_INPUTS = "Tensor patch_embeds, Tensor token_embeds, Tensor? patch_mask"
EMBEDDINGS_FORWARD = f"({_INPUTS}, float? similarity_threshold) -> (Tensor embeddings, Tensor stats)"
EMBEDDINGS_BACKWARD = (
    f"(Tensor grad_embeddings, {_INPUTS}, Tensor stats, float? similarity_threshold) "
    "-> (Tensor grad_patch_embeds, Tensor grad_token_embeds)"
)
WEIGHTS_FORWARD = f"({_INPUTS}, float? similarity_threshold) -> (Tensor weights, Tensor stats)"
WEIGHTS_BACKWARD = (
    f"(Tensor grad_weights, {_INPUTS}, Tensor stats, float? similarity_threshold) "
    "-> (Tensor grad_patch_embeds, Tensor grad_token_embeds)"
)

STATS = ("row_min", "row_max", "weight_sum")


def _fake_stats(token_embeds: Tensor) -> Tensor:
    b, l = token_embeds.shape[:2]
    return token_embeds.new_empty((len(STATS), b, l), dtype=accumulation_dtype(token_embeds.dtype))


def fake_embeddings_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
    float32_precision: str = "highest",
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``grouped_embeddings_forward`` (``MATH.md``, the ops' signatures)."""
    return token_embeds.new_empty(token_embeds.shape), _fake_stats(token_embeds)


def fake_weights_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
    float32_precision: str = "highest",
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``alignment_weights_forward`` (``MATH.md``, the ops' signatures)."""
    b, l = token_embeds.shape[:2]
    return token_embeds.new_empty((b, l, patch_embeds.shape[1])), _fake_stats(token_embeds)


def fake_backward(
    grad: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    stats: Tensor,
    similarity_threshold: float | None,
    float32_precision: str = "highest",
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of both backward ops (``MATH.md``, the ops' signatures)."""
    return patch_embeds.new_empty(patch_embeds.shape), token_embeds.new_empty(token_embeds.shape)

"""Signatures of the grouping ops and what they return, shared by every backend that registers them."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

_INPUTS = "Tensor patch_embeds, Tensor token_embeds, Tensor? patch_mask, Tensor? similarity_threshold"
_FORWARD_INPUTS = f"{_INPUTS}, str float32_precision"
_BACKWARD_INPUTS = f"{_INPUTS}, Tensor stats, bool need_patches, bool need_tokens, str float32_precision"
EMBEDDINGS_FORWARD = f"({_FORWARD_INPUTS}) -> (Tensor embeddings, Tensor stats)"
WEIGHTS_FORWARD = f"({_FORWARD_INPUTS}) -> (Tensor weights, Tensor stats)"
EMBEDDINGS_BACKWARD = (
    f"(Tensor grad_embeddings, {_BACKWARD_INPUTS}) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)"
)
WEIGHTS_BACKWARD = f"(Tensor grad_weights, {_BACKWARD_INPUTS}) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)"

STATS = ("row_min", "row_max", "weight_sum")


def _fake_stats(token_embeds: Tensor) -> Tensor:
    b, l = token_embeds.shape[:2]
    return token_embeds.new_empty((len(STATS), b, l), dtype=accumulation_dtype(token_embeds.dtype))


def fake_embeddings_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: Tensor | None,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``grouped_embeddings_forward`` (``MATH.md``, the ops' signatures)."""
    return token_embeds.new_empty(token_embeds.shape), _fake_stats(token_embeds)


def fake_weights_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: Tensor | None,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``alignment_weights_forward`` (``MATH.md``, the ops' signatures)."""
    b, l = token_embeds.shape[:2]
    return token_embeds.new_empty((b, l, patch_embeds.shape[1])), _fake_stats(token_embeds)


def fake_backward(
    grad: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: Tensor | None,
    stats: Tensor,
    need_patches: bool,
    need_tokens: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of both backward ops (``MATH.md``, the ops' signatures)."""
    return (
        patch_embeds.new_empty(patch_embeds.shape if need_patches else (0,)),
        token_embeds.new_empty(token_embeds.shape if need_tokens else (0,)),
    )


def _product(patch_embeds: Tensor, token_embeds: Tensor) -> int:
    """Flop of one product over tokens and patches."""
    b, l, d = token_embeds.shape
    return 2 * b * l * patch_embeds.shape[1] * d


def embeddings_forward_flops(patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S and C."""
    return 2 * _product(patch_embeds, token_embeds)


def weights_forward_flops(patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S."""
    return _product(patch_embeds, token_embeds)


def embeddings_backward_flops(grad: Tensor, patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S and dC V^T; A^T dC and dS^T T for dV; dS V for dT."""
    need_patches, need_tokens = rest[-3:-1]
    return _product(patch_embeds, token_embeds) * (2 + (2 if need_patches else 0) + (1 if need_tokens else 0))


def weights_backward_flops(grad: Tensor, patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S; dS^T T for dV; dS V for dT."""
    need_patches, need_tokens = rest[-3:-1]
    return _product(patch_embeds, token_embeds) * (1 + (1 if need_patches else 0) + (1 if need_tokens else 0))

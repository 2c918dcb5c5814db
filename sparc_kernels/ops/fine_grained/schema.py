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


def _products(patch_embeds: Tensor, token_embeds: Tensor) -> tuple[int, int]:
    """Flop of one product over tokens and patches, and of one over tokens and tokens; padding counts."""
    b, l, d = token_embeds.shape
    return 2 * b * l * patch_embeds.shape[1] * d, 2 * b * l * l * d


def forward_flops(patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S, C' and Z (``MATH.md``)."""
    across, within = _products(patch_embeds, token_embeds)
    return 2 * across + within


def backward_flops(
    grad_token_loss: Tensor,
    grad_pooled_patches: Tensor | None,
    grad_pooled_tokens: Tensor | None,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    *rest: object,
) -> int:
    """S, C' and Z once more, dZ T and dU; two products over tokens and patches for dV; one, and dZ^T C', for dT."""
    across, within = _products(patch_embeds, token_embeds)
    need_patches, need_tokens = rest[-3:-1]
    flops = 3 * across + 2 * within
    return flops + (2 * across if need_patches else 0) + (across + within if need_tokens else 0)

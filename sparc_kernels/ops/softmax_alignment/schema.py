"""Signatures of the softmax alignment ops and what they return, shared by every backend that registers them."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

_INPUTS = (
    "Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? patch_mask, "
    "Tensor logit_scale, Tensor attention_scale"
)
FORWARD = f"({_INPUTS}, str float32_precision) -> (Tensor token_loss, Tensor stats)"
BACKWARD = (
    f"(Tensor grad_token_loss, {_INPUTS}, Tensor stats, bool need_patches, bool need_tokens, str float32_precision) "
    "-> (Tensor grad_patch_embeds, Tensor grad_token_embeds)"
)

STATS = ("row_max", "weight_sum", "group_norm", "token_norm", "row_logsumexp", "column_logsumexp", "scale_derivative")


def fake_forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    attention_scale: Tensor,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``softmax_alignment_forward`` (``MATH.md``, the op's signature)."""
    b, l, _ = token_embeds.shape
    dtype = accumulation_dtype(token_embeds.dtype)
    return token_embeds.new_empty((b, l), dtype=dtype), token_embeds.new_empty((len(STATS), b, l), dtype=dtype)


def fake_backward(
    grad_token_loss: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    attention_scale: Tensor,
    stats: Tensor,
    need_patches: bool,
    need_tokens: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``softmax_alignment_backward`` (``MATH.md``, the op's signature)."""
    return (
        patch_embeds.new_empty(patch_embeds.shape if need_patches else (0,)),
        token_embeds.new_empty(token_embeds.shape if need_tokens else (0,)),
    )


def _products(patch_embeds: Tensor, token_embeds: Tensor) -> tuple[int, int]:
    """Flop of one product over tokens and patches, and of one over tokens and tokens; padding counts."""
    b, l, d = token_embeds.shape
    return 2 * b * l * patch_embeds.shape[1] * d, 2 * b * l * l * d


def forward_flops(patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S, C and Z (``MATH.md``)."""
    across, within = _products(patch_embeds, token_embeds)
    return 2 * across + within


def backward_flops(grad_token_loss: Tensor, patch_embeds: Tensor, token_embeds: Tensor, *rest: object) -> int:
    """S, C and Z once more, dA; two products over tokens and patches for dV; one, and dZ^T C, for dT."""
    across, within = _products(patch_embeds, token_embeds)
    need_patches, need_tokens = rest[-3:-1]
    flops = 3 * across + 2 * within
    return flops + (2 * across if need_patches else 0) + (across + within if need_tokens else 0)

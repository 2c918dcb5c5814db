"""Signatures of the op and what it returns, shared by every backend that registers it (``MATH.md``)."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._captions.sizes import captions
from sparc_kernels.ops._dtype import accumulation_dtype

_TENSORS = "Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, Tensor? text_mask, Tensor? text_offsets"
_OPTIONS = "SymInt max_tokens, bool normalize, str weights, float attention_scale, str pooling, float pooling_scale"
FORWARD = f"({_TENSORS}, {_OPTIONS}, str float32_precision) -> (Tensor scores, Tensor stats, Tensor levels)"
BACKWARD = (
    f"(Tensor grad_scores, {_TENSORS}, Tensor stats, Tensor levels, {_OPTIONS}, bool need_image_tokens, "
    "bool need_text_tokens, str float32_precision) -> (Tensor grad_image_tokens, Tensor grad_text_tokens)"
)

KEPT = 2  # results without gradient: inverse norms, and levels


def fake_forward(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    text_offsets: Tensor | None,
    max_tokens: int,
    normalize: bool,
    weights: str,
    attention_scale: float,
    pooling: str,
    pooling_scale: float,
    float32_precision: str,
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``attention_pooled_forward``."""
    i, p, d = image_tokens.shape
    dtype = accumulation_dtype(image_tokens.dtype)
    pairs = (i, captions(text_tokens, text_offsets))
    return (
        image_tokens.new_empty(pairs, dtype=dtype),
        image_tokens.new_empty((i * p + text_tokens.numel() // d,), dtype=dtype),
        image_tokens.new_empty(pairs if pooling == "logsumexp" else (0,), dtype=dtype),
    )


def fake_backward(grad_scores: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``attention_pooled_backward``."""
    image_tokens, text_tokens = args[:2]
    need_image_tokens, need_text_tokens = args[-3:-1]
    assert isinstance(image_tokens, Tensor)
    assert isinstance(text_tokens, Tensor)
    return (
        image_tokens.new_empty(image_tokens.shape if need_image_tokens else (0,)),
        text_tokens.new_empty(text_tokens.shape if need_text_tokens else (0,)),
    )


def _products(image_tokens: Tensor, text_tokens: Tensor) -> int:
    """Of all patches with all tokens."""
    i, p, _ = image_tokens.shape
    return 2 * i * p * text_tokens.numel()


def forward_flops(image_tokens: Tensor, text_tokens: Tensor, *rest: object) -> int:
    """Similarities and contexts."""
    return 2 * _products(image_tokens, text_tokens)


def backward_flops(grad_scores: Tensor, image_tokens: Tensor, text_tokens: Tensor, *rest: object) -> int:
    """Similarities and contexts again, the gradient of the weights, and for each needed gradient the products with
    the similarities' gradient; for that of the patches with the contexts' too."""
    need_image_tokens, need_text_tokens = rest[-3:-1]
    return (3 + 2 * bool(need_image_tokens) + bool(need_text_tokens)) * _products(image_tokens, text_tokens)

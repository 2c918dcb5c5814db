"""Signatures of the op and what it returns, shared by every backend that registers it (``MATH.md``)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._captions.sizes import captions
from sparc_kernels.ops._dtype import accumulation_dtype

_TENSORS = "Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, Tensor? text_mask, Tensor? text_offsets"
FORWARD = (
    f"({_TENSORS}, SymInt max_tokens, bool normalize, bool average, bool by_image, bool by_text, bool keep, "
    "str float32_precision) -> (Tensor image_scores, Tensor stats, Tensor best_token, Tensor best_patch, "
    "Tensor text_scores)"
)
BACKWARD = (
    f"(Tensor? grad_image_scores, Tensor? grad_text_scores, {_TENSORS}, Tensor stats, Tensor best_token, "
    "Tensor best_patch, SymInt max_tokens, bool normalize, bool average, bool need_image_tokens, "
    "bool need_text_tokens, str float32_precision) -> (Tensor grad_image_tokens, Tensor grad_text_tokens)"
)

KEPT = 3  # results without gradient: statistics and indices
MOST_ENTRIES = 32767  # of a side, so that an index fits two bytes
_MOST_IN_BYTE = 255  # the last of 256 values says "none"


def index_dtype(entries: int) -> torch.dtype:
    """Of indices into so many entries, and one value for "none"."""
    return torch.uint8 if entries <= _MOST_IN_BYTE else torch.int16


def none_index(dtype: torch.dtype) -> int:
    """What stands for "none" among indices of a dtype."""
    return _MOST_IN_BYTE if dtype == torch.uint8 else -1


def fake_forward(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    text_offsets: Tensor | None,
    max_tokens: int,
    normalize: bool,
    average: bool,
    by_image: bool,
    by_text: bool,
    keep: bool,
    float32_precision: str,
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``max_similarity_forward``."""
    i, p, d = image_tokens.shape
    j = captions(text_tokens, text_offsets)
    dtype = accumulation_dtype(image_tokens.dtype)
    longest = text_tokens.shape[1] if text_offsets is None else max_tokens

    def empty(shape: tuple[int, ...], wanted: bool, dtype: torch.dtype = dtype) -> Tensor:
        return image_tokens.new_empty(shape if wanted else (0,), dtype=dtype)

    return (
        empty((i, j), by_image),
        empty((i * p + text_tokens.numel() // d,), True),
        empty((i, j, p), by_image and keep, index_dtype(longest)),
        empty((i, *text_tokens.shape[:-1]), by_text and keep, index_dtype(p)),
        empty((i, j), by_text),
    )


def fake_backward(
    grad_image_scores: Tensor | None, grad_text_scores: Tensor | None, *args: object
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``max_similarity_backward``."""
    image_tokens, text_tokens = args[:2]
    need_image_tokens, need_text_tokens = args[-3:-1]
    assert isinstance(image_tokens, Tensor)
    assert isinstance(text_tokens, Tensor)
    return (
        image_tokens.new_empty(image_tokens.shape if need_image_tokens else (0,)),
        text_tokens.new_empty(text_tokens.shape if need_text_tokens else (0,)),
    )


def forward_flops(image_tokens: Tensor, text_tokens: Tensor, *rest: object) -> int:
    """The similarities of all patches with all tokens."""
    i, p, _ = image_tokens.shape
    return 2 * i * p * text_tokens.numel()


def backward_flops(
    grad_image_scores: Tensor | None,
    grad_text_scores: Tensor | None,
    image_tokens: Tensor,
    text_tokens: Tensor,
    *rest: object,
) -> int:
    """For each needed gradient, a row for every patch with its token and for every token with its patch."""
    text_offsets = rest[2]
    assert text_offsets is None or isinstance(text_offsets, Tensor)
    i, j = image_tokens.shape[0], captions(text_tokens, text_offsets)
    rows = j * image_tokens.numel() * (grad_image_scores is not None)
    rows += i * text_tokens.numel() * (grad_text_scores is not None)
    return 2 * rows * sum(1 for need in rest[-3:-1] if need)

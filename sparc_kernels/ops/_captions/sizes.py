"""Sizes that signatures and checks of the family need."""

from __future__ import annotations

from torch import Tensor


def captions(text_tokens: Tensor, text_offsets: Tensor | None) -> int:
    """How many captions there are, packed or not."""
    return text_tokens.shape[0] if text_offsets is None else text_offsets.shape[0] - 1

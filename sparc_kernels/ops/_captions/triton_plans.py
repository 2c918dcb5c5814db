"""What launches know of both sides where every image meets every caption, and powers of two for float16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

_Kind = TypeVar("_Kind", bound="Sides")


@dataclass(frozen=True)
class Sides:
    """The inputs of a pass, and what is kept from the forward pass."""

    images: Tensor  # [I, P, D]
    texts: Tensor  # [J, L, D], or packed: [1, N, D]
    image_mask: Tensor | None  # [I, P]
    text_mask: Tensor | None  # [J, L]
    offsets: Tensor | None  # [J + 1], of packed captions
    longest: int  # tokens of a caption
    stats: Tensor

    @classmethod
    def of_arguments(cls: type[_Kind], tensors: tuple[Any, ...], stats: Tensor, *own: Any) -> _Kind:
        """From image_tokens, text_tokens, image_mask, text_mask, text_offsets and max_tokens; ``own``: the fields that
        a room adds, in their order."""
        images, texts, image_mask, text_mask, offsets, longest = tensors
        if offsets is None:
            longest = texts.shape[1]
        else:
            texts, offsets = texts.unsqueeze(0), offsets.contiguous()
        return cls(images, texts, image_mask, text_mask, offsets, longest, stats, *own)

    @property
    def n_images(self) -> int:
        return self.images.shape[0]

    @property
    def n_patches(self) -> int:
        """Of an image."""
        return self.images.shape[1]

    @property
    def n_captions(self) -> int:
        return self.texts.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    @property
    def n_tokens(self) -> int:
        """Of all captions."""
        return self.texts.shape[0] * self.texts.shape[1]


def exponent_of(magnitudes: Tensor) -> Tensor:
    """Of the least power of two above, such that float32 holds it and its inverse."""
    return torch.frexp(magnitudes).exponent.clamp(-100, 100)


def write_powers(power: Tensor, bound: Tensor, reach: int) -> None:
    """Into ``power`` [2]: a power of two that brings ``bound`` [] below 2^reach, and its inverse."""
    exponent = exponent_of(bound)
    power.copy_(torch.ldexp(torch.ones_like(power), torch.stack([reach - exponent, exponent - reach])))

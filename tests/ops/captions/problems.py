"""Batches of images and captions to try the family's functions with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    images: int
    patches: int
    captions: int
    tokens: int
    channels: int
    layout: str = "whole"  # or masked, or packed


class Problem(NamedTuple):
    image_tokens: Tensor
    text_tokens: Tensor
    options: dict[str, Any]  # masks, or offsets
    upstream: tuple[Tensor, Tensor]

    def masks(self, device: torch.device | str) -> dict[str, Any]:
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.options.items()}


def make(shape: Shape, magnitude: float = 1.0) -> Problem:
    """In float64, of numbers that bfloat16 holds exactly; NaN in padding, a caption and an image without a token."""
    generator = torch.Generator().manual_seed(sum(shape[:5]))
    i, p, j, length, d, layout = shape
    draw = lambda *sizes: (magnitude * torch.randn(*sizes, generator=generator)).bfloat16().double()  # noqa: E731
    options: dict[str, Any] = {}
    images = draw(i, p, d)
    if layout != "whole":
        mask = torch.rand(i, p, generator=generator) > 0.3
        mask[:, 0], mask[1:2] = True, False
        images[~mask] = torch.nan
        options["image_mask"] = mask
    texts = draw(j, length, d)
    if layout == "masked":
        mask = torch.rand(j, length, generator=generator) > 0.3
        mask[:, 0], mask[1:2] = True, False
        texts[~mask] = torch.nan
        options["text_mask"] = mask
    if layout == "packed":
        lengths = torch.randint(1, length + 1, (j,), generator=generator)
        lengths[:1], lengths[1:2] = length, 0
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        texts, options = draw(int(offsets[-1]), d), options | {"cu_seqlens": offsets, "max_seqlen": max(length, 1)}
    upstream = (torch.randn(i, j, generator=generator, dtype=torch.float64) for _ in range(2))
    return Problem(images, texts, options, (next(upstream), next(upstream)))


def leaves_of(problem: Problem, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor]:
    one, other = (x.to(device, dtype).requires_grad_() for x in problem[:2])
    return one, other

"""Inputs to try the family's functions and ops with."""

from __future__ import annotations

from typing import Any

import torch


def batch(
    device: torch.device, dtype: torch.dtype, images: int = 3, patches: int = 5, captions: int = 3, tokens: int = 4
) -> dict[str, Any]:
    """A batch with a hole in an image, a short caption and no ties."""
    generator = torch.Generator().manual_seed(0)
    image_tokens = torch.randn(images, patches, 12, generator=generator)
    text_tokens = torch.randn(captions, tokens, 12, generator=generator)
    image_mask = torch.ones(images, patches, dtype=torch.bool)
    image_mask[0, 1] = False
    text_mask = torch.ones(captions, tokens, dtype=torch.bool)
    text_mask[-1, -1] = False
    return {
        "image_tokens": image_tokens.to(device, dtype),
        "text_tokens": text_tokens.to(device, dtype),
        "image_mask": image_mask.to(device),
        "text_mask": text_mask.to(device),
        "text_offsets": None,
        "max_tokens": 0,
    }


SIZES = ({"patches": 70, "tokens": 40}, {"patches": 300, "tokens": 3})

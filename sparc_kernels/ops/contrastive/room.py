"""What everybody who goes through all ops knows of this one."""

from typing import Any

import torch

from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._room import Entry, Room


def _batch(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(5, 12, generator=generator) for _ in range(2))
    return {
        "image_embeds": images.to(device, dtype),
        "text_embeds": texts.to(device, dtype),
        "logit_scale": torch.tensor(3.0, dtype=accumulation_dtype(dtype), device=device),
    }


ROOM = Room(
    name="contrastive",
    dtypes={},  # the eager definition only
    entries=(Entry("functional.contrastive.contrastive_loss", "ops.contrastive.reference.contrastive_reference"),),
    sample=_batch,
)

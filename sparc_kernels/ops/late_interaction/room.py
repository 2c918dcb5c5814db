"""What everybody who goes through all ops knows of these."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.late_interaction import autograd, schema


def _batch(
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
        "by_image": True,
        "by_text": True,
        "keep": True,
        "logit_scale": torch.tensor(3.0, dtype=accumulation_dtype(dtype), device=device),
    }


ROOM = Room(
    name="late_interaction",
    dtypes={backend: KERNEL_DTYPES[backend] for backend in ("triton", "cpu")},
    entries=(
        Entry(
            "functional.late_interaction.late_interaction_scores",
            "ops.late_interaction.reference.late_interaction_reference",
        ),
        Entry("functional.late_interaction.filip_loss"),
    ),
    sample=_batch,
    sizes=({"patches": 70, "tokens": 40}, {"patches": 300, "tokens": 3}),
    ops=(
        Op(
            "max_similarity",
            forward=Pass(
                schema.FORWARD, schema.fake_forward, schema.forward_flops, ((None,) * 12, (None,) * 5), "forward"
            ),
            backward=Pass(
                schema.BACKWARD, schema.fake_backward, schema.backward_flops, ((None,) * 16, (None,) * 2), "backward"
            ),
            derivative=autograd.derivative,
            kept=schema.KEPT,
        ),
    ),
)

"""What everybody who goes through all ops knows of these."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._captions.samples import SIZES, batch
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.late_interaction import autograd, schema


def _batch(device: torch.device, dtype: torch.dtype, **sizes: int) -> dict[str, Any]:
    scale = torch.tensor(3.0, dtype=accumulation_dtype(dtype), device=device)
    return batch(device, dtype, **sizes) | {"by_image": True, "by_text": True, "keep": True, "logit_scale": scale}


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
    sizes=SIZES,
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

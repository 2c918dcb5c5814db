"""What everybody who goes through all ops knows of these."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._captions.samples import SIZES, batch
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.attention_pooling import autograd, schema


def _batch(device: torch.device, dtype: torch.dtype, **sizes: int) -> dict[str, Any]:
    options = {"weights": "softmax", "attention_scale": 4.0, "pooling": "logsumexp", "pooling_scale": 5.0}
    return batch(device, dtype, **sizes) | options


ROOM = Room(
    name="attention_pooling",
    dtypes={backend: KERNEL_DTYPES[backend] for backend in ("triton", "cpu")},
    entries=(
        Entry(
            "functional.attention_pooling.attention_pooled_scores",
            "ops.attention_pooling.reference.attention_pooled_reference",
        ),
    ),
    sample=_batch,
    sizes=SIZES,
    ops=(
        Op(
            "attention_pooled",
            forward=Pass(
                schema.FORWARD, schema.fake_forward, schema.forward_flops, ((None,) * 12, (None,) * 3), "forward"
            ),
            backward=Pass(
                schema.BACKWARD, schema.fake_backward, schema.backward_flops, ((None,) * 17, (None,) * 2), "backward"
            ),
            derivative=autograd.derivative,
            kept=schema.KEPT,
        ),
    ),
)

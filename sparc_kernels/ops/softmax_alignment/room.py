"""What everybody who goes through all ops knows of this one."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._alignment import samples
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.softmax_alignment import autograd, schema


def _pairs(device: torch.device, dtype: torch.dtype, **sizes: int) -> dict[str, Any]:
    """The family's pairs, under the names of the op and of the public functions."""
    x = samples.pairs(device, dtype, **sizes)
    public = ("image_tokens", "text_tokens", "text_mask", "image_mask")
    return x | dict(zip(public, list(x.values()))) | {"attention_scale": 2.0}


ROOM = Room(
    name="softmax_alignment",
    dtypes={backend: KERNEL_DTYPES[backend] for backend in ("triton", "cpu")},
    # one of the two directions, which are the same op: half the compilation
    entries=(Entry("functional.within_pairs.mgca_local_loss", options={"direction": "text_to_image"}),),
    sample=_pairs,
    sizes=samples.SIZES,
    ops=(
        Op(
            "softmax_alignment",
            forward=Pass(
                schema.FORWARD,
                schema.fake_forward,
                schema.forward_flops,
                batch_dims=((0, 0, 0, 0, None, None, None), (0, 1)),
                launcher="forward",
            ),
            backward=Pass(
                schema.BACKWARD,
                schema.fake_backward,
                schema.backward_flops,
                batch_dims=((0, 0, 0, 0, 0, None, None, 1, None, None, None), (0, 0)),
                launcher="backward",
            ),
            derivative=autograd.derivative,
        ),
    ),
)

"""What everybody who goes through all ops knows of this one."""

from typing import Any

import torch
from sparc_kernels.ops.paired_dot import autograd, schema

from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._room import Entry, Op, Pass, Room


def _rows(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 3, 20, generator=generator) for _ in range(2))
    weight = torch.tensor(1.5, dtype=accumulation_dtype(dtype), device=device)
    return {"left": left.to(device, dtype), "right": right.to(device, dtype), "weight": weight}


ROOM = Room(
    name="paired_dot",
    dtypes={"triton": (torch.float32, torch.bfloat16)},
    entries=(Entry("functional.paired_dot.paired_dot", "ops.paired_dot.reference.paired_dot_reference"),),
    sample=_rows,
    ops=(
        Op(
            "paired_dot",
            forward=Pass(
                schema.FORWARD,
                schema.fake_forward,
                schema.forward_flops,
                batch_dims=((0, 0, None, None), (0, 1)),
                launcher="forward",
            ),
            backward=Pass(
                schema.BACKWARD,
                schema.fake_backward,
                schema.backward_flops,
                batch_dims=((0, 0, 0, None, None, None, None), (0, 0)),
                launcher="backward",
            ),
            derivative=autograd.derivative,
        ),
    ),
)

"""What everybody who goes through all ops knows of this one."""

from __future__ import annotations

from typing import Any

import torch

from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.optimal_transport import autograd, schema


def _pairs(device: torch.device, dtype: torch.dtype, B: int = 2, P: int = 6, L: int = 5, D: int = 12) -> dict[str, Any]:
    """Pairs whose iterations arrive at a vertex of the transport polytope, where the plan does not depend on the
    tokens, so that the derivative with a constant plan is the one of finite differences."""
    generator = torch.Generator().manual_seed(4)
    patches = torch.randn(B, P, D, generator=generator)
    tokens = 0.5 * torch.randn(B, L, D, generator=generator) + patches[:, torch.arange(L) % P]
    image_mask, text_mask = torch.ones(B, P, dtype=torch.bool), torch.ones(B, L, dtype=torch.bool)
    image_mask[-1, 1], text_mask[-1, -1] = False, False
    return {
        "image_tokens": patches.to(device, dtype),
        "text_tokens": tokens.to(device, dtype),
        "image_mask": image_mask.to(device),
        "text_mask": text_mask.to(device),
        "beta": 0.01,
        "iterations": 2,
        "proximal": True,
        "matched": (torch.arange(B) % 2 == 0).to(device),
    }


ROOM = Room(
    name="optimal_transport",
    dtypes={backend: KERNEL_DTYPES[backend] for backend in ("triton", "cpu")},
    entries=(
        Entry(
            "functional.transport.optimal_transport_distance",
            "ops.optimal_transport.reference.optimal_transport_reference",
        ),
        Entry("functional.transport.word_region_alignment_loss"),
    ),
    sample=_pairs,
    sizes=({"P": 49, "L": 13, "D": 40}, {"B": 1, "P": 300, "L": 70, "D": 64}),
    ops=(
        Op(
            "transport",
            forward=Pass(
                schema.FORWARD,
                schema.fake_forward,
                schema.forward_flops,
                ((0, 0, 0, 0, None, None, None, None, None), (0, 0, 0)),
                "forward",
            ),
            backward=Pass(
                schema.BACKWARD,
                schema.fake_backward,
                schema.backward_flops,
                ((0, 0, 0, 0, 0, None, 0, None, None, None, None, None), (0, 0)),
                "backward",
            ),
            derivative=autograd.derivative,
            kept=schema.KEPT,
        ),
    ),
)

"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from tests.ops.alignment.launches import launches, meta

# name -> (P, L, D) of the pairs: words over patches, patches over words
SHAPES = {"paper": [(196, 96, 128)], "large": [(256, 1024, 256)]}
# Two words a thread on sm_100, in bfloat16 with six tiles of tokens: a pass over [L, L] numbers, no product.
MAY_SPILL = {"tiled_loss_kernel": 8}


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a batch of 1024 pairs of ``shape`` (P, L, D)."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops.softmax_alignment import triton

    b, (p, l, d) = 1024, shape
    patches, tokens, mask = meta(b, p, d, dtype=dtype), meta(b, l, d, dtype=dtype), meta(b, l, dtype=torch.bool)
    pairs = (patches, tokens, mask, None, meta(), meta())
    found: dict[str, Sequence[Any]] = {}
    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        (_, stats), found["forward"] = triton.forward_plan(*pairs, precision)
        _, found["backward"] = triton.backward_plan(meta(b, l), *pairs, stats, True, True, precision)
    return {name: launches(steps) for name, steps in found.items()}

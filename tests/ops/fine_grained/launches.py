"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from tests.ops.alignment.launches import SHAPES, launches, meta

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

# Bytes per thread at 256 patches. The forward spills on mma.sync chips alone, where U stays in registers as an operand;
# the backward holds S, dU and U at once (432 on sm_90, 184 on sm_100, 832 on mma.sync chips).
MAY_SPILL = {"pair_forward_kernel": 192, "pair_backward_kernel": 832}


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a batch of 1024 pairs of ``shape`` (P, L, D)."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops.fine_grained import triton

    b, (p, l, d) = 1024, shape
    patches, tokens, mask = meta(b, p, d, dtype=dtype), meta(b, l, d, dtype=dtype), meta(b, l, dtype=torch.bool)
    pairs, mean = (patches, tokens, mask, None, meta(), None), meta(b, d, dtype=dtype)
    found: dict[str, Sequence[Any]] = {}
    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        for name, pool in (("forward", False), ("pooled_forward", True)):
            (_, stats, *_), found[name] = triton.forward_plan(*pairs, pool, pool, precision)
        for name, means, need in (
            ("backward", (None, None), (True, True)),
            ("pooled_backward", (mean, mean), (True, True)),
            ("backward_of_patches", (mean, mean), (True, False)),
            ("backward_of_tokens", (mean, mean), (False, True)),
        ):
            _, found[name] = triton.backward_plan(meta(b, l), *means, *pairs, stats, *need, precision)
    return {name: launches(steps) for name, steps in found.items()}

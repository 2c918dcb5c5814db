"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from tests.ops.alignment.launches import SHAPES, meta

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

# A backward in one program holds S, dU and U at once, and spills: bytes per thread at 256 patches.
MAY_SPILL = {"pair_backward_kernel": 1536}


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a batch of 1024 pairs of ``shape`` (P, L, D)."""
    from sparc_kernels.ops._triton.plans import Gradients, Inputs
    from sparc_kernels.ops.fine_grained import triton

    b, (p, l, d) = 1024, shape
    patches, tokens, mask = meta(b, p, d, dtype=dtype), meta(b, l, d, dtype=dtype), meta(b, l, dtype=torch.bool)
    scale, weight = meta(), meta(b, l)
    pairs = Inputs(patches, tokens, mask, None, None, precision)
    grads = (torch.empty_like(patches), torch.empty_like(tokens))
    means = (meta(b, d, dtype=dtype), meta(b, d, dtype=dtype))
    found = {}
    with mock.patch.object(triton, "capability", return_value=capability):
        for name, pool in (("forward", False), ("pooled_forward", True)):
            (_, stats, *_), found[name] = triton.forward_plan(pairs, scale, pool, pool)
        for name, out in {
            "backward": Gradients(*grads),
            "pooled_backward": Gradients(*grads, *means),
            "backward_of_patches": Gradients(grads[0], None, means[0]),
            "backward_of_tokens": Gradients(None, grads[1], None, means[1]),
        }.items():
            found[name] = triton.backward_plan(weight, pairs, scale, stats, out)
    return found

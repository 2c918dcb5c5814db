"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from tests.ops.alignment.launches import SHAPES, meta

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

MAY_SPILL = {"rows_backward_kernel": 512}  # it holds S and dA at once: bytes per thread at 256 patches


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a batch of 1024 pairs of ``shape`` (P, L, D)."""
    from sparc_kernels.ops._triton.plans import Gradients, Inputs
    from sparc_kernels.ops.grouping import triton

    b, (p, l, d) = 1024, shape
    groups = Inputs(meta(b, p, d, dtype=dtype), meta(b, l, d, dtype=dtype), None, None, None, precision)
    grads = (torch.empty_like(groups.patches), torch.empty_like(groups.tokens))
    found = {}
    with mock.patch.object(triton, "capability", return_value=capability):
        for name, is_weights, n in (("embeddings", False, d), ("weights", True, p)):
            _, found[f"{name}_forward"] = triton.forward_plan(groups, weights=is_weights)
            grad = meta(b, l, n, dtype=dtype)
            for one, out in (
                ("backward", Gradients(*grads)),
                ("backward_of_patches", Gradients(grads[0], None)),
                ("backward_of_tokens", Gradients(None, grads[1])),
            ):
                found[f"{name}_{one}"] = triton.backward_plan(grad, groups, out, weights=is_weights)
    return found

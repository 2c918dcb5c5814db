"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from tests.ops.alignment.launches import SHAPES, launches, meta

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

MAY_SPILL = {"rows_backward_kernel": 512}  # it holds S and dA at once: bytes per thread at 256 patches


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a batch of 1024 pairs of ``shape`` (P, L, D)."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops.grouping import triton

    b, (p, l, d) = 1024, shape
    groups = (meta(b, p, d, dtype=dtype), meta(b, l, d, dtype=dtype), None, None)
    found: dict[str, Sequence[Any]] = {}
    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        for name, is_weights, n in (("embeddings", False, d), ("weights", True, p)):
            (_, stats), found[f"{name}_forward"] = triton.forward_plan(*groups, precision, weights=is_weights)
            for one, need in (
                ("backward", (True, True)),
                ("backward_of_patches", (True, False)),
                ("backward_of_tokens", (False, True)),
            ):
                _, found[f"{name}_{one}"] = triton.backward_plan(
                    meta(b, l, n, dtype=dtype), *groups, stats, *need, precision, weights=is_weights
                )
    return {name: launches(steps) for name, steps in found.items()}

"""Optimal transport within pairs: distances by 50 proximal steps, UNITER's default."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, FORWARD, Case
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import TINY, PairInputs, PairOp, paper_shape
from sparc_kernels.ops.optimal_transport.reference import optimal_transport_reference


class OptimalTransport(PairOp):
    """The sum of the distances. The iterations are no products, and their multiply-adds are not counted."""

    def flop(self, case: Case, product: float, squares: float) -> float:
        return (3.0 - bool(case.frozen)) * product if case.mode == BOTH else product

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        return optimal_transport_reference(x.first, x.second, None, x.mask, compute_dtype=compute_dtype).sum()

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.optimal_transport_distance(x.first, x.second, None, x.mask, backend=backend).sum()


OPS = (OptimalTransport("optimal_transport"),)
SHAPE: dict[str, Any] = {"patches": 196, "tokens": 32, "channels": 256}


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    (op,) = OPS
    if quick:
        return [Plan(op.case("optimal_transport", **TINY))]
    gpu = device.type == "cuda"
    first, second = ("bfloat16", "float32") if gpu else ("float32", "bfloat16")
    shape = paper_shape(1024) if gpu else SHAPE | {"batch": 64}
    return [
        Plan(op.case("optimal_transport", **shape, dtype=dtype, mode=mode), DEFAULT_MODE if dtype == first else ())
        for dtype in (first, second)
        for mode in (BOTH, FORWARD)
    ]


SUITES = (Suite("optimal_transport", "Optimal transport within pairs (UNITER)", _plans, rank=95, weight=1),)

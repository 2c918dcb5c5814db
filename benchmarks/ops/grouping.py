"""Language-grouped embeddings and alignment weights: two results of one room."""

from __future__ import annotations

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, FORWARD, Case
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import TINY, PairInputs, PairOp, paper_shape
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference


class Grouping(PairOp):
    def width(self, case: Case) -> int:
        return case["channels"]

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        return grouped_embeddings_reference(x.first, x.second, compute_dtype=compute_dtype)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.language_grouped_embeddings(x.first, x.second, backend=backend)

    def flop(self, case: Case, product: float, squares: float) -> float:
        return (7 if case.mode == BOTH else 2) * product


class Weights(PairOp):
    def width(self, case: Case) -> int:
        return case["patches"]

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        return alignment_weights_reference(x.first, x.second, compute_dtype=compute_dtype)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.alignment_weights(x.first, x.second, backend=backend)

    def flop(self, case: Case, product: float, squares: float) -> float:
        return (4 if case.mode == BOTH else 1) * product


OPS = (Grouping("grouping"), Weights("weights"))


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(op.case("grouping", **TINY)) for op in OPS]
    gpu = device.type == "cuda"
    first, second = ("bfloat16", "float32") if gpu else ("float32", "bfloat16")
    shape = paper_shape(1024 if gpu else 64)
    return [
        Plan(op.case("grouping", **shape, dtype=dtype, mode=mode), DEFAULT_MODE if dtype == first else ())
        for dtype in (first, second)
        for op in OPS
        for mode in (BOTH, FORWARD)
    ]


SUITES = (Suite("grouping", "Grouped embeddings and alignment weights", _plans, rank=60),)

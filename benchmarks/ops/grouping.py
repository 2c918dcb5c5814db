"""Language-grouped embeddings and alignment weights: two results of one room."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, FORWARD, Case
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import TINY, PairInputs, PairOp, paper_shape
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference


class Grouping(PairOp):
    """``last``: the axis of a result [B, L, last]; ``products`` of L x P x D: forward, forward + backward."""

    def __init__(self, name: str, last: str, products: tuple[int, int], *functions: Callable[..., Tensor]) -> None:
        super().__init__(name)
        self.last, self.products = last, products
        self.reference, self.function = functions

    def width(self, case: Case) -> int:
        return case[self.last]

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        return self.reference(x.first, x.second, compute_dtype=compute_dtype)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return self.function(x.first, x.second, backend=backend)

    def flop(self, case: Case, product: float, squares: float) -> float:
        return self.products[case.mode == BOTH] * product


OPS = (
    Grouping("grouping", "channels", (2, 7), grouped_embeddings_reference, sk.language_grouped_embeddings),
    Grouping("weights", "patches", (1, 4), alignment_weights_reference, sk.alignment_weights),
)


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

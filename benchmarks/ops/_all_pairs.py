"""What the ops share in which every image meets every caption by its tokens."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure.case import Case, Provider, one_size
from benchmarks.measure.suite import DEFAULT_MODE, Plan
from benchmarks.ops._pairs import TINY, PairInputs, PairOp
from benchmarks.report import tables

SHAPE: dict[str, Any] = {"patches": 196, "tokens": 32, "channels": 256}


def _bare_product(x: PairInputs) -> Tensor:
    return x.first.detach().flatten(0, 1) @ x.second.detach().flatten(0, 1).T


def cross_entropy(logits: Tensor) -> Tensor:
    """Of rows, the diagonal being right."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def symmetric_cross_entropy(image_logits: Tensor, text_logits: Tensor) -> Tensor:
    """Of rows and of columns, the diagonal being right."""
    return (cross_entropy(image_logits) + cross_entropy(text_logits.T)) / 2


BARE_PRODUCT = Provider(
    "bare_product",
    "floor",
    lambda case: _bare_product,
    takes_part=one_size,
    label="bare product",
    note="all similarities by one product through `torch.mm`, and nothing else.",
)


class AllPairsOp(PairOp):
    apart = False
    words_per_similarity: ClassVar[int]
    """Peak of the definition, in float32 words per similarity of a token and a patch."""
    contenders: ClassVar[tuple[Provider, ...]] = (BARE_PRODUCT,)

    def too_large(self, case: Case, device: torch.device) -> str | None:
        if device.type != "cpu":
            return None  # a GPU's allocator says so itself, and nobody else suffers
        similarities = case["batch"] ** 2 * case["patches"] * case["tokens"]
        needs = self.words_per_similarity * max(4, case.itemsize) * similarities
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"it needs about {needs / 1e9:.0f} GB, the machine has {has / 1e9:.0f}" if needs > 0.6 * has else None


def all_pairs_plans(op: AllPairsOp, suite: str, device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(op.case(suite, **TINY))]
    batch = 256 if device.type == "cuda" else 64
    first, second = ("bfloat16", "float32") if device.type == "cuda" else ("float32", "bfloat16")
    return [
        Plan(
            op.case(suite, **SHAPE, batch=batch, dtype=dtype),
            DEFAULT_MODE if dtype == first or device.type == "cpu" else (),
        )
        for dtype in (first, second)
    ]


def growing_plans(op: AllPairsOp, suite: str, device: torch.device, quick: bool) -> list[Plan]:
    batches: tuple[int, ...]
    shape, batches = SHAPE | {"dtype": "float32"}, (32, 64, 128, 256, 512)
    if quick:
        shape, batches = {name: size for name, size in TINY.items() if name != "batch"}, (4, 8, 12)
    elif device.type == "cuda":
        shape, batches = SHAPE | {"dtype": "bfloat16"}, (128, 256, 512, 1024)
    return [Plan(op.case(suite, **shape, batch=batch, axis="batch")) for batch in batches]


def growth_table(rows: list[Any], memory_grows: float = 1.0) -> str:
    return "\n\n".join([tables.scaling_table(rows, work=2.0, memory_grows=memory_grows), tables.op_table(rows)])

"""Late interaction over the batch: FILIP's loss, every image with every caption by maxima over their tokens."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case, Provider
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import TINY, PairInputs, PairOp
from benchmarks.report import tables
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference

# Peak of the definition, in float32 words per similarity of a token and a patch.
WORDS_PER_SIMILARITY = 4


def _bare_product(x: PairInputs) -> Tensor:
    return x.first.detach().flatten(0, 1) @ x.second.detach().flatten(0, 1).T


class LateInteraction(PairOp):
    apart = False
    contenders: ClassVar[tuple[Provider, ...]] = (
        Provider(
            "bare_product",
            "floor",
            lambda case: _bare_product,
            takes_part=lambda case, device: not case.axis,
            label="bare product",
            note="all similarities by one product through `torch.mm`, and nothing else.",
        ),
    )

    def flop(self, case: Case, product: float, squares: float) -> float:
        """``product`` is that of each image with its own caption; the gradients take a row per token and patch."""
        B, P, L, D = (case[axis] for axis in self.axes)
        rows = 2.0 * B * B * (P + L) * D
        return B * product + (rows * (2 - bool(case.frozen)) if case.mode == BOTH else 0.0)

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        found = late_interaction_reference(x.first, x.second, None, x.mask, compute_dtype=compute_dtype)
        target = torch.arange(len(x.first), device=x.first.device)
        image_scores, text_scores = found
        assert image_scores is not None
        assert text_scores is not None
        losses = [torch.nn.functional.cross_entropy(x.scale * each, target) for each in (image_scores, text_scores.T)]
        return (losses[0] + losses[1]) / 2

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.filip_loss(x.first, x.second, None, x.mask, logit_scale=x.scale, backend=backend)

    def too_large(self, case: Case, device: torch.device) -> str | None:
        if device.type != "cpu":
            return None  # a GPU's allocator says so itself, and nobody else suffers
        similarities = case["batch"] ** 2 * case["patches"] * case["tokens"]
        needs = WORDS_PER_SIMILARITY * max(4, case.itemsize) * similarities
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"it needs about {needs / 1e9:.0f} GB, the machine has {has / 1e9:.0f}" if needs > 0.6 * has else None


OPS = (LateInteraction("late_interaction"),)
SHAPE: dict[str, Any] = {"patches": 196, "tokens": 32, "channels": 256}


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    (op,) = OPS
    if quick:
        return [Plan(op.case("late_interaction", **TINY))]
    batch = 256 if device.type == "cuda" else 64
    first, second = ("bfloat16", "float32") if device.type == "cuda" else ("float32", "bfloat16")
    return [
        Plan(op.case("late_interaction", **SHAPE, batch=batch, dtype=dtype), DEFAULT_MODE if dtype == first else ())
        for dtype in (first, second)
    ]


def _growing(device: torch.device, quick: bool) -> list[Plan]:
    (op,) = OPS
    batches: tuple[int, ...]
    shape, batches = SHAPE | {"dtype": "float32"}, (32, 64, 128, 256)
    if quick:
        shape, batches = {name: size for name, size in TINY.items() if name != "batch"}, (4, 8, 12)
    elif device.type == "cuda":
        shape, batches = SHAPE | {"dtype": "bfloat16"}, (128, 256, 512, 1024)
    return [Plan(op.case("late_scaling", **shape, batch=batch, axis="batch")) for batch in batches]


def _growth_table(rows: list[Any]) -> str:
    return "\n\n".join([tables.scaling_table(rows, work=2.0), tables.op_table(rows)])


SUITES = (
    Suite("late_interaction", "Late interaction over the batch (FILIP)", _plans, rank=93, weight=1),
    Suite(
        "late_scaling",
        "Late interaction as the batch grows",
        _growing,
        rank=94,
        weight=1,
        note="The work is quadratic; ours keeps the inputs and an index per pair and token, one byte each here.",
        table=_growth_table,
    ),
)

"""Late interaction over the batch: FILIP's loss, every image with every caption by maxima over their tokens."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case
from benchmarks.measure.suite import Suite
from benchmarks.ops._all_pairs import AllPairsOp, all_pairs_plans, growing_plans, growth_table, symmetric_cross_entropy
from benchmarks.ops._pairs import PairInputs
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference


class LateInteraction(AllPairsOp):
    words_per_similarity = 4

    def flop(self, case: Case, product: float, squares: float) -> float:
        """``product`` is that of each image with its own caption; the gradients take a row per token and patch."""
        B, P, L, D = (case[axis] for axis in self.axes)
        rows = 2.0 * B * B * (P + L) * D
        return B * product + (rows * (2 - bool(case.frozen)) if case.mode == BOTH else 0.0)

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        image_scores, text_scores = late_interaction_reference(
            x.first, x.second, None, x.mask, compute_dtype=compute_dtype
        )
        assert image_scores is not None
        assert text_scores is not None
        return symmetric_cross_entropy(x.scale * image_scores, x.scale * text_scores)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.filip_loss(x.first, x.second, None, x.mask, logit_scale=x.scale, backend=backend)


OPS = (LateInteraction("late_interaction"),)


SUITES = (
    Suite(
        "late_interaction",
        "Late interaction over the batch (FILIP)",
        partial(all_pairs_plans, OPS[0], "late_interaction"),
        rank=93,
        weight=1,
    ),
    Suite(
        "late_scaling",
        "Late interaction as the batch grows",
        partial(growing_plans, OPS[0], "late_scaling"),
        rank=94,
        weight=1,
        note="The work is quadratic; ours keeps the inputs and an index per pair and token, one byte each here.",
        table=growth_table,
    ),
)

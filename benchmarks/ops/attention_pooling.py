"""Attention-pooled scores over the batch: GLoRIA's, every word of every caption attending to every image's patches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case
from benchmarks.measure.suite import Suite
from benchmarks.ops._all_pairs import AllPairsOp, all_pairs_plans, growing_plans, growth_table, symmetric_cross_entropy
from benchmarks.ops._pairs import PairInputs
from sparc_kernels.ops.attention_pooling.reference import attention_pooled_reference

OPTIONS: dict[str, Any] = {
    "weights": "words_softmax",
    "attention_scale": 4.0,
    "pooling": "logsumexp",
    "pooling_scale": 5.0,
}


class AttentionPooling(AllPairsOp):
    words_per_similarity = 12

    def flop(self, case: Case, product: float, squares: float) -> float:
        """Similarities and contexts; backwards each gives a product to either of its operands."""
        gradients = {"": 4, "first": 2, "second": 3}[case.frozen] if case.mode == BOTH else 0
        return case["batch"] * product * (2 + gradients)

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        options = OPTIONS | {"compute_dtype": compute_dtype}
        return _loss(attention_pooled_reference(x.first, x.second, None, x.mask, **options))

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return _loss(sk.attention_pooled_scores(x.first, x.second, None, x.mask, **OPTIONS, backend=backend))


def _loss(scores: Tensor) -> Tensor:
    return symmetric_cross_entropy(10 * scores, 10 * scores)


OPS = (AttentionPooling("attention_pooling"),)


SUITES = (
    Suite(
        "attention_pooling",
        "Attention-pooled scores over the batch (GLoRIA)",
        partial(all_pairs_plans, OPS[0], "attention_pooling"),
        rank=95,
        weight=1,
    ),
    Suite(
        "pooling_scaling",
        "Attention-pooled scores as the batch grows",
        partial(growing_plans, OPS[0], "pooling_scaling"),
        rank=96,
        weight=1,
        note="The work is quadratic; ours keeps the inputs, a norm per token and a number per pair.",
        table=growth_table,
    ),
)

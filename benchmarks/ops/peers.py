"""Ours beside packages of others, forward alone too, at one shape each; a GPU and the packages are needed."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.measure.case import BOTH, FORWARD
from benchmarks.measure.suite import Plan, Suite
from benchmarks.ops._all_pairs import SHAPE
from benchmarks.ops._pairs import TINY
from benchmarks.ops.contrastive import CONTRASTIVE, SIGMOID
from benchmarks.ops.late_interaction import QUERIES

SIZES = {CONTRASTIVE: {"batch": 16384, "channels": 768}, SIGMOID: {"batch": 16384, "channels": 768}}


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    cases = [op.case("peers", **sizes) for op, sizes in (*SIZES.items(), (QUERIES, SHAPE | {"batch": 256}))]
    if quick:
        cases = [case.but(**{name: TINY[name] for name in (*case.sizes, "dtype")}) for case in cases]
    elif device.type == "cpu":
        return []
    return [Plan(replace(case, mode=mode)) for case in cases for mode in (BOTH, FORWARD)]


SUITES = (
    Suite(
        "peers",
        "Beside packages of others",
        _plans,
        rank=99,
        weight=1,
        note="All compute the same loss of the same raw embeddings. `maxsim` is one direction, captions as queries. "
        "Where bfloat16 embeddings are normalised by `torch.nn.functional.normalize` before the products, they are "
        "rounded once more, and of two patches that are nearly as similar the other one wins now and then: in a tenth "
        "of its rows a gradient of such contenders is off by a quarter or more, that of ours and of what normalises "
        "by itself by less than 0.01.",
    ),
)

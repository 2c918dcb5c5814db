"""Late interaction over the batch: every image with every caption by maxima over their tokens (FILIP, MaxSim)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case, Function, Provider, one_size
from benchmarks.measure.peers import peer
from benchmarks.measure.suite import Plan, Suite, measure_briefly
from benchmarks.ops._all_pairs import (
    BARE_PRODUCT,
    AllPairsOp,
    all_pairs_plans,
    cross_entropy,
    growing_plans,
    growth_table,
    symmetric_cross_entropy,
)
from benchmarks.ops._pairs import PairInputs
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference

# What others publish: queries [N, Lq, D] and documents [M, Ld, D] to sums over the queries' tokens, [N, M]

MaxSim = Callable[[Tensor, Tensor], Tensor]


def _unmasked(case: Case) -> str | None:
    return None if case.labels["captions"] == "full" else "measured without masks"


# Both round float32 to float16 for the products, and late_interaction_kernels in gradients too.
IN_HALF = {"float32": "float16"}


def _late_interaction_kernels(module: Any) -> MaxSim:
    return module.maxsim


def _normalizing(module: Any) -> MaxSim:
    return partial(module.maxsim, normalize=True)


def _flash_maxsim(module: Any) -> MaxSim:
    def scores(queries: Tensor, documents: Tensor) -> Tensor:
        trains = torch.is_grad_enabled()
        found = (module.flash_maxsim_batched_train if trains else module.flash_maxsim_batched)(queries, documents)
        assert isinstance(found, Tensor)
        return found

    return scores


def _peer(package: str, scores_of: Callable[[Any], MaxSim], both: bool, normalizes: bool = False) -> Provider:
    """A loss of a package's MaxSim, of captions as queries, and with ``both`` also of images as queries.

    ``normalizes``: its MaxSim takes embeddings of any length.
    """

    def op_of(module: Any) -> Function:
        scores = scores_of(module)

        def loss(x: PairInputs) -> Tensor:
            images, texts = (x.first, x.second) if normalizes else (F.normalize(y, dim=-1) for y in (x.first, x.second))
            by_text = cross_entropy(x.scale * scores(texts, images) / texts.shape[1])
            if not both:
                return by_text
            return (by_text + cross_entropy(x.scale * scores(images, texts) / images.shape[1])) / 2

        return loss

    how = "its MaxSim, which normalises by itself" if normalizes else "its MaxSim of normalised embeddings"
    note = f"{how}, and a cross-entropy, for each direction that the loss has."
    found = peer(package, op_of, refuses=_unmasked, takes_part=one_size, note=note, inside=IN_HALF)
    return replace(found, name=f"{package}_normalizing", label=f"{package}, normalizing") if normalizes else found


def _peers(both: bool) -> tuple[Provider, ...]:
    return (
        _peer("late_interaction_kernels", _late_interaction_kernels, both),
        _peer("late_interaction_kernels", _normalizing, both, normalizes=True),
        _peer("flash_maxsim", _flash_maxsim, both),
    )


class LateInteraction(AllPairsOp):
    """FILIP's loss: maxima in both directions."""

    words_per_similarity = 4
    directions = 2
    contenders: ClassVar[tuple[Provider, ...]] = (BARE_PRODUCT, *_peers(both=True))

    def flop(self, case: Case, product: float, squares: float) -> float:
        """``product`` is that of each image with its own caption; gradients take a row for each maximum and side."""
        B, P, L, D = (case[axis] for axis in self.axes)
        rows = 2.0 * B * B * ((P if self.directions == 2 else 0) + L) * D
        return B * product + (rows * (2 - bool(case.frozen)) if case.mode == BOTH else 0.0)

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        found = late_interaction_reference(x.first, x.second, None, x.mask, compute_dtype=compute_dtype)
        image_scores, text_scores = found
        assert image_scores is not None
        assert text_scores is not None
        return symmetric_cross_entropy(x.scale * image_scores, x.scale * text_scores)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.filip_loss(x.first, x.second, None, x.mask, logit_scale=x.scale, backend=backend)


class OneDirection(LateInteraction):
    """ColBERT's loss in the batch: captions are queries, images documents."""

    directions = 1
    contenders: ClassVar[tuple[Provider, ...]] = (BARE_PRODUCT, *_peers(both=False))

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        found = late_interaction_reference(x.first, x.second, None, x.mask, by_image=False, compute_dtype=compute_dtype)
        assert found[1] is not None
        return cross_entropy(x.scale * found[1].T)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        scores = sk.late_interaction_scores(
            x.first, x.second, None, x.mask, direction="text_to_image", backend=backend
        ).text_scores
        assert scores is not None
        return cross_entropy(x.scale * scores.T)


BOTH_DIRECTIONS, QUERIES = LateInteraction("late_interaction"), OneDirection("maxsim")
OPS = (BOTH_DIRECTIONS, QUERIES)


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    """Of one direction the first dtype alone."""
    queries = all_pairs_plans(QUERIES, "late_interaction", device, quick)[0]
    return [*all_pairs_plans(BOTH_DIRECTIONS, "late_interaction", device, quick), Plan(queries.case)]


SUITES = (
    Suite("late_interaction", "Late interaction over the batch (FILIP)", _plans, rank=93, weight=1),
    Suite(
        "late_scaling",
        "Late interaction as the batch grows",
        partial(growing_plans, BOTH_DIRECTIONS, "late_scaling"),
        rank=94,
        weight=1,
        measure=measure_briefly,
        note="The work is quadratic, and so are the indices that ours keeps: here one byte for each pair of an image "
        "and a caption and each of their tokens. Eager keeps 4 bytes for each two tokens, several times.",
        table=partial(growth_table, memory_grows=2.0),
    ),
)

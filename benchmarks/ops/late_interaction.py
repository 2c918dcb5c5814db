"""Late interaction over the batch: every image with every caption by maxima over their tokens (FILIP, MaxSim)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case, Function, Provider
from benchmarks.measure.peers import peer
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite, measure_briefly
from benchmarks.ops._pairs import TINY, PairInputs, PairOp
from benchmarks.report import tables
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference

# Peak of the definition, in float32 words per similarity of a token and a patch.
WORDS_PER_SIMILARITY = 4


def _bare_product(x: PairInputs) -> Tensor:
    return x.first.detach().flatten(0, 1) @ x.second.detach().flatten(0, 1).T


def _cross_entropy(scores: Tensor, x: PairInputs) -> Tensor:
    """Of each row against its own column."""
    return F.cross_entropy(x.scale * scores, torch.arange(len(scores), device=scores.device))


def _one_size(case: Case, device: torch.device) -> bool:
    return not case.axis


# What others publish: queries [N, Lq, D] and documents [M, Ld, D] to sums over the queries' tokens, [N, M]

MaxSim = Callable[[Tensor, Tensor], Tensor]


def _unmasked(case: Case) -> str | None:
    return None if case.labels["captions"] == "full" else "measured without masks"


def _peer(package: str, scores_of: Callable[[Any], MaxSim], both: bool) -> Provider:
    """A loss of a package's MaxSim, of captions as queries, and with ``both`` also of images as queries."""

    def op_of(module: Any) -> Function:
        scores = scores_of(module)

        def loss(x: PairInputs) -> Tensor:
            images, texts = F.normalize(x.first, dim=-1), F.normalize(x.second, dim=-1)
            by_text = _cross_entropy(scores(texts, images) / texts.shape[1], x)
            return (by_text + _cross_entropy(scores(images, texts) / images.shape[1], x)) / 2 if both else by_text

        return loss

    note = "its MaxSim of normalised embeddings, called once for each direction, and two cross-entropies."
    return peer(package, op_of, refuses=_unmasked, takes_part=_one_size, note=note)


def _peers(both: bool) -> tuple[Provider, ...]:
    return (
        _peer("late_interaction_kernels", lambda module: module.maxsim, both),
        _peer("flash_maxsim", lambda module: module.flash_maxsim_batched_train, both),
    )


BARE_PRODUCT = Provider(
    "bare_product",
    "floor",
    lambda case: _bare_product,
    takes_part=_one_size,
    label="bare product",
    note="all similarities by one product through `torch.mm`, and nothing else.",
)


class LateInteraction(PairOp):
    """FILIP's loss: maxima in both directions."""

    apart = False
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
        return (_cross_entropy(image_scores, x) + _cross_entropy(text_scores.T, x)) / 2

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.filip_loss(x.first, x.second, None, x.mask, logit_scale=x.scale, backend=backend)

    def too_large(self, case: Case, device: torch.device) -> str | None:
        if device.type != "cpu":
            return None  # a GPU's allocator says so itself, and nobody else suffers
        similarities = case["batch"] ** 2 * case["patches"] * case["tokens"]
        needs = WORDS_PER_SIMILARITY * max(4, case.itemsize) * similarities
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"it needs about {needs / 1e9:.0f} GB, the machine has {has / 1e9:.0f}" if needs > 0.6 * has else None


class OneDirection(LateInteraction):
    """ColBERT's loss in the batch: captions are queries, images documents."""

    directions = 1
    contenders: ClassVar[tuple[Provider, ...]] = (BARE_PRODUCT, *_peers(both=False))

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        found = late_interaction_reference(x.first, x.second, None, x.mask, by_image=False, compute_dtype=compute_dtype)
        assert found[1] is not None
        return _cross_entropy(found[1].T, x)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        scores = sk.late_interaction_scores(
            x.first, x.second, None, x.mask, direction="text_to_image", backend=backend
        ).text_scores
        assert scores is not None
        return _cross_entropy(scores.T, x)


BOTH_DIRECTIONS, QUERIES = LateInteraction("late_interaction"), OneDirection("maxsim")
OPS = (BOTH_DIRECTIONS, QUERIES)
SHAPE: dict[str, Any] = {"patches": 196, "tokens": 32, "channels": 256}


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(op.case("late_interaction", **TINY)) for op in OPS]
    batch = 256 if device.type == "cuda" else 64
    first, second = ("bfloat16", "float32") if device.type == "cuda" else ("float32", "bfloat16")
    return [
        Plan(op.case("late_interaction", **SHAPE, batch=batch, dtype=dtype), DEFAULT_MODE if compiled else ())
        for op, dtype, compiled in (
            (BOTH_DIRECTIONS, first, True),
            (BOTH_DIRECTIONS, second, device.type == "cpu"),
            (QUERIES, first, False),
        )
    ]


def _growing(device: torch.device, quick: bool) -> list[Plan]:
    batches: tuple[int, ...]
    shape, batches = SHAPE | {"dtype": "float32"}, (32, 64, 128, 256, 512)
    if quick:
        shape, batches = {name: size for name, size in TINY.items() if name != "batch"}, (4, 8, 12)
    elif device.type == "cuda":
        shape, batches = SHAPE | {"dtype": "bfloat16"}, (128, 256, 512, 1024)
    return [Plan(BOTH_DIRECTIONS.case("late_scaling", **shape, batch=batch, axis="batch")) for batch in batches]


def _growth_table(rows: list[Any]) -> str:
    return "\n\n".join([tables.scaling_table(rows, work=2.0, memory_grows=2.0), tables.op_table(rows)])


SUITES = (
    Suite("late_interaction", "Late interaction over the batch (FILIP)", _plans, rank=93, weight=1),
    Suite(
        "late_scaling",
        "Late interaction as the batch grows",
        _growing,
        rank=94,
        weight=1,
        measure=measure_briefly,
        note="The work is quadratic, and so are the indices that ours keeps: here one byte for each pair of an image "
        "and a caption and each of their tokens. Eager keeps 4 bytes for each two tokens, several times.",
        table=_growth_table,
    ),
)

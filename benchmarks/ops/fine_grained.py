"""The fine-grained loss, and the way the paper's own listing computes it, for the sake of comparison only.

Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), appendix C describes the loss as
a sequence of array operations; ``fine_grained_listing`` is that sequence in PyTorch. What it leaves undefined is left
undefined here:

- a row of equal similarities is 0/0 and gives NaN;
- padded tokens still go through every product, and NaN in padding reaches the loss: masks are multiplied and
  subtracted, so that they scale what stands there instead of removing it;
- the listing's global loss averages token embeddings over padding too (sparc_kernels averages valid tokens). That part
  is not measured here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, FORWARD, Case, Function, Provider
from benchmarks.measure.suite import ALL_MODES, DEFAULT_MODE, Headline, Plan, Plot, Suite
from benchmarks.ops._pairs import TINY, PairInputs, PairOp, headline, paper_shape
from benchmarks.report import tables
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference

LARGE = 1e9  # subtracted from the logits of padded columns


def _cross_entropy(queries: Tensor, keys: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """Mean over valid tokens of the cross-entropy of each row against its own position: [B, L, D] twice, [B, L]."""
    logits = scale * torch.einsum("bmd,bnd->bmn", queries, keys).float()
    logits = logits - LARGE * (1 - mask[:, None, :])
    diagonal = logits.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return -(diagonal * mask).sum() / mask.sum()


def fine_grained_listing(patches: Tensor, tokens: Tensor, mask: Tensor | None, scale: Tensor) -> Tensor:
    """[B, P, D], [B, L, D], [B, L] bool or None, [] -> []."""
    valid = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask.float()
    similarity = torch.einsum("bld,bpd->blp", tokens, patches)
    low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
    similarity = (similarity - low) / (high - low)
    similarity = torch.where(similarity < 1 / patches.shape[1], 0, similarity)
    weights = similarity / similarity.sum(-1, keepdim=True)
    groups = torch.einsum("blp,bpd->bld", weights, patches)
    groups = groups / groups.norm(dim=-1, keepdim=True)
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    return (_cross_entropy(groups, tokens, valid, scale) + _cross_entropy(tokens, groups, valid, scale)) / 2


def _listing(case: Case) -> Function:
    return lambda x: fine_grained_listing(x.first, x.second, x.mask, x.scale)


def _products(repeats: int) -> Callable[[Case], Function]:
    """The products of L x P x D of forward and backward through torch.bmm and nothing else: 8, or 6 with two kept."""

    def build(case: Case) -> Function:
        drawn: list[Tensor] = []  # once, on the first call

        def products(x: PairInputs) -> Tensor:
            v, t = x.first.detach(), x.second.detach()
            if not drawn:
                drawn.append(torch.randn(case["batch"], case["tokens"], case["patches"], device=t.device).to(t.dtype))
            (weights,) = drawn
            for _ in range(repeats):
                torch.bmm(t, v.mT)  # S
                torch.bmm(weights, v)  # C'
            torch.bmm(t, v.mT)  # C' V^T
            torch.bmm(weights.mT, t)  # dV, first part
            torch.bmm(weights.mT, t)  # dV, second part
            return torch.bmm(weights, v)  # dT

        return products

    return build


def _in_products(case: Case, device: torch.device) -> bool:
    """On a GPU the floor is memory, not these products."""
    return case.mode == BOTH and not case.frozen and device.type == "cpu"


class FineGrained(PairOp):
    mean_of_tokens = True
    contenders: ClassVar[tuple[Provider, ...]] = (
        Provider("listing", "listing", _listing, label="paper's listing"),
        Provider(
            "bare_products",
            "floor",
            _products(2),
            takes_part=_in_products,
            label="bare products",
            note="the 8 matrix products of L x P x D per pair through `torch.bmm` and nothing else, no loss.",
        ),
        Provider("bare_products_kept", "floor", _products(1), takes_part=_in_products),
    )

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        loss = fine_grained_reference(x.first, x.second, x.mask, None, x.scale, compute_dtype=compute_dtype)
        return loss.mean() if x.mask is None else loss.sum() / x.mask.sum()

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.fine_grained_loss(x.first, x.second, x.mask, logit_scale=x.scale, backend=backend)

    def flop(self, case: Case, product: float, squares: float) -> float:
        """Forward S, C', U S^T; backward C' V^T, two for dV, dT, and three in L^2 P.

        Frozen patches save the two, frozen tokens one.
        """
        if case.mode != BOTH:
            return 2 * product + 2 * squares
        return (8 - {"first": 2, "second": 1}.get(case.frozen, 0)) * product + 8 * squares


FINE_GRAINED = FineGrained("fine_grained")
OPS = (FINE_GRAINED,)


def _gpu() -> list[Plan]:
    """The paper's shape comes back with each further mode of torch.compile, after the rows that compile faster."""
    b16 = FINE_GRAINED.case("fine_grained", **paper_shape(1024))
    forward = b16.but(mode=FORWARD)
    long = b16.but(batch=256, tokens=256)
    forward_too: tuple[dict[str, Any], ...] = ({"patches": 49}, {"captions": "ragged"}, {"dtype": "float32"})
    return [
        Plan(b16),
        Plan(forward),
        Plan(b16.but(batch=16384)),
        Plan(b16, DEFAULT_MODE),
        *(Plan(b16.but(patches=patches)) for patches in (49, 256)),
        Plan(b16.but(captions="ragged")),
        Plan(b16.but(dtype="float32")),
        Plan(b16, ALL_MODES[:2]),
        Plan(b16.but(dtype="float16")),
        Plan(long),
        *(Plan(b16.but(batch=256, patches=patches)) for patches in (576, 1024)),
        *(Plan(b16.but(channels=channels)) for channels in (256, 768, 1024)),
        *(Plan(b16.but(batch=batch)) for batch in (64, 256, 4096)),
        *(Plan(forward.but(batch=batch)) for batch in (16384, 64)),
        *(Plan(forward.but(**change)) for change in forward_too),
        Plan(forward, DEFAULT_MODE),
        Plan(long, DEFAULT_MODE),
        Plan(b16, ALL_MODES),
        Plan(forward, ALL_MODES),
    ]


def _cpu() -> list[Plan]:
    b16 = FINE_GRAINED.case("fine_grained", **paper_shape(64), dtype="float32")
    both = ("float32", "bfloat16")
    grid = itertools.product(both, (64, 16, 256), (196, 49, 576))
    return [
        *(Plan(b16.but(dtype=d, batch=b, patches=p), DEFAULT_MODE) for d, b, p in grid),
        *(Plan(b16.but(dtype=d, mode=FORWARD), DEFAULT_MODE) for d in both),
        *(Plan(b16.but(dtype=d, captions="ragged"), DEFAULT_MODE) for d in both),
        Plan(b16.but(batch=16, tokens=256), DEFAULT_MODE),
        Plan(b16.but(batch=16, patches=1024), DEFAULT_MODE),
        *(Plan(b16.but(channels=channels)) for channels in (256, 1024)),
        Plan(b16.but(dtype="float64")),
        Plan(b16.but(batch=32), ALL_MODES),
    ]


def _fine_grained(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        tiny = FINE_GRAINED.case("fine_grained", **TINY)
        return [Plan(tiny, DEFAULT_MODE), Plan(tiny.but(dtype="bfloat16", captions="ragged"))]
    return _gpu() if device.type == "cuda" else _cpu()


def _scaling(device: torch.device, quick: bool) -> list[Plan]:
    """One size doubled at a time; the exponents are fitted to the upper half."""
    tokens = (16, 32, 64, 128, 256)
    if quick:
        base = FINE_GRAINED.case("scaling", **TINY)
        axes: dict[str, tuple[int, ...]] = {"batch": (2, 4, 8)}
    elif device.type == "cuda":
        base = FINE_GRAINED.case("scaling", **paper_shape(512))
        axes = {"batch": (64, 256, 1024, 4096, 16384), "patches": (64, 128, 256, 512, 1024), "tokens": tokens}
    else:
        base = FINE_GRAINED.case("scaling", **paper_shape(32), dtype="float32")
        axes = {"batch": (8, 16, 32, 64, 128, 256), "patches": (49, 98, 196, 392, 784), "tokens": tokens}
    return [Plan(base.but(**{"axis": axis, axis: size})) for axis, sizes in axes.items() for size in sizes]


def _frozen(device: torch.device, quick: bool) -> list[Plan]:
    """Stored features: a gradient for one side only."""
    if quick:
        return [Plan(FINE_GRAINED.case("frozen", **TINY, frozen="first"))]
    gpu = device.type == "cuda"
    base = FINE_GRAINED.case("frozen", **paper_shape(1024 if gpu else 64))
    dtypes = ("bfloat16",) if gpu else ("float32", "bfloat16")
    return [Plan(base.but(dtype=d, frozen=f), DEFAULT_MODE) for d in dtypes for f in ("", "first", "second")]


SUITES = (
    Suite("fine_grained", "Fine-grained loss", _fine_grained, rank=10, weight=10, headline=Headline(headline)),
    Suite(
        "scaling",
        "As the work grows",
        _scaling,
        rank=30,
        weight=4,
        note="Exponents of the power laws through the upper half of each series (1 is linear).",
        table=tables.scaling_table,
    ),
    Suite(
        "frozen",
        "One side frozen",
        _frozen,
        rank=40,
        note="The fine-grained loss where one side needs no gradient, as with stored features.",
    ),
)
_PAPER = {name: size for name, size in paper_shape(0).items() if name != "batch"}
PLOTS = (
    Plot(
        "speed_up",
        "Times relative to ours",
        ("fine_grained",),
        {"same": {"tokens": 55, "channels": 512, "captions": "full"}, "along": ("patches", "batch")},
    ),
    Plot("roofline", "Roofline", ("fine_grained",)),
    Plot("memory", "Memory against batch", ("scaling", "fine_grained"), {"same": _PAPER | {"captions": "full"}}),
    Plot("scaling", "Time against each size", ("scaling",)),
)

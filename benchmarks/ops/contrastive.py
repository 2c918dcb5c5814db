"""The global losses over all pairs of a batch: softmax (CLIP's) and sigmoid (SigLIP's), beside what others publish."""

from __future__ import annotations

import itertools
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case, Op, Provider
from benchmarks.measure.harness import Row
from benchmarks.measure.suite import Plan, Suite, measure_briefly
from benchmarks.ops import _global
from benchmarks.ops._global import GlobalInputs
from benchmarks.ops._pairs import SCALE, Normal, contrast_flop
from benchmarks.report import tables
from sparc_kernels.ops.contrastive.reference import contrastive_reference, sigmoid_reference

SIGMOID_BIAS = -10.0
COMPILED = ("compile", "compile_listing")
TINY: dict[str, Any] = {"batch": 16, "channels": 32, "dtype": "float32"}
# Peak of the definition in float32 words per pair: 5.1 were measured at B = 4096 (results of the Zen 4, 2026-11).
WORDS_PER_PAIR = 5
PARITY_BYTES = 2**30  # of one matrix: beyond, results are held to the chunked definition


class Global(Op):
    axes: ClassVar = {"batch": "B", "channels": "D"}
    sorted_by = ("channels", "batch")
    labels: ClassVar = {"captions": "full"}  # of no meaning here; the result files have it
    sides: ClassVar = {"first": "images", "second": "texts"}
    products: ClassVar[int]  # forward and backward, in linear memory

    def draw(self, case: Case, device: torch.device, seed: int = 0) -> GlobalInputs:
        normal, shape = Normal(case, device, seed), (case["batch"], case["channels"])
        kind = torch.float64 if case.dtype == "float64" else torch.float32
        scale, bias = (torch.full((), value, device=device, dtype=kind) for value in (SCALE, SIGMOID_BIAS))
        inputs = GlobalInputs(normal(*shape), normal(*shape), None, None, scale, bias)
        inputs.freeze(case.frozen)
        return inputs

    def work(self, case: Case) -> dict[str, float]:
        read = 2 * case["batch"] * case["channels"] * case.itemsize
        return {"bytes": (3 if case.mode == BOTH else 1) * read, "flop": contrast_flop(case, self.products)}

    def truth(self, x: GlobalInputs, compute_dtype: torch.dtype) -> Tensor:
        matrix = len(x.first) ** 2 * max(4, compute_dtype.itemsize)
        return (self.chunked if matrix > PARITY_BYTES else self.definition)(x, compute_dtype)

    @abstractmethod
    def chunked(self, x: GlobalInputs, compute_dtype: torch.dtype) -> Tensor:
        """As the definition, which needs more memory."""

    def too_large(self, case: Case, device: torch.device) -> str | None:
        if device.type != "cpu":
            return None  # a GPU's allocator says so itself, and nobody else suffers
        needs = WORDS_PER_PAIR * max(4, case.itemsize) * case["batch"] ** 2
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"it needs about {needs / 1e9:.0f} GB, the machine has {has / 1e9:.0f}" if needs > 0.6 * has else None


class Contrastive(Global):
    products = 4
    contenders: ClassVar[tuple[Provider, ...]] = (
        _global.streamed(),
        _global.chunked(_global.chunked_contrastive),
        *_global.listing(_global.clip_listing),
        _global.OPEN_CLIP["ClipLoss"],
        _global.INF_CL,
        _global.CUT_CROSS_ENTROPY,
        _global.bare_products(4, "softmax: the similarities twice, two for the gradients"),
    )

    def definition(self, x: GlobalInputs, compute_dtype: torch.dtype) -> Tensor:
        return contrastive_reference(x.first, x.second, x.scale, compute_dtype=compute_dtype)

    def chunked(self, x: GlobalInputs, compute_dtype: torch.dtype) -> Tensor:
        return _global.chunked_contrastive(x, compute_dtype)

    def public(self, x: GlobalInputs, backend: str) -> Tensor:
        return sk.contrastive_loss(x.first, x.second, logit_scale=x.scale, backend=backend)


class Sigmoid(Global):
    products = 3
    contenders: ClassVar[tuple[Provider, ...]] = (
        _global.chunked(_global.chunked_sigmoid),
        *_global.listing(_global.siglip_listing),
        _global.OPEN_CLIP["SigLipLoss"],
        _global.SIGLIP_KERNEL,
        _global.bare_products(3, "sigmoid: the similarities once, two for the gradients"),
    )

    def definition(self, x: GlobalInputs, compute_dtype: torch.dtype) -> Tensor:
        return sigmoid_reference(x.first, x.second, x.scale, x.bias, compute_dtype=compute_dtype)

    def chunked(self, x: GlobalInputs, compute_dtype: torch.dtype) -> Tensor:
        return _global.chunked_sigmoid(x, compute_dtype)

    def public(self, x: GlobalInputs, backend: str) -> Tensor:
        return sk.sigmoid_loss(x.first, x.second, logit_scale=x.scale, logit_bias=x.bias, backend=backend)


CONTRASTIVE, SIGMOID = Contrastive("contrastive"), Sigmoid("sigmoid")
OPS = (CONTRASTIVE, SIGMOID)


def _of(op: Global) -> Callable[[torch.device, bool], list[Plan]]:
    def plans(device: torch.device, quick: bool) -> list[Plan]:
        if quick:
            return [Plan(op.case(op.name, **TINY)), Plan(op.case(op.name, **TINY | {"dtype": "bfloat16"}))]
        case = op.case(op.name, batch=4096, channels=768)
        if device.type == "cuda":
            return [Plan(case.but(batch=batch), COMPILED) for batch in (16384, 4096, 32768, 65536)]
        shapes = itertools.product(((4096, 512), (1024, 512), (4096, 768)), ("float32", "bfloat16"))
        return [
            Plan(case.but(batch=batch, channels=channels, dtype=dtype), COMPILED if channels == 512 else ())
            for (batch, channels), dtype in shapes
        ]

    return plans


def _growing(device: torch.device, quick: bool) -> list[Plan]:
    """The largest batch last: on a CPU it takes as long as the others together, and the softmax alone has it."""
    shape: dict[str, Any] = {"channels": 256, "dtype": "float32"}
    batches: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    if quick:
        shape, batches = TINY, (16, 32, 64)
    elif device.type == "cuda":
        shape, batches = {"channels": 768}, (8192, 16384, 32768, 65536, 131072)
    cases = (op.case("global_scaling", **shape | {"batch": batch}, axis="batch") for batch in batches for op in OPS)
    return [Plan(case) for case in cases if case.op is CONTRASTIVE or device.type == "cuda" or case["batch"] < 32768]


def _growth_tables(rows: list[Row]) -> str:
    parts = []
    for op in OPS:
        if chosen := [row for row in rows if row["case"]["op"] == op.name]:
            parts += [f"**{op.name}**", tables.scaling_table(chosen, work=2.0), tables.op_table(chosen)]
    return "\n\n".join(parts)


_KEPT = "On a CPU batches of up to 5792 keep their similarities (128 MB) for the backward pass, which spares a product."
SUITES = (
    Suite("contrastive", "Global contrastive loss", _of(CONTRASTIVE), rank=90, weight=1, note=_KEPT),
    Suite("sigmoid", "Global sigmoid loss", _of(SIGMOID), rank=91, weight=1),
    Suite(
        "global_scaling",
        "The global losses as the batch grows",
        _growing,
        rank=92,
        weight=1,
        measure=measure_briefly,
        note="Exponents of the power laws in the batch through the upper half of each series: the work is quadratic, "
        "linear memory is 1. Then the rows themselves.",
        table=_growth_tables,
    ),
)

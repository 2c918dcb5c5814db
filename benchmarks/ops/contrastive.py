"""The global contrastive loss, beside what others install for it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case, Function, Op, Provider
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import SCALE, Normal, PairInputs, contrast_flop
from sparc_kernels.ops.contrastive.reference import contrastive_reference


def _peer(module: str, build: Callable[[Case], Function]) -> Provider:
    def reason(case: Case, device: torch.device) -> str | None:
        return None if importlib.util.find_spec(module) else f"{module} is not installed"

    return Provider(module, "peer", build, reason, label=module)


def _open_clip(case: Case) -> Function:
    loss = importlib.import_module("open_clip").ClipLoss()

    def call(x: PairInputs) -> Tensor:
        images, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (x.first, x.second))
        result = loss(images, texts, x.scale.to(images.dtype))
        assert isinstance(result, Tensor)
        return result

    return call


def _inf_cl(case: Case) -> Function:
    loss = importlib.import_module("inf_cl").cal_inf_loss

    def call(x: PairInputs) -> Tensor:
        images, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (x.first, x.second))
        result = loss(images, texts, scale=SCALE)
        assert isinstance(result, Tensor)
        return result

    return call


class Contrastive(Op):
    axes: ClassVar = {"batch": "B", "channels": "D"}
    sorted_by = ("channels", "batch")
    labels: ClassVar = {"captions": "full"}  # of no meaning here; the result files have it
    contenders = (_peer("open_clip", _open_clip), _peer("inf_cl", _inf_cl))

    def draw(self, case: Case, device: torch.device, seed: int = 0) -> PairInputs:
        normal, shape = Normal(case, device, seed), (case["batch"], case["channels"])
        inputs = PairInputs(normal(*shape), normal(*shape), None, None, torch.full((), SCALE, device=device))
        inputs.freeze(case.frozen)
        return inputs

    def work(self, case: Case) -> dict[str, float]:
        read = 2 * case["batch"] * case["channels"] * case.itemsize
        return {"bytes": (3 if case.mode == BOTH else 1) * read, "flop": contrast_flop(case)}

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        return contrastive_reference(x.first, x.second, x.scale, compute_dtype=compute_dtype)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.contrastive_loss(x.first, x.second, logit_scale=x.scale, backend=backend)


CONTRASTIVE = Contrastive("contrastive")
OPS = (CONTRASTIVE,)


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(CONTRASTIVE.case("contrastive", batch=16, channels=32, dtype="float32"))]
    gpu = device.type == "cuda"
    dtype, batches = ("bfloat16", (16384, 4096, 32768, 65536)) if gpu else ("float32", (1024, 4096))
    case = CONTRASTIVE.case("contrastive", batch=4096, channels=768, dtype=dtype)
    return [Plan(case.but(batch=batch), DEFAULT_MODE) for batch in batches]


SUITES = (Suite("contrastive", "Global contrastive loss", _plans, rank=90, weight=1),)

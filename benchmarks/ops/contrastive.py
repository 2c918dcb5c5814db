"""The global contrastive loss, beside what others install for it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case, Function, Op, Provider
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import SCALE, Normal, PairInputs, contrast_flop
from sparc_kernels.ops.contrastive.reference import contrastive_reference

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of normalised images and texts, and a scale


def _peer(module: str, loss_of: Callable[[Any], Loss]) -> Provider:
    """A loss that ``loss_of`` takes out of a module which others install."""

    def reason(case: Case, device: torch.device) -> str | None:
        return None if importlib.util.find_spec(module) else f"{module} is not installed"

    def build(case: Case) -> Function:
        loss, normalize = loss_of(importlib.import_module(module)), torch.nn.functional.normalize
        return lambda x: loss(normalize(x.first, dim=-1), normalize(x.second, dim=-1), x.scale)

    return Provider(module, "peer", build, reason, label=module)


def _open_clip(module: Any) -> Loss:
    loss = module.ClipLoss()
    return lambda images, texts, scale: loss(images, texts, scale.to(images.dtype))


def _inf_cl(module: Any) -> Loss:
    return lambda images, texts, scale: module.cal_inf_loss(images, texts, scale=SCALE)


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

"""MGCA's token-wise loss: words against their attention over patches, and patches over words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import BOTH, Case
from benchmarks.measure.suite import DEFAULT_MODE, Plan, Suite
from benchmarks.ops._pairs import TINY, PairInputs, PairOp
from sparc_kernels.ops.softmax_alignment.reference import softmax_alignment_reference

ATTENTION_SCALE = 10.0  # the function's default, MGCA's


class SoftmaxAlignment(PairOp):
    def flop(self, case: Case, product: float, squares: float) -> float:
        """As the fine-grained loss: 2 and 8 products over channels each way, and the same of L^2 P, and of P^2 L."""
        crossed = product * case["patches"] / (2 * case["channels"])
        if case.mode != BOTH:
            return 4 * product + 2 * (squares + crossed)
        return 2 * (8 - bool(case.frozen) * 1.5) * product + 8 * (squares + crossed)

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        images, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (x.first, x.second))
        options: dict[str, Any] = {"logit_scale": x.scale, "attention_scale": ATTENTION_SCALE}
        words = softmax_alignment_reference(images, texts, x.mask, None, **options, compute_dtype=compute_dtype)
        patches = softmax_alignment_reference(texts, images, None, x.mask, **options, compute_dtype=compute_dtype)
        count = words.shape[1] if x.mask is None else x.mask.sum(1)
        return (words.sum(1) / count).mean() + patches.mean()

    def public(self, x: PairInputs, backend: str) -> Tensor:
        return sk.mgca_local_loss(x.first, x.second, None, x.mask, logit_scale=x.scale, backend=backend)


OPS = (SoftmaxAlignment("softmax_alignment"),)


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    """ViT-B/16 at 224 pixels; reports are long, and embeddings 128 wide, as in MGCA."""
    (op,) = OPS
    if quick:
        return [Plan(op.case("softmax_alignment", **TINY))]
    shape = {"batch": 1024 if device.type == "cuda" else 64, "patches": 196, "tokens": 96, "channels": 128}
    first, second = ("bfloat16", "float32") if device.type == "cuda" else ("float32", "bfloat16")
    return [
        Plan(op.case("softmax_alignment", **shape, dtype=dtype), DEFAULT_MODE if dtype == first else ())
        for dtype in (first, second)
    ]


SUITES = (Suite("softmax_alignment", "Attention within pairs, both ways (MGCA)", _plans, rank=61),)

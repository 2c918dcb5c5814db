"""The whole SPARC loss: the fine-grained one and the global one of the pooled embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.case import Case, Provider
from benchmarks.measure.suite import DEFAULT_MODE, Headline, Plan, Suite
from benchmarks.ops._pairs import TINY, PairInputs, contrast_flop, headline, paper_shape
from benchmarks.ops.fine_grained import FineGrained
from sparc_kernels.ops.contrastive.reference import contrastive_reference


def valid_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L, D] to [B, D], the way a user writes it."""
    if mask is None:
        return tokens.mean(1)
    return tokens.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(tokens.dtype)


class Sparc(FineGrained):
    apart = False  # the global loss compares every pair with every other
    contenders: ClassVar[tuple[Provider, ...]] = ()

    def definition(self, x: PairInputs, compute_dtype: torch.dtype) -> Tensor:
        means = x.first.mean(1), valid_mean(x.second, x.mask)
        whole = 0.5 * contrastive_reference(*means, x.scale, compute_dtype=compute_dtype)
        return whole + super().definition(x, compute_dtype)

    def public(self, x: PairInputs, backend: str) -> Tensor:
        loss = sk.sparc_loss(x.first, x.second, x.mask, logit_scale=x.scale, backend=backend)
        assert isinstance(loss, Tensor)  # its parts were not asked for
        return loss

    def flop(self, case: Case, product: float, squares: float) -> float:
        return super().flop(case, product, squares) + contrast_flop(case)


SPARC = Sparc("sparc")
OPS = (SPARC,)


def _sparc(device: torch.device, quick: bool) -> list[Plan]:
    """The last shape is the largest of them in memory."""
    if quick:
        return [Plan(SPARC.case("sparc", **TINY))]
    gpu = device.type == "cuda"
    base = SPARC.case("sparc", **paper_shape(1024 if gpu else 64))
    dtypes = ("bfloat16",) if gpu else ("float32", "bfloat16")
    large = {"batch": 256, "patches": 576, "tokens": 77, "channels": 768}
    return [
        *(Plan(base.but(dtype=d), DEFAULT_MODE) for d in dtypes),
        *(Plan(base.but(dtype=d, **large)) for d in dtypes),
    ]


SUITES = (
    Suite(
        "sparc",
        "The whole SPARC loss",
        _sparc,
        rank=50,
        note="`sparc_loss` with the global loss of the pooled embeddings, against the same in eager PyTorch.",
        headline=Headline(headline, prefix="`sparc_loss`: "),
    ),
)

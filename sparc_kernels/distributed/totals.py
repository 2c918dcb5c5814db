"""What every rank has of a global loss: its value, and the factor of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparc_kernels import _validate
from sparc_kernels.distributed.agreement import Fact, Facts, agreed
from sparc_kernels.distributed.collectives import all_sum, gathered
from sparc_kernels.distributed.ranks import Ranks


class RatioFunction(Function):
    """``apply(sums, counts, ranks, facts)``: [K] sums over ranks divided by sums of counts [K] (at least 1).

    The gradient of a rank's sum is that of its share of the ratio, times the factor of the ranks: no collective.
    """

    @staticmethod
    def forward(sums: Tensor, counts: Tensor, ranks: Ranks, facts: Facts | None) -> tuple[Tensor, Tensor]:
        both = torch.stack([sums.detach().double(), counts.double()])
        if facts is not None:
            both = agreed(both, facts, ranks)
        total = gathered(both[None], ranks).sum(0)  # in the order of the ranks: the same bits on all of them
        count = total[1].clamp(min=1)
        return (total[0] / count).to(sums.dtype), count.to(sums.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.factor = inputs[2].factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_count: Tensor) -> tuple[Tensor | None, ...]:
        (count,) = ctx.saved_tensors
        return grad * (ctx.factor / count), None, None, None


def global_ratios(sums: Tensor, counts: Tensor, ranks: Ranks | None, facts: Mapping[str, Fact] | None = None) -> Tensor:
    """[K]: sums [K] over all ranks, divided by counts [K] over all ranks (by 1 where nothing is counted).

    The value is the same on every rank. The gradient is that of this rank's share, times the factor of the ranks: what
    is averaged (or summed) over ranks afterwards is the gradient of the ratio. Where the call exchanges nothing else,
    the ranks agree on ``facts`` here. With ``ranks`` None: of this process alone.
    """
    if ranks is None:
        return sums / counts.clamp(min=1)
    encoded = None if facts is None else Facts.of(facts, ranks)
    found: Tensor = RatioFunction.apply(sums, counts, ranks, encoded)[0]
    return found


def alike(x: Tensor, what: str, ranks: Ranks) -> Tensor:
    """x [], which is the same on all ranks; where it is not and nobody can look (on a GPU, in a compiled graph): NaN.

    Raises:
        ValueError: it is not.
    """
    every = gathered(x[None], ranks)
    same = ((every == every[0]) | (every.isnan() & every[0].isnan())).all()
    if _validate.can_be_looked_at(same) and not bool(same):
        raise ValueError(f"{ranks.call}: {what}, must be the same on all ranks, got {every.tolist()}")
    return torch.where(same, x, torch.nan)


class ReplicatedFunction(Function):
    """``apply(x, ranks)``: x, whose gradient is the mean over ranks."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Ranks], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_sum(grad, ctx.ranks) / ctx.ranks.size, None


def replicated(x: Tensor, ranks: Ranks | None) -> Tensor:
    """A parameter that every rank holds alike, such as a scale.

    Where gradients are averaged afterwards, each rank gets the mean itself: averaging it once more changes nothing, and
    a parameter that nobody averages (beside the DDP wrapper) is right, too. Where they are summed, each has its share.
    """
    if ranks is None or not ranks.averaged or not x.requires_grad:
        return x
    found: Tensor = ReplicatedFunction.apply(x, ranks)
    return found

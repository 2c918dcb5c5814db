"""Collectives with derivatives: those of the sum, over ranks, of what every rank makes of the results.

Functional collectives, so that a compiler traces them. All ranks have to call them, and their derivatives, in the same
order. Sums are taken in the order of the ranks where the result has to have the same bits on all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparc_kernels.distributed.ranks import Ranks
from sparc_kernels.ops._dtype import accumulation_dtype

# Half-precision gradients of more ranks than a node has are widened and added up on the way: half the bytes, in an
# all-to-all, win where all ranks are neighbours, and lose where each has one link to other nodes (docs/distributed.md).
MOST_SWAPPED = 8


def _awaited(ranks: Ranks, what: str, name: str, *args: Any) -> Tensor:
    """The result of a collective; where the group gives up, the error says in which call."""
    ops = torch.ops._c10d_functional
    if torch.compiler.is_compiling():
        return ops.wait_tensor(getattr(ops, name)(*args))
    try:
        return ops.wait_tensor(getattr(ops, name)(*args))
    except RuntimeError as error:
        raise RuntimeError(
            f"{ranks.call}: rank {ranks.rank} of {ranks.size} lost the others while it {what}: a process has ended, or "
            f"did not make the same calls, within the timeout of the group {ranks.group!r} ({error})"
        ) from error


def gathered(x: Tensor, ranks: Ranks, what: str = "gathered") -> Tensor:
    """[W * n, ...] of [n, ...] of every rank; without derivative. ``what`` was done, in the past tense, for errors."""
    return _awaited(ranks, what, "all_gather_into_tensor", x.detach().contiguous(), ranks.size, ranks.group)


def summed_parts(x: Tensor, ranks: Ranks) -> Tensor:
    """[n, ...] of [W * n, ...]: the sum over ranks of what each has for this one; without derivative."""
    return _awaited(
        ranks, "summed gradients", "reduce_scatter_tensor", x.detach().contiguous(), "sum", ranks.size, ranks.group
    )


def _swapped(x: Tensor, ranks: Ranks) -> Tensor:
    sizes = [x.shape[0] // ranks.size] * ranks.size
    return _awaited(ranks, "exchanged", "all_to_all_single", x.detach().contiguous(), sizes, sizes, ranks.group)


class GatherFunction(Function):
    """``apply(own, padded, ranks)``: [W * n, ...] of every rank's ``padded`` [n, ...], which begins with ``own``. The
    gradients of all ranks are summed in the accumulation dtype."""

    @staticmethod
    def forward(own: Tensor, padded: Tensor, ranks: Ranks) -> Tensor:
        return gathered(padded, ranks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Ranks], output: Tensor) -> None:
        ctx.count, ctx.dtype, ctx.ranks = inputs[0].shape[0], inputs[0].dtype, inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        accumulation = accumulation_dtype(grad.dtype)
        if grad.dtype == accumulation or ctx.ranks.size > MOST_SWAPPED:
            total = SumPartsFunction.apply(grad.to(accumulation), ctx.ranks)
        else:  # travels as it is, and is added up here: half the bytes, and no sum of half precision
            total = swap(grad, ctx.ranks).unflatten(0, (ctx.ranks.size, -1)).sum(0, dtype=accumulation)
        return total[: ctx.count].to(ctx.dtype), None, None


class SumPartsFunction(Function):
    """``apply(x, ranks)``: [n, ...] of [W * n, ...], the derivative of :class:`GatherFunction`, with one of its own."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return summed_parts(x, ranks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Ranks], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return GatherFunction.apply(grad, grad.detach(), ctx.ranks), None


class SwapFunction(Function):
    """``apply(x, ranks)``: of [W * n, ...], part r from rank r."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return _swapped(x, ranks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Ranks], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return SwapFunction.apply(grad, ctx.ranks), None


class SumFunction(Function):
    """``apply(x, ranks)``: the sum over ranks, in their order; its derivative is the sum of the gradients."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return gathered(x[None], ranks).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Ranks], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return SumFunction.apply(grad, ctx.ranks), None


def gather(own: Tensor, padded: Tensor, ranks: Ranks) -> Tensor:
    """[W * n, ...] of every rank's ``padded`` [n, ...], differentiable in ``own``, which it begins with."""
    if not own.requires_grad:
        return gathered(padded, ranks)
    found: Tensor = GatherFunction.apply(own, padded, ranks)
    return found


def swap(x: Tensor, ranks: Ranks) -> Tensor:
    """[W * n, ...], part r from rank r, of [W * n, ...], part r for rank r."""
    found: Tensor = SwapFunction.apply(x, ranks)
    return found


def all_sum(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum over ranks, of the same bits on all of them."""
    found: Tensor = SumFunction.apply(x, ranks)
    return found

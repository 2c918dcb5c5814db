"""The one place that says how close is close.

A result is held to the float64 truth, relative to the error that plain eager PyTorch makes *in the same dtype*::

    error(result) <= factor(dtype) * error(eager) + floor(dtype),      and never more than CAP

for three errors, each relative to the size of the truth: the L2 norm of the difference, its largest element, and its
mean (the signed bias, which many small errors of one sign would raise). Its tests (``test_tolerance.py``) show that
constant, zero, row-shuffled, off-by-one-mask and sign-flipped results fail.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

# In half precision the kernels accumulate wider than plain eager does, so they may not be worse. In full precision they
# sum the same products in another order and through another algebra, so one may be luckier than the other.
FACTOR = {torch.float64: 4.0, torch.float32: 4.0, torch.bfloat16: 1.0, torch.float16: 1.0}
CAP = 0.05
# A few dozen roundings, where eager happens to be exact: another order of the same sums may err that much.
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# A matrix unit that adds to a float32 sum cuts off what is below its last bit instead of rounding it: half of eps, on
# average, an instruction, all of one sign (on an H200 a loss was biased by 1.3e-5 after sums of 192 instructions each).
TRUNCATION = 2.0**-24


@dataclass(frozen=True)
class Errors:
    """Errors of a result relative to the truth's size: L2 norm, largest element, mean."""

    l2: float
    largest: float
    bias: float


def errors(actual: Tensor, truth: Tensor, least: float = 0.0) -> Errors:
    """Errors of ``actual`` against ``truth`` (same shape), computed in float64; 0/0 is 0.

    ``least`` is the size of an element below which a truth counts as cancelled to nothing: errors are then relative to
    it.
    """
    if actual.shape != truth.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} is not the truth's {tuple(truth.shape)}")
    truth = truth.detach().double().cpu().flatten()
    difference = actual.detach().double().cpu().flatten() - truth
    if truth.numel() == 0:
        return Errors(0.0, 0.0, 0.0)

    def relative(error: Tensor, size: Tensor, smallest: float) -> float:
        size = size.clamp(min=smallest)
        return float(error / size) if float(size) > 0 else (0.0 if float(error) == 0 else float("inf"))

    return Errors(
        l2=relative(difference.norm(), truth.norm(), least * math.sqrt(truth.numel())),
        largest=relative(difference.abs().max(), truth.abs().max(), least),
        bias=relative(difference.mean().abs(), truth.abs().mean(), least),
    )


def bounds(
    eager: Tensor, truth: Tensor, dtype: torch.dtype, least: float = 0.0, matrix_instructions: int = 0
) -> Errors:
    """The errors that a result in ``dtype`` may have, given eager's result in that dtype.

    Where eager itself overflows, a result has to be right all the same, within a few roundings.
    ``matrix_instructions``: so many add to each of its sums, where the sums and not the operands set the error.
    """
    floor = FLOOR[dtype] + matrix_instructions * TRUNCATION
    made = errors(eager, truth, least) if bool(eager.isfinite().all()) else Errors(*3 * (floor,))
    return Errors(*(min(FACTOR[dtype] * error + floor, CAP) for error in astuple(made)))


def assert_close(
    name: str,
    actual: Tensor,
    truth: Tensor,
    eager: Tensor,
    dtype: torch.dtype,
    least: float = 0.0,
    matrix_instructions: int = 0,
) -> None:
    """``actual`` is as close to ``truth`` as a result in ``dtype`` has to be.

    ``least``: see :func:`errors`; ``matrix_instructions``: see :func:`bounds`. A NaN stands only where the truth has
    one.

    Raises:
        AssertionError: naming the error that is too large, with its bound.
    """
    if not torch.equal(actual.isnan().cpu(), truth.isnan().cpu()):
        raise AssertionError(f"{name}: NaN in {int(actual.isnan().sum())} places, truth {int(truth.isnan().sum())}")
    keep = ~truth.isnan().cpu()
    actual, truth, eager = actual.cpu()[keep], truth.cpu()[keep], eager.cpu()[keep]
    if not bool(actual.isfinite().all()):
        raise AssertionError(f"{name}: not finite in {int((~actual.isfinite()).sum())} places")
    found, allowed = errors(actual, truth, least), bounds(eager, truth, dtype, least, matrix_instructions)
    for metric in ("l2", "largest", "bias"):
        error, bound = getattr(found, metric), getattr(allowed, metric)
        if not error <= bound:
            raise AssertionError(f"{name}: {metric} error {error:.3g} exceeds {bound:.3g} ({dtype}, found {found})")

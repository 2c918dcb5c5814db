"""The one place that says how close is close.

A result is held to the float64 truth, relative to the error that plain eager PyTorch makes *in the same dtype*::

    error(result) <= FACTOR * error(eager) + floor(dtype),      and never more than CAP

for three errors, each relative to the size of the truth: the L2 norm of the difference, its largest element, and its
mean (the signed bias, which many small errors of one sign would raise). ``tests/test_tolerance.py`` shows that
constant, zero, row-shuffled, off-by-one-mask and sign-flipped results fail.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

FACTOR = 2.0
CAP = 0.05
# Rounding the result alone, plus a few roundings on the way, where eager happens to be exact.
FLOOR = {torch.float64: 2e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Errors:
    """Errors of a result relative to the truth's size: L2 norm, largest element, mean."""

    l2: float
    largest: float
    bias: float


def errors(actual: Tensor, truth: Tensor) -> Errors:
    """Errors of ``actual`` against ``truth`` (same shape), computed in float64; 0/0 is 0."""
    if actual.shape != truth.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} is not the truth's {tuple(truth.shape)}")
    truth = truth.detach().double().cpu().flatten()
    difference = actual.detach().double().cpu().flatten() - truth
    if truth.numel() == 0:
        return Errors(0.0, 0.0, 0.0)

    def relative(error: Tensor, size: Tensor) -> float:
        return float(error / size) if float(size) > 0 else (0.0 if float(error) == 0 else float("inf"))

    return Errors(
        l2=relative(difference.norm(), truth.norm()),
        largest=relative(difference.abs().max(), truth.abs().max()),
        bias=relative(difference.mean().abs(), truth.abs().mean()),
    )


def bounds(eager: Tensor, truth: Tensor, dtype: torch.dtype, terms: float = 0.0) -> Errors:
    """The errors that a result in ``dtype`` may have, given eager's result in that dtype.

    Where eager itself overflows, a result has to be right all the same, within a few roundings. A single number that is
    a sum of larger ``terms`` (their total size) is rounded as they are; eager may be luckier than that.
    """
    made = errors(eager, truth) if bool(eager.isfinite().all()) else Errors(*3 * (FLOOR[dtype],))
    size = float(truth.abs().max()) if truth.numel() else 0.0
    floor = FLOOR[dtype] * (max(1.0, terms / size) if size > 0 else 1.0)
    return Errors(*(min(FACTOR * error + floor, CAP) for error in astuple(made)))


def assert_close(
    name: str, actual: Tensor, truth: Tensor, eager: Tensor, dtype: torch.dtype, terms: float = 0.0
) -> None:
    """``actual`` is as close to ``truth`` as a result in ``dtype`` has to be (``terms``: see :func:`bounds`).

    A NaN stands only where the truth has one.

    Raises:
        AssertionError: naming the error that is too large, with its bound.
    """
    if not torch.equal(actual.isnan().cpu(), truth.isnan().cpu()):
        raise AssertionError(f"{name}: NaN in {int(actual.isnan().sum())} places, truth {int(truth.isnan().sum())}")
    keep = ~truth.isnan().cpu()
    actual, truth, eager = actual.cpu()[keep], truth.cpu()[keep], eager.cpu()[keep]
    if not bool(actual.isfinite().all()):
        raise AssertionError(f"{name}: not finite in {int((~actual.isfinite()).sum())} places")
    found, allowed = errors(actual, truth), bounds(eager, truth, dtype, terms)
    for metric in ("l2", "largest", "bias"):
        error, bound = getattr(found, metric), getattr(allowed, metric)
        if not error <= bound:
            raise AssertionError(f"{name}: {metric} error {error:.3g} exceeds {bound:.3g} ({dtype}, found {found})")

"""Nothing is timed that does not compute the op: every contender against the eager definition in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.measure.case import BOTH, Case, Function, Inputs

# Relative L2 distance of the result and of each gradient, by the precision that a contender computes in. Rivals are
# held more loosely in half precision: there plain PyTorch is off by several per cent (docs/numerics.md), which the row
# then says, and a wrong function by far more. TF32 has float16's mantissa.
OURS = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
RIVALS = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 3e-1, "float16": 1e-1, "tfloat32": 1e-1}
# Of the batch: where rounding alone decides a comparison, or makes another number the minimum, the gradient
# of that row jumps. Seen at B = 256: one row of 14080.
SHARE = 0.9
# What scalar losses in float16 are multiplied with before their gradients are taken, as a gradient scaler would do:
# those of a mean over a batch lie below the smallest numbers that float16 has.
LOSS_SCALE = 2.0**14


class ParityError(AssertionError):
    """A contender computes something else."""


def run(op: Function, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """The result, and in mode forward+backward the gradients of the leaves."""
    if case.mode != BOTH:
        with torch.no_grad():
            return (op(inputs),)
    result, upstream = op(inputs), inputs.upstream
    if upstream is None and case.dtype == "float16":
        upstream = torch.full_like(result, LOSS_SCALE)
    return (result.detach(), *torch.autograd.grad(result, tuple(inputs.leaves().values()), upstream))


def _errors(found: Tensor, truth: Tensor) -> Tensor:
    """Of each row (a scalar is one row), the L2 distance relative to the truth's size."""
    rows = truth.double().reshape(max(1, truth.shape[0]) if truth.dim() else 1, -1)
    difference = found.double().reshape_as(rows) - rows
    return (difference.norm(dim=1) / rows.norm(dim=1).clamp(min=1e-30)).nan_to_num(torch.inf)


class Truth:
    """What the definition gives in float32 (float64 for float64), part by part; kept where there is one part only."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case, self.inputs = case, inputs
        self.kept: list[tuple[slice, float, tuple[Tensor, ...]]] = []

    def __iter__(self) -> Iterator[tuple[slice, float, tuple[Tensor, ...]]]:
        if self.kept:
            yield from self.kept
            return
        case, count = self.case, 0
        wide = torch.float64 if case.dtype == "float64" else torch.float32
        for part, cut, weight in case.op.parts(self.inputs):
            found = part, weight, run(lambda x: case.op.truth(x, wide), case, cut)
            count += 1
            yield found
        if count == 1:
            self.kept = [found]


def distances(found: tuple[Tensor, ...], truths: Truth) -> dict[str, float]:
    """Relative distance of a contender's results to eager float32, the ``SHARE`` quantile over the batch."""
    names = ("result", *(f"{name} gradient" for name in truths.inputs.leaves()))[: len(found)]
    per_row: dict[str, list[Tensor]] = {name: [] for name in names}
    scalar = torch.zeros((), dtype=torch.float64, device=found[0].device)
    for part, weight, truth in truths:
        for name, actual, expected in zip(names, found, truth):
            if expected.dim() == 0:
                scalar += weight * expected
            else:
                per_row[name].append(_errors(actual[part], weight * expected))
    if found[0].dim() == 0:
        per_row["result"].append(_errors(found[0], scalar))
    return {name: float(torch.cat(errors).quantile(SHARE)) for name, errors in per_row.items()}


def allowed(ours: bool, precision: str) -> float:
    return (OURS if ours else RIVALS)[precision]


def assert_parity(
    op: Function, case: Case, inputs: Inputs, ours: bool, truth: Truth | None = None, precision: str | None = None
) -> dict[str, float]:
    """The distances, where all are small enough. ``truth``: of this case and these inputs, where somebody has it.

    ``precision``: what ``op`` computes in, where that is not the case's dtype.

    Raises:
        ParityError: naming what is too far from the definition, and by how much.
    """
    found = distances(run(op, case, inputs), truth or Truth(case, inputs))
    limit = allowed(ours, precision or case.dtype)
    for name, distance in found.items():
        if not distance <= limit:
            raise ParityError(f"{name} is {distance:.2g} from eager float32, allowed {limit}")
    return found

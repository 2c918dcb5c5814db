"""Cases of two ranks: faults planted in what losses over ranks share are noticed."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.distributed import collectives, ranks, spread, totals
from sparc_kernels.functional import contrastive_loss, sigmoid_loss
from tests.distributed.problems import CLOSE, SIZES, Problem, compare
from tests.distributed.world import Cases, Here

CASES = Cases()


def _fault(target: Any, name: str, replacement: Any, here: Here, sizes: tuple[int, ...] = SIZES) -> None:
    problem = Problem.of(sizes)
    assert compare(contrastive_loss, problem, "", here, "cpu") < CLOSE
    with mock.patch.object(target, name, replacement):
        error = compare(contrastive_loss, problem, "", here, "cpu")
    assert error > 1e-3, f"{name}: not caught, {error:.3g}"


@CASES.add("fault: no factor")
def no_factor(here: Here) -> None:
    _fault(ranks.Ranks, "factor", 1, here)


@CASES.add("fault: local mean")
def local_mean(here: Here) -> None:
    real = totals.gathered

    def local(both: Tensor, of: ranks.Ranks) -> Tensor:
        found = real(both, of)
        own = found[of.rank : of.rank + 1] * of.size  # a rank's own sum and count, as if all had them
        found[:, 1] = own[:, 1]
        return found

    problem = Problem.of(SIZES)
    with mock.patch.object(totals, "gathered", local):
        try:
            error = compare(contrastive_loss, problem, "", here, "cpu")
        except AssertionError as caught:
            assert "different numbers" in str(caught)  # noqa: PT017
            return
    raise AssertionError(f"not caught, {error:.3g}")


@CASES.add("fault: wrong rank order")
def wrong_order(here: Here) -> None:
    real = spread.swap
    _fault(spread, "swap", lambda x, of: real(x, of).unflatten(0, (of.size, -1)).flip(0).flatten(0, 1).roll(1, 0), here)


@CASES.add("fault: gathered in another order")
def wrong_gather(here: Here) -> None:
    real = collectives.gathered

    def turned(x: Tensor, of: ranks.Ranks, what: str = "gathered") -> Tensor:
        found = real(x, of, what)
        return (
            found.unflatten(0, (of.size, -1)).roll(1, 0).flatten(0, 1)
            if x.dim() == 2 and x.is_floating_point()
            else found
        )

    _fault(collectives, "gathered", turned, here)


@CASES.add("fault: sums of a ring that stay")
def staying(here: Here) -> None:
    problem = Problem.of(SIZES)
    for loss in (contrastive_loss, partial(sigmoid_loss, logit_bias=-2.0)):
        assert compare(loss, problem, "", here, "cpu", exchange="ring") < CLOSE
        with mock.patch.object(sk.distributed.Travelling, "pass_on", autospec=True):
            assert compare(loss, problem, "", here, "cpu", exchange="ring") > 1e-3


@CASES.add("fault: gradients of other ranks lost")
def lost_gradients(here: Here) -> None:
    def own(x: Tensor, of: ranks.Ranks) -> Tensor:
        return x.unflatten(0, (of.size, -1))[of.rank]

    _fault(collectives, "summed_parts", own, here)

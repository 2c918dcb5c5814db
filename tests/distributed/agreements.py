"""Cases of two ranks: what they have to come with alike, and who waits to learn it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from sparc_kernels.distributed import agreement, ranks
from sparc_kernels.functional import Labels, contrastive_loss, fine_grained_loss, sigmoid_loss
from tests.distributed.problems import CLOSE, Problem, compare
from tests.distributed.world import Cases, Here

CASES = Cases()
F64 = torch.float64


@CASES.add("disagreement")
def disagreement(here: Here) -> None:
    """All ranks get the error, which names rank and argument, and go on to the next call."""
    first = here.rank == 0
    x = torch.randn(4, 8, dtype=F64)
    grad = x.clone().requires_grad_()
    group = here.group

    def usual() -> torch.Tensor:
        return contrastive_loss(x, x, group=group)

    def check(message: str, other: Callable[[], Any], one: Callable[[], Any] = usual) -> None:
        with pytest.raises(ValueError, match=message):
            (one if first else other)()
        assert bool(usual().isfinite())

    check(
        r"text_embeds width must be the same on all ranks, got 6 on rank 1 and 8 on rank 0",
        lambda: contrastive_loss(x[:, :6], x[:, :6], group=group),
    )
    check(
        r"text_embeds dtype must be the same .*, got float32 on rank 1 and float64 on rank 0",
        lambda: contrastive_loss(x.float(), x.float(), group=group),
    )
    check(
        r"direction must be the same .*, got image_to_text on rank 1 and both on rank 0",
        lambda: contrastive_loss(x, x, group=group, direction="image_to_text"),
    )
    check(
        r"text_embeds requires_grad must be the same .*, got True on rank 1 and False on rank 0",
        lambda: contrastive_loss(x, grad, group=group),
    )
    check(
        r"targets must be the same .*, got Labels on rank 1 and None on rank 0",
        lambda: contrastive_loss(x, x, group=group, targets=Labels(torch.arange(4), torch.arange(4))),
    )
    check(
        r"exchange must be the same .*, got ring on rank 1 and gather on rank 0",
        lambda: contrastive_loss(x, x, group=group, exchange="ring"),
    )
    check(
        r"gradients must be the same .*, got sum on rank 1 and mean on rank 0",
        lambda: contrastive_loss(x, x, group=group, gradients="sum"),
    )
    check(
        r"all ranks must make the same call, got another than (contrastive|sigmoid)_loss from rank [01]",
        lambda: sigmoid_loss(x, x, logit_scale=2.0, logit_bias=0.0, group=group),
    )
    y = torch.randn(3, 4, 8, dtype=F64)
    check(
        r"reduction must be the same .*, got caption on rank 1 and token on rank 0",
        lambda: fine_grained_loss(y, y, group=group, reduction="caption"),
        lambda: fine_grained_loss(y, y, group=group),
    )
    # sizes that were seen on one rank and are new on the other
    for sizes in ((4, 4), (4, 9), (2, 9), (12, 1)):
        own = torch.randn(sizes[here.rank], 8, dtype=F64)
        assert bool(contrastive_loss(own, own, group=group).isfinite())


@CASES.add("a host that does not wait")
def without_waiting(here: Here) -> None:
    """On a GPU the header is read where a rank does not know yet what the ranks agreed on; simulated on the CPU."""
    reads: list[int] = []
    real = agreement._check

    def counted_check(*args: Any) -> None:
        reads.append(1)
        real(*args)

    with (
        mock.patch.object(agreement, "_waits_for", return_value=True),
        mock.patch.object(agreement, "_check", counted_check),
    ):
        for sizes, expected in (
            ((6, 8), (1, 1)),  # the first call
            ((6, 8), (0, 0)),
            ((8, 5), (0, 0)),  # both fit
            ((2, 8), (1, 0)),  # much smaller on one rank, which learns that the other has agreed
            ((0, 7), (1, 0)),
            ((20, 16), (1, 1)),  # both outgrow it
            ((20, 11), (0, 0)),
            ((3, 4), (1, 1)),  # an evaluation
            ((3, 4), (0, 0)),
        ):
            reads.clear()
            problem = Problem.of(sizes)
            error = compare(contrastive_loss, problem, "", here, "cpu")
            assert error < CLOSE, f"{sizes}: {error:.3g}"
            assert len(reads) == expected[here.rank], f"{sizes}: read {len(reads)} times"
        # outgrown on one rank alone: it says so; nothing behind the header here, for the other would wait
        with mock.patch.object(agreement, "gather", lambda own, padded, of: padded):
            of = ranks.ranks_of(here.group, "mean", "some_call")
            assert of is not None
            agreement.spread_over(torch.randn((3, 4)[here.rank], 8), {"rows width": 8}, of)
            larger = torch.randn((3, 9)[here.rank], 8)
            message = "rows must be at most 4, which the ranks agreed on, got 9 on rank 1"
            with pytest.raises(ValueError, match=message) if here.rank == 1 else contextlib.nullcontext():
                agreement.spread_over(larger, {"rows width": 8}, of)

"""Cases of two ranks: statistics of spread rows and columns, gathered and by a ring, hard negatives, low precision."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sparc_kernels.distributed import collectives, ranks
from sparc_kernels.functional import (
    Above,
    Ids,
    Labels,
    Pairs,
    Teacher,
    contrastive_loss,
    mine_negatives,
    sigmoid_loss,
    similarity_logsumexp,
    similarity_softplus,
)
from sparc_kernels.modules import DistillClipLoss
from tests import tolerance
from tests.distributed.problems import CLOSE, SIZES, Problem, of_rank, off
from tests.distributed.world import Cases, Here

CASES = Cases()
F64 = torch.float64


@CASES.add("statistics")
def statistics(here: Here) -> None:
    """Own rows and columns of one matrix, with scales per item, thresholds, a teacher; and their gradients."""
    problem = Problem.of(SIZES, (3, 8))
    generator = torch.Generator().manual_seed(3)
    problem.add("images", "row_scale", torch.rand(13, generator=generator, dtype=F64) * 5 + 1)
    problem.add("texts", "col_scale", torch.rand(11, generator=generator, dtype=F64) * 5 + 1)
    names = ("image_embeds", "text_embeds", "row_scale", "col_scale")

    def outputs(rank: int | None, options: dict[str, Any], **given: Any) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [problem.part(name, rank).clone().requires_grad_() for name in names]
        part = lambda name: problem.part(name, rank)  # noqa: E731
        guide = (part("image_guides"), part("text_guides"))
        if options.get("teacher"):
            given["teacher"] = Teacher(*guide, 2.0)
        exclude: list[Any] = [Above(*guide, 0.4)] if options.get("above") else []
        if options.get("ids"):
            exclude.append(Ids(part("image_ids"), part("text_ids")))
        if options.get("labels"):
            given["targets"] = Labels(part("image_ids"), part("text_ids"))
        found = similarity_logsumexp(
            *leaves[:2], row_scale=leaves[2], col_scale=leaves[3], exclude=exclude or None, **given
        )
        return leaves, [x for x in found if x is not None]

    for options in ({}, {"teacher": True, "above": True}, {"ids": True}, {"labels": True}, {"above": True}):
        for backend in ("cpu", "eager"):
            whole, truth = outputs(None, options, backend="eager")
            own, found = outputs(here.rank, options, backend=backend, group=here.group)
            assert len(found) == len(truth)
            sum((x * torch.arange(len(x))).sum() for x in truth).backward()
            weights = [torch.arange(len(x)) for x in truth]
            total = torch.zeros((), dtype=F64)
            for place, (x, expected, weight) in enumerate(zip(found, truth, weights)):
                sizes = (problem.images, problem.texts)[place % 2]
                error = off(x.detach(), of_rank(expected.detach(), sizes, here.rank))
                assert error < CLOSE, f"{options} {backend} result {place}: {error:.3g}"
                total = total + (x * of_rank(weight, sizes, here.rank)).sum()
            total.backward()
            for name, leaf, expected in zip(names, own, whole):
                sizes = problem.images if problem.kinds[name] == "images" else problem.texts
                assert expected.grad is not None
                error = off(leaf.grad, of_rank(expected.grad, sizes, here.rank))
                assert error < CLOSE, f"{options} {backend} {name}: {error:.3g}"
    rows, cols = (problem.part(name, None) for name in names[:2])
    sums = similarity_softplus(rows, cols, scale=3.0, bias=-1.0, backend="eager")
    rows, cols = (problem.part(name, here.rank) for name in names[:2])
    own_sums = similarity_softplus(rows, cols, scale=3.0, bias=-1.0, group=here.group)
    assert off(own_sums, of_rank(sums, SIZES, here.rank)) < CLOSE


@CASES.add("statistics of a ring")
def statistics_of_a_ring(here: Here) -> None:
    """As gathered: results with weights that differ, scales per row, ids, excluded pairs; and the same bits again."""
    problem = Problem.of(SIZES, (3, 8))
    generator = torch.Generator().manual_seed(3)
    problem.add("images", "row_scale", torch.rand(13, generator=generator, dtype=F64) * 5 + 1)

    def outputs(name: str, **given: Any) -> list[Tensor]:
        x, y = (problem.part(each, here.rank).clone().requires_grad_() for each in ("image_embeds", "text_embeds"))
        scales: dict[str, Any]
        if name == "logsumexp":
            scales = {"row_scale": problem.part("row_scale", here.rank).clone().requires_grad_()}
            scales["col_scale"] = torch.tensor(3.0, dtype=F64, requires_grad=True)
            found: tuple[Tensor | None, ...] = similarity_logsumexp(x, y, **scales, **given)
        else:
            scales = {"scale": torch.tensor(3.0, dtype=F64, requires_grad=True)}
            found = (similarity_softplus(x, y, **scales, bias=-1.0, **given),)
        results = [each for each in found if each is not None]
        sum(((each * (torch.arange(len(each)) + 1)).sum() for each in results), torch.zeros((), dtype=F64)).backward()
        grads = [leaf.grad for leaf in (x, y, *scales.values()) if leaf.grad is not None]
        return [*(each.detach() for each in results), *grads]

    for name in ("logsumexp", "softplus"):
        for kinds in ("", "ids without-pairs", "direction=rows", "direction=cols"):
            if name == "softplus" and "direction" in kinds:
                continue
            options: dict[str, Any] = {**problem.options(kinds, here.rank), "group": here.group, "backend": "cpu"}
            gathered = outputs(name, **options)
            found, again = (outputs(name, exchange="ring", **options) for _ in range(2))
            assert len(found) == len(gathered)
            for x, y, expected in zip(found, again, gathered):
                assert torch.equal(x, y)
                assert off(x, expected) < CLOSE, f"{name} {kinds}"


@CASES.add("a ring of Triton's kernels")
def ring_of_triton(here: Here) -> None:
    """In its interpreter, on three pairs and two."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return  # where they are compiled they take no tensors of the CPU, and gloo has no others
    problem = Problem.of((3, 2), dtype=torch.float32)
    names = ("image_embeds", "text_embeds")
    losses: tuple[Callable[..., Tensor], ...] = (contrastive_loss, partial(sigmoid_loss, logit_bias=-2.0))
    for loss in losses:
        truth = [problem.part(name, None).double().requires_grad_() for name in names]
        expected = loss(*truth, logit_scale=6.0, backend="eager")
        expected.backward()
        own = [problem.part(name, here.rank).clone().requires_grad_() for name in names]
        found = loss(*own, logit_scale=6.0, backend="triton", group=here.group, exchange="ring")
        found.backward()
        assert off(found.detach(), expected.detach()) < 1e-6
        for leaf, whole in zip(own, truth):
            assert leaf.grad is not None
            assert whole.grad is not None
            assert off(leaf.grad / here.size, of_rank(whole.grad, (3, 2), here.rank)) < 1e-5


@CASES.add("ops of several ranks")
def ops_of_ranks(here: Here) -> None:
    """Schema, fake implementation and autograd registration; all ranks check the same, for every check exchanges."""
    of = ranks.ranks_of(here.group, "mean", "opcheck")
    assert of is not None
    ops, where = torch.ops.sparc_kernels, (*of[:4], "cpu", "highest")
    x, y = (torch.randn(4, 6, dtype=F64, requires_grad=True) for _ in range(2))
    scale, other = (torch.tensor(value, dtype=F64, requires_grad=True) for value in (3.0, -1.0))
    ids = torch.arange(4) + 10 * here.rank
    scope, every, one = (ids, ids, None, None), (True,) * 4, torch.ones(4, dtype=F64)
    found = [each.detach() for each in ops.ring_logsumexp_forward(x, y, scale, scale, *scope, True, True, *where)]
    detached = [each.detach() for each in (x, y, scale, other)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, arguments in (
        (ops.ring_logsumexp_forward, (x, y, scale, scale, *scope, True, True)),
        (ops.ring_logsumexp_forward, (x, y, scale, scale, *scope, True, False)),
        (
            ops.ring_logsumexp_backward,
            (one, one, *detached[:2], *(scale.detach(),) * 2, *scope, *found, True, True, *every),
        ),
        (ops.ring_softplus_forward, (x, y, scale, other, *scope, True)),
        (ops.ring_softplus_backward, (one, *detached, *scope, True, True, False, True, False)),
        (ops.ring_softplus_total_forward, (x, y, scale, other, one, *scope, True, *every)),
    ):
        torch.library.opcheck(op.default, (*arguments, *where), test_utils=checks)
    own = torch.randn(3 + here.rank, 6, dtype=F64)
    torch.library.opcheck(ops.announce.default, (own, 8, [6], "rows width", *of[1:3], of[0], of[3]), test_utils=checks)


@CASES.add("what a ring refuses")
def refused_by_a_ring(here: Here) -> None:
    """With one rank as with many, and before anything is sent."""
    x, ids = torch.randn(4, 8), torch.arange(4)
    for group in (None, here.group):
        ring: dict[str, Any] = {"exchange": "ring", "logit_scale": 3.0, "group": group}
        columns: dict[str, Any] = {"exchange": "ring", "row_scale": 3.0, "col_scale": torch.ones(4), "group": group}
        refused: dict[str, Callable[..., Any]] = {
            "targets, got 'ring': positives": partial(contrastive_loss, targets=Labels(ids, ids), **ring),
            "a teacher": partial(contrastive_loss, teacher=Teacher(x, x, 2.0), alpha=0.5, **ring),
            "Above in exclude": partial(contrastive_loss, exclude=Above(x, x, 0.5), **ring),
            "backend='eager'": partial(contrastive_loss, backend="eager", **ring),
            "Pairs as targets": partial(sigmoid_loss, logit_bias=0.0, targets=Pairs(torch.arange(5), ids), **ring),
            "weights that require": partial(
                sigmoid_loss, logit_bias=0.0, weights=torch.ones(4, requires_grad=True), **ring
            ),
            "a scale per column": partial(similarity_logsumexp, **columns),
        }
        for message, call in refused.items():
            with pytest.raises(NotImplementedError, match=f"exchange must be 'gather' with {message}"):
                call(x, x)
        with pytest.raises(ValueError, match="exchange must be 'gather' or 'ring', got 'shift'"):
            contrastive_loss(x, x, exchange="shift", group=group)
    with pytest.raises(ValueError, match="exchange must be 'gather', got 'ring'"):
        DistillClipLoss(exchange="ring")
    y = x.clone().requires_grad_()
    loss = sigmoid_loss(y, y, logit_bias=0.0, group=here.group, exchange="ring", logit_scale=3.0)
    with pytest.raises(ValueError, match=r"the gradient of the loss, .* the same on all ranks, got"):
        (loss * (here.rank + 1)).backward()


@CASES.add("hard negatives")
def hard_negatives(here: Here) -> None:
    """Of all ranks' columns, by indices that count them through."""
    for texts in ((3, 8), (0, 6)):
        problem = Problem.of(SIZES, texts)
        names = ("image_embeds", "text_embeds")
        for kinds in ("", "ids", "without-pairs above", "ids without-pairs above"):
            whole, own = ({"exclude": problem.options(kinds, rank).get("exclude")} for rank in (None, here.rank))
            most = problem.values["weights"]
            rows, cols = (problem.part(name, None) for name in names)
            truth = mine_negatives(rows, cols, 5, at_most=most, **whole)
            rows, cols = (problem.part(name, here.rank) for name in names)
            found = mine_negatives(rows, cols, 5, at_most=of_rank(most, SIZES, here.rank), group=here.group, **own)
            assert torch.equal(found, of_rank(truth, SIZES, here.rank)), kinds
    assert bool((truth == -1).any())
    assert bool((truth == 5).any())
    with pytest.raises(ValueError, match="k must lie between 1 and 6, the number of columns, got 7"):
        mine_negatives(rows, cols, 7, group=here.group)


@CASES.add("one rank is None")
def one_rank(here: Here) -> None:
    """A group of one rank takes the way of no group: the same bits."""
    alone = [dist.new_group([rank]) for rank in range(here.size)][here.rank]
    problem = Problem.of((12,))
    results = []
    for group in (None, alone):
        x = {name: problem.part(name, None).clone().requires_grad_() for name in ("image_embeds", "text_embeds")}
        loss = contrastive_loss(**x, group=group) + sigmoid_loss(**x, logit_scale=4.0, logit_bias=-2.0, group=group)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in x.values())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@CASES.add("half precision")
def half_precision(here: Here) -> None:
    """bfloat16 embeddings travel as they are; sums over ranks are float32: as close as one process has to be."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        problem = Problem.of((40, 33), dtype=dtype)
        names = ("image_embeds", "text_embeds")
        made: dict[str, list[Tensor]] = {}
        for name, kind in (("truth", F64), ("eager", dtype)):
            x = [problem.part(each, None).clone().to(kind).requires_grad_() for each in names]
            contrastive_loss(*x, logit_scale=10.0, backend="eager").backward()
            made[name] = [leaf.grad for leaf in x if leaf.grad is not None]
        backend = "cpu" if dtype != torch.float16 else "eager"
        for exchange, most in (("gather", 8), ("gather", 1), ("ring", 8)):  # gradients swapped, summed on their way
            if exchange == "ring" and backend == "eager":
                continue
            x = [problem.part(each, here.rank).clone().requires_grad_() for each in names]
            with mock.patch.object(collectives, "MOST_SWAPPED", most):
                contrastive_loss(*x, logit_scale=10.0, group=here.group, exchange=exchange, backend=backend).backward()
            for name, leaf, truth, eager in zip(names, x, made["truth"], made["eager"]):
                assert leaf.grad is not None
                assert leaf.grad.dtype == dtype
                own = [of_rank(each, problem.images, here.rank) for each in (truth, eager)]
                tolerance.assert_close(name, leaf.grad / here.size, own[0], own[1], dtype, 1e-6)

"""Cases of two ranks: real DDP and FSDP2, modules, compilation, low precision, disagreement, and planted faults."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import sparc_kernels as sk
from sparc_kernels.distributed import agreement, collectives, ranks, spread, totals
from sparc_kernels.functional import (
    Above,
    Ids,
    Labels,
    Pairs,
    SparcLossOutput,
    Teacher,
    contrastive_loss,
    filip_loss,
    fine_grained_loss,
    mine_negatives,
    sigmoid_loss,
    similarity_logsumexp,
    similarity_softplus,
    sparc_loss,
)
from sparc_kernels.modules import ClipLoss, DistillClipLoss, SigLipLoss
from tests import tolerance
from tests.distributed.problems import CLOSE, Problem, compare, mean_of_ranks, of_rank, off
from tests.distributed.world import CHECKOUT, Cases, Here

CASES = Cases()
SIZES = (9, 4)
F64 = torch.float64


# The statistics


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


# Towers under wrappers


class Towers(nn.Module):
    """Patches [n, 6, 7] and words [n, 5, 9] to embeddings of one width."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.image, self.text, self.criterion = nn.Linear(7, 12), nn.Linear(9, 12), criterion

    def forward(self, patches: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.criterion(self.image(patches), self.text(words), mask)
        return found


class Pooled(nn.Module):
    """A loss of open_clip's signature, with scales of its own, on means."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.log_scale, self.bias = nn.Parameter(torch.tensor([1.5])), nn.Parameter(torch.tensor([-2.0]))

    def forward(self, patches: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        features = (patches.mean(1), words.mean(1), self.log_scale.exp())
        if isinstance(self.loss, DistillClipLoss):
            a, b = self.loss(*features, patches[:, 0].detach(), words[:, 0].detach(), 4.0)
            return a + 2 * b + 0.0 * self.bias.sum()
        found: Tensor = self.loss(*features, self.bias)
        return found


def batch(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    n = sum(sizes)
    lengths = torch.randint(1, 6, (n,), generator=generator)
    lengths[0], lengths[-1] = 0, 1  # captions differ much from rank to rank
    lengths[1 : sizes[0]] = 5
    patches, words = (torch.randn(n, *shape, generator=generator, dtype=F64) for shape in ((6, 7), (5, 9)))
    return patches, words, torch.arange(5) < lengths[:, None]


CRITERIA: dict[str, Callable[[Any], nn.Module]] = {
    "sparc token": lambda group: sk.SparcLoss(group=group),
    "sparc caption": lambda group: sk.SparcLoss(group=group, reduction="caption", local_logit_scale=3.0),
    "ClipLoss": lambda group: Pooled(ClipLoss(group=group)),
    "SigLipLoss": lambda group: Pooled(SigLipLoss(group=group)),
    "ClipLoss, ring": lambda group: Pooled(ClipLoss(group=group, exchange="ring")),
    "SigLipLoss, ring": lambda group: Pooled(SigLipLoss(group=group, exchange="ring")),
    "DistillClipLoss": lambda group: Pooled(DistillClipLoss(group=group)),
}


def towers(criterion: str, group: Any) -> Towers:
    torch.manual_seed(0)
    return Towers(CRITERIA[criterion](group)).double()


def single(criterion: str, sizes: tuple[int, ...]) -> tuple[Towers, Tensor]:
    model = towers(criterion, None)
    loss = model(*batch(sizes))
    loss.backward()
    return model, loss.detach()


def own_batch(sizes: tuple[int, ...], here: Here) -> list[Tensor]:
    return [of_rank(x, sizes, here.rank) for x in batch(sizes)]


def check_parameters(found: nn.Module, truth: nn.Module, whole: Callable[[Tensor], Tensor] = lambda x: x) -> None:
    for (name, p), q in zip(found.named_parameters(), truth.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            error = off(whole(p.grad), q.grad)
            assert error < CLOSE, f"{name}: {error:.3g}"


def ddp(criterion: str, here: Here) -> None:
    for sizes in (SIZES, (7, 1)):
        truth, expected = single(criterion, sizes)
        model = DistributedDataParallel(towers(criterion, here.group), process_group=here.group)
        loss = model(*own_batch(sizes, here))
        loss.backward()
        assert off(loss.detach(), expected) < CLOSE
        check_parameters(model.module, truth)


def fsdp2(criterion: str, here: Here) -> None:
    truth, expected = single(criterion, SIZES)
    model = towers(criterion, here.group)
    mesh = DeviceMesh.from_group(here.group, "cpu")
    for part in (model.image, model.text, model.criterion, model):
        fully_shard(part, mesh=mesh)
    loss = model(*own_batch(SIZES, here))
    loss.backward()
    assert off(loss.detach(), expected) < CLOSE
    check_parameters(model, truth, lambda grad: grad.full_tensor() if isinstance(grad, DTensor) else grad)


for _criterion in CRITERIA:
    CASES.add(f"DDP {_criterion}")(lambda here, name=_criterion: ddp(name, here))
    CASES.add(f"FSDP2 {_criterion}")(lambda here, name=_criterion: fsdp2(name, here))


@CASES.add("scale beside the wrapper")
def beside(here: Here) -> None:
    """Each rank has the whole gradient of a scale that nobody averages, of the same bits."""
    for criterion in CRITERIA:
        truth, _ = single(criterion, SIZES)
        model = towers(criterion, here.group)
        wrapped = nn.ModuleDict({"image": model.image, "text": model.text})
        shell = DistributedDataParallel(_Both(wrapped), process_group=here.group)
        patches, words, mask = own_batch(SIZES, here)
        model.criterion(*shell(patches, words), mask).backward()
        check_parameters(model, truth)
        for p in model.criterion.parameters():
            if p.grad is not None:
                every = [torch.empty_like(p.grad) for _ in range(here.size)]
                dist.all_gather(every, p.grad, group=here.group)
                assert all(torch.equal(x, every[0]) for x in every)


class _Both(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts["image"](patches), self.parts["text"](words)


@CASES.add("words are counted over ranks")
def counted(here: Here) -> None:
    """Ragged captions, and a rank without a word; the fine-grained loss alone, and components."""
    for reduction in ("token", "caption"):
        for empty in (False, True):
            patches, words, mask = batch(SIZES)
            if empty:
                mask = mask & (torch.arange(len(mask)) < SIZES[0])[:, None]
            tokens = torch.randn(len(mask), 5, 7, dtype=F64, generator=torch.Generator().manual_seed(2))
            scale = torch.tensor(4.0, dtype=F64, requires_grad=True)
            whole = (patches.clone().requires_grad_(), tokens.clone().requires_grad_())
            truth = fine_grained_loss(*whole, mask, logit_scale=scale, reduction=reduction)
            truth.backward()
            own_scale = scale.detach().clone().requires_grad_()
            own = [of_rank(x, SIZES, here.rank).clone().requires_grad_() for x in (patches, tokens)]
            mine = of_rank(mask, SIZES, here.rank)
            options: dict[str, Any] = {"logit_scale": own_scale, "reduction": reduction, "group": here.group}
            found = fine_grained_loss(own[0], own[1], mine, **options)
            found.backward()
            assert off(found.detach(), truth.detach()) < CLOSE
            assert off(own_scale.grad, scale.grad) < CLOSE
            for leaf, expected in zip(own, whole):
                assert expected.grad is not None and leaf.grad is not None  # noqa: PT018
                assert off(leaf.grad / here.size, of_rank(expected.grad, SIZES, here.rank)) < CLOSE
    patches, words, mask = batch(SIZES)
    options = {"return_components": True, "reduction": "none"}
    tokens = words[..., :7]
    parts = sparc_loss(patches, tokens, mask, **options)
    components = sparc_loss(
        *(of_rank(x, SIZES, here.rank) for x in (patches, tokens, mask)), group=here.group, **options
    )
    assert isinstance(parts, SparcLossOutput)
    assert isinstance(components, SparcLossOutput)
    assert off(components.loss, parts.loss) < CLOSE
    assert off(components.global_loss, parts.global_loss) < CLOSE
    assert off(components.local_loss, of_rank(parts.local_loss, SIZES, here.rank)) < CLOSE


@CASES.add("a loss of your own")
def own_loss(here: Here) -> None:
    """The recipe of docs/distributed.md."""
    text = (CHECKOUT / "docs" / "distributed.md").read_text()
    (block,) = (part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def decoupled" in part)
    names: dict[str, Any] = {}
    exec(block, names)
    problem = Problem.of(SIZES)

    def loss(group: Any = None, backend: str = "", gradients: str = "", **given: Tensor) -> Tensor:
        images, texts, scale = given.values()
        found: Tensor = names["decoupled"](images, texts, scale, group)
        return found

    error = compare(loss, problem, "", here, "cpu")
    assert error < CLOSE, f"{error:.3g}"


# Compilers


@CASES.add("compiled")
def compiled(here: Here) -> None:
    """One graph, and the same loss and gradients; sizes differ from rank to rank after a first eager call."""
    problem = Problem.of(SIZES)
    names = ("image_embeds", "text_embeds")

    def loss(image: Tensor, text: Tensor, scale: Tensor, exchange: str) -> Tensor:
        options: dict[str, Any] = {"logit_scale": scale, "group": here.group, "exchange": exchange}
        return contrastive_loss(image, text, **options) + sigmoid_loss(image, text, logit_bias=-2.0, **options)

    def gathered(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        tokens = (x.unflatten(1, (3, 4)) for x in (image, text))
        return loss(image, text, scale, "gather") + filip_loss(*tokens, logit_scale=scale, group=here.group)

    def ring(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        ids = torch.arange(len(image)) + 100 * here.rank
        sums = similarity_softplus(image, text, scale=scale, exclude=Ids(ids, ids), group=here.group, exchange="ring")
        return loss(image, text, scale, "ring") + sums.mean()

    def gradients(function: Callable[..., Tensor]) -> list[Tensor | None]:
        x = [problem.part(name, here.rank).clone().requires_grad_() for name in names]
        x.append(torch.tensor(5.0, dtype=F64, requires_grad=True))
        found = function(*x)
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in x)]

    for function in (gathered, ring):
        expected = gradients(function)
        torch._dynamo.reset()
        for found, truth in zip(gradients(torch.compile(function, fullgraph=True, backend="aot_eager")), expected):
            assert off(found, truth) < CLOSE


@CASES.add("compiled sparc")
def compiled_sparc(here: Here) -> None:
    truth, expected = single("sparc token", SIZES)
    model = towers("sparc token", here.group)
    model(*own_batch(SIZES, here))  # ranks agree on the sizes
    torch._dynamo.reset()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(*own_batch(SIZES, here))
    loss.backward()
    assert off(loss.detach(), expected) < CLOSE
    for p, q in zip(model.parameters(), truth.parameters()):
        assert p.grad is not None
        assert off(mean_of_ranks(p.grad, here), q.grad) < CLOSE


@CASES.add("compiled with other sizes")
def compiled_uneven(here: Here) -> None:
    """Sizes are compiled in where no call before has said how many there are: ranks that differ learn it together."""
    x = torch.randn(5 + here.rank, 8, dtype=F64)
    torch._dynamo.reset()
    function = torch.compile(lambda a: contrastive_loss(a, a, group=here.group), fullgraph=True, backend="aot_eager")
    message = r"text_embeds must be as many on all ranks where the number is compiled in, got 5 on rank 0 and 6"
    with pytest.raises(ValueError, match=message):
        function(x)
    contrastive_loss(x, x, group=here.group)
    torch._dynamo.reset()
    assert bool(function(x).isfinite())


# Disagreement


@CASES.add("disagreement")
def disagreement(here: Here) -> None:
    """All ranks get the error, which names rank and argument, and go on to the next call."""
    first = here.rank == 0
    x = torch.randn(4, 8, dtype=F64)
    grad = x.clone().requires_grad_()
    group = here.group

    def check(message: str, one: Callable[[], Any], other: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=message):
            (one if first else other)()
        assert bool(contrastive_loss(x, x, group=group).isfinite())

    check(
        r"text_embeds width must be the same on all ranks, got 6 on rank 1 and 8 on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x[:, :6], x[:, :6], group=group),
    )
    check(
        r"text_embeds dtype must be the same .*, got float32 on rank 1 and float64 on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x.float(), x.float(), group=group),
    )
    check(
        r"direction must be the same .*, got image_to_text on rank 1 and both on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x, x, group=group, direction="image_to_text"),
    )
    check(
        r"text_embeds requires_grad must be the same .*, got True on rank 1 and False on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x, grad, group=group),
    )
    check(
        r"targets must be the same .*, got Labels on rank 1 and None on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x, x, group=group, targets=Labels(torch.arange(4), torch.arange(4))),
    )
    check(
        r"exchange must be the same .*, got ring on rank 1 and gather on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x, x, group=group, exchange="ring"),
    )
    check(
        r"gradients must be the same .*, got sum on rank 1 and mean on rank 0",
        lambda: contrastive_loss(x, x, group=group),
        lambda: contrastive_loss(x, x, group=group, gradients="sum"),
    )
    check(
        r"all ranks must make the same call, got another than (contrastive|sigmoid)_loss from rank [01]",
        lambda: contrastive_loss(x, x, group=group),
        lambda: sigmoid_loss(x, x, logit_scale=2.0, logit_bias=0.0, group=group),
    )
    y = torch.randn(3, 4, 8, dtype=F64)
    check(
        r"reduction must be the same .*, got caption on rank 1 and token on rank 0",
        lambda: fine_grained_loss(y, y, group=group),
        lambda: fine_grained_loss(y, y, group=group, reduction="caption"),
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


@CASES.add("open_clip's arguments")
def open_clip_arguments(here: Here) -> None:
    x = torch.randn(4, 8)
    right = {"rank": here.rank, "world_size": here.size}
    for options in ({}, {"local_loss": True}):
        with pytest.raises(ValueError, match=r"gather_with_grad must be True where world_size is 2, got False"):
            ClipLoss(**options, **right)
    with pytest.raises(ValueError, match="world_size must be that of the process group, 2, got 3"):
        ClipLoss(gather_with_grad=True, world_size=3)(x, x, 3.0)
    with pytest.raises(ValueError, match=f"rank must be that of the process group, {here.rank}, got {1 - here.rank}"):
        SigLipLoss(rank=1 - here.rank, world_size=2)(x, x, 3.0, 0.0)
    for loss in (ClipLoss(gather_with_grad=True, local_loss=True, **right), SigLipLoss(**right)):
        assert loss.group == "world"
        assert bool(loss(x, x, 3.0, 0.0).isfinite())


# Planted faults


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

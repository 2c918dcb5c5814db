"""Cases of two ranks: real DDP and FSDP2, modules, compilation; and those of the modules beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import sparc_kernels as sk
from sparc_kernels.functional import (
    Ids,
    SparcLossOutput,
    contrastive_loss,
    filip_loss,
    fine_grained_loss,
    gloria_loss,
    sigmoid_loss,
    similarity_softplus,
    sparc_loss,
)
from sparc_kernels.modules import ClipLoss, DistillClipLoss, SigLipLoss
from tests.distributed import agreements, faults, statistics
from tests.distributed.problems import CLOSE, SIZES, Problem, compare, mean_of_ranks, of_rank, off
from tests.distributed.world import CHECKOUT, Cases, Here

CASES = Cases(statistics.CASES | agreements.CASES | faults.CASES)
F64 = torch.float64


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
        tokens = [x.unflatten(1, (3, 4)) for x in (image, text)]
        pooled = gloria_loss(*tokens, logit_scale=scale, group=here.group)
        return loss(image, text, scale, "gather") + filip_loss(*tokens, logit_scale=scale, group=here.group) + pooled

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

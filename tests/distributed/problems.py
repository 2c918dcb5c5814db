"""Batches that are spread over ranks, and the check that the ranks' loss and gradients are the single process's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparc_kernels.functional import Above, Ids, Labels, Pairs, Teacher
from tests.distributed.world import Here

UNEVEN = ((5, 9, 3, 7), (6, 0, 1, 17))
SIZES = (9, 4)  # of two ranks
CLOSE = 1e-12


def of_rank(whole: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
    return whole.split(list(sizes))[rank]


def csr(pairs: Tensor, weights: Tensor | None = None) -> Pairs:
    """Of a [M, N] bool matrix."""
    row, col = pairs.nonzero(as_tuple=True)
    indptr = torch.searchsorted(row, torch.arange(pairs.shape[0] + 1))
    return Pairs(indptr, col, None if weights is None else weights[row, col])


@dataclass
class Problem:
    """The tensors of the global batch: of the images, of the texts, or the same on all ranks (``shared``)."""

    images: tuple[int, ...]
    texts: tuple[int, ...]
    values: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sizes: tuple[int, ...],
        texts: tuple[int, ...] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Problem:
        texts = sizes if texts is None else texts
        generator = torch.Generator().manual_seed(seed)
        m, n = sum(sizes), sum(texts)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        made = cls(sizes, texts)
        base = normal(max(m, n), 12)
        made.add("images", "image_embeds", (base[:m] + 0.7 * normal(m, 12)).to(dtype))
        made.add("texts", "text_embeds", (base[:n] + 0.7 * normal(n, 12)).to(dtype))
        made.add(
            "shared",
            "logit_scale",
            torch.tensor(6.0, dtype=torch.float64).to(dtype if dtype == torch.float64 else torch.float32),
        )
        made.add("images", "image_ids", torch.randint(0, max(m // 2, 1), (m,), generator=generator))
        made.add("texts", "text_ids", torch.randint(0, max(m // 2, 1), (n,), generator=generator))
        made.add("images", "weights", torch.rand(m, generator=generator, dtype=torch.float64))
        made.add("images", "image_guides", normal(m, 5).to(dtype))
        made.add("texts", "text_guides", normal(n, 5).to(dtype))
        made.add("images", "pairs", torch.rand(m, n, generator=generator) < 0.15)
        made.add("images", "pair_weights", torch.rand(m, n, generator=generator, dtype=torch.float64) + 0.2)
        made.add("shared", "extra", normal(4, 12).to(dtype))
        return made

    @classmethod
    def of_tokens(cls, sizes: tuple[int, ...], patches: int = 4, tokens: int = 5, width: int = 6) -> Problem:
        """Images as patches and ragged captions as tokens, some of both without a valid one; in float64."""
        generator = torch.Generator().manual_seed(0)
        made, batch = cls(sizes, sizes), sum(sizes)
        for kind, side, count in (("images", "image", patches), ("texts", "text", tokens)):
            value = torch.randn(batch, count, width, generator=generator, dtype=torch.float64)
            lengths = torch.randint(0, count + 1, (batch, 1), generator=generator)
            made.add(kind, f"{side}_embeds", value)
            made.add(kind, f"{side}_mask", torch.arange(count) < lengths)
        made.add("shared", "logit_scale", torch.tensor(6.0, dtype=torch.float64))
        return made

    def add(self, kind: str, name: str, value: Tensor) -> None:
        self.kinds[name], self.values[name] = kind, value

    def part(self, name: str, rank: int | None) -> Tensor:
        """Of a rank, or of all."""
        value = self.values[name]
        if rank is None or self.kinds[name] == "shared":
            return value
        return of_rank(value, self.images if self.kinds[name] == "images" else self.texts, rank)

    def options(self, kinds: str, rank: int | None) -> dict[str, Any]:
        """Arguments by keyword, of a rank or of the single process."""
        found: dict[str, Any] = {}
        exclude: list[Any] = []
        part = lambda name: self.part(name, rank)  # noqa: E731
        for kind in kinds.split():
            name, _, value = kind.partition("=")
            if name == "labels":
                found["targets"] = Labels(part("image_ids"), part("text_ids"))
            elif name == "padded-labels":
                found["targets"] = Labels(*(part(x).masked_fill(part(x) == 1, -1) for x in ("image_ids", "text_ids")))
            elif name == "pairs":
                found["targets"] = csr(part("pairs"))
            elif name == "weighted-pairs":
                found["targets"] = csr(part("pairs"), part("pair_weights"))
            elif name == "ids":
                exclude.append(Ids(part("image_ids"), part("text_ids")))
            elif name == "own-ids":  # one tensor: text i has the id of image i
                ids = part("image_ids").masked_fill(part("image_ids") == 1, -1)
                exclude.append(Ids(ids, ids))
            elif name == "without-pairs":
                exclude.append(csr(part("pairs").flip(1)))
            elif name == "above":
                exclude.append(
                    Above(part("image_guides"), part("text_guides"), part("weights").to(part("image_guides").dtype))
                )
            elif name == "teacher":
                found["teacher"] = Teacher(part("image_guides"), part("text_guides"), 3.0)
            elif name in ("image_mask", "text_mask"):
                found[name] = part(name)
            elif name == "weights":
                found["weights"] = part("weights")
            elif name in ("extra_texts", "extra_images"):
                found[name] = part("extra")
            else:
                found[name] = float(value) if value.replace(".", "").isdigit() else value
        if exclude:
            found["exclude"] = exclude
        return found


LEAVES = ("image_embeds", "text_embeds", "logit_scale")


def leaves(problem: Problem, rank: int | None, frozen: tuple[str, ...] = ()) -> dict[str, Tensor]:
    made = {name: problem.part(name, rank).detach().clone() for name in LEAVES}
    return {name: x.requires_grad_(name not in frozen) for name, x in made.items()}


def mean_of_ranks(x: Tensor, here: Here) -> Tensor:
    """As DDP makes it."""
    total = x.detach().clone()
    dist.all_reduce(total, group=here.group)
    return total / here.size


def off(actual: Tensor | None, expected: Tensor | None) -> float:
    """The largest error, relative to the largest number (or to 1e-3, where all are small)."""
    if expected is None or actual is None:
        assert actual is expected
        return 0.0
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    assert bool(actual.isfinite().all())
    return float((actual.double() - expected.double()).abs().max() / max(float(expected.abs().max()), 1e-3))


Loss = Callable[..., Tensor]


def compare(
    loss: Loss,
    problem: Problem,
    kinds: str,
    here: Here,
    backend: str,
    frozen: tuple[str, ...] = (),
    gradients: str = "mean",
    exchange: str = "gather",
    **given: Any,
) -> float:
    """How far loss and gradients of the ranks are, after an average (or sum) over ranks, from the single process's."""
    whole = leaves(problem, None, frozen)
    truth = loss(**whole, **problem.options(kinds, None), **given, backend="eager")
    truth.backward()
    own = leaves(problem, here.rank, frozen)
    options = {"group": here.group, "gradients": gradients, "backend": backend}
    if exchange != "gather":
        options["exchange"] = exchange
    found = loss(**own, **problem.options(kinds, here.rank), **given, **options)
    found.backward()
    errors = [off(found.detach(), truth.detach())]
    every = [torch.empty_like(found) for _ in range(here.size)]
    dist.all_gather(every, found.detach(), group=here.group)
    assert all(torch.equal(x, every[0]) for x in every), "ranks return different numbers"
    for name, leaf in own.items():
        if name in frozen:
            assert leaf.grad is None
            continue
        assert leaf.grad is not None
        expected, grad = whole[name].grad, leaf.grad
        assert expected is not None
        if problem.kinds[name] == "shared":
            grad = mean_of_ranks(grad, here) * here.size if gradients == "sum" else grad  # the mean on every rank
        else:
            sizes = problem.images if problem.kinds[name] == "images" else problem.texts
            expected = of_rank(expected, sizes, here.rank)
            grad = grad / (here.size if gradients == "mean" else 1)
        # each relative to the largest of the whole gradient: a rank may have the smallest
        scale = float(whole[name].grad.abs().max())
        if expected.numel():
            errors.append(float((grad - expected).abs().max()) / max(scale, 1e-3))
    return max(errors)

"""contrastive_loss and sigmoid_loss with all arguments, as dense [M, N] matrices; inputs to try them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import Above, Ids, Labels, Pairs, Teacher

B, D, K, Q = 7, 12, 5, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def csr(pairs: dict[int, Sequence[int]], rows: int, weights: Sequence[float] | None = None) -> Pairs:
    counts = [len(pairs.get(i, ())) for i in range(rows)]
    indices = [j for i in range(rows) for j in sorted(pairs.get(i, ()))]
    return Pairs(
        torch.tensor([0, *counts]).cumsum(0),
        torch.tensor(indices, dtype=torch.int64),
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )


def dense(pairs: Pairs, shape: tuple[int, int]) -> Tensor:
    found = torch.zeros(shape, dtype=torch.float64)
    for i in range(shape[0]):
        for e in range(int(pairs.indptr[i]), int(pairs.indptr[i + 1])):
            found[i, pairs.indices[e]] = 1.0 if pairs.weights is None else pairs.weights[e]
    return found


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T


class Definition:
    """A loss with [M, N] matrices: who is a target, who a candidate, who is padding."""

    def __init__(self, images: Tensor, texts: Tensor, options: dict[str, Any]) -> None:
        m, n = len(images), len(texts)
        targets, exclude = options.get("targets"), options.get("exclude")
        self.options = options
        self.there = [torch.ones(m, dtype=torch.bool), torch.ones(n, dtype=torch.bool)]
        out = torch.zeros(m, n, dtype=torch.bool)
        ids: Labels | Ids | None = targets if isinstance(targets, Labels) else None
        for each in [exclude] if isinstance(exclude, (Ids, Pairs, Above)) else exclude or []:
            if isinstance(each, Ids):
                ids = each
                out |= each.rows[:, None] == each.cols
            elif isinstance(each, Pairs):
                out |= dense(each, (m, n)) > 0
            else:
                threshold = torch.as_tensor(each.threshold).reshape(-1, 1)
                out |= cosines(each.rows.double(), each.cols.double()) > threshold
        if ids is not None:
            self.there = [ids.rows != -1, ids.cols != -1]
        whole = self.there[0][:, None] & self.there[1]
        if targets is None:
            hard = torch.eye(m, n, dtype=torch.float64)
        elif isinstance(targets, Pairs):
            hard = dense(Pairs(targets.indptr, targets.indices), (m, n))
        else:
            hard = (targets.rows[:, None] == targets.cols).double()
        kept = not isinstance(targets, Labels) and options.get("teacher") is None
        self.positive = (hard > 0) & whole & (kept | ~out)
        self.part = whole & (~out | (self.positive if kept else False))
        self.weights = None
        if isinstance(targets, Pairs) and targets.weights is not None:
            self.weights = dense(targets, (m, n))

    def one_way(self, logits: Tensor, side: int, teacher: Tensor | None) -> Tensor:
        """[items]; logits have an item per row, extra candidates behind the others."""
        o = self.options
        turn = (lambda x: x) if side == 0 else (lambda x: x.T)
        part, positive = turn(self.part), turn(self.positive)
        extra = logits.shape[1] - part.shape[1]
        there = self.there[side][:, None].expand(-1, extra)
        part, positive = torch.cat([part, there], 1), F.pad(positive, (0, extra))
        candidates, target = part.double(), positive.double()
        if self.weights is None:
            target = target / target.sum(1, keepdim=True).clamp(min=1)
        else:
            target = target * F.pad(turn(self.weights), (0, extra))
        mass = target.sum(1, keepdim=True)
        smoothing, alpha = o.get("label_smoothing", 0.0), o.get("alpha", 0.0)
        target = (1 - smoothing) * target + smoothing * mass * candidates / candidates.sum(1, keepdim=True).clamp(min=1)
        if teacher is not None:
            soft = teacher.masked_fill(~part, -torch.inf).softmax(1).nan_to_num(0.0)
            target = (1 - alpha) * target + alpha * soft
        masked = logits.masked_fill(~part, -torch.inf)
        log_p = torch.where(part, masked - masked.logsumexp(1, keepdim=True), 0.0)
        return -(target * log_p).sum(1)

    def reduced(self, losses: list[Tensor], sides: list[int]) -> Tensor:
        weights, reduction = self.options.get("weights"), self.options.get("reduction", "mean")
        found = []
        for side, x in zip(sides, losses):
            x = x if weights is None else weights * x
            total = {"mean": x.sum() / self.there[side].sum(), "sum": x.sum(), "none": x}
            found.append(total[reduction])
        return torch.stack(found).mean(0)


def softmax_definition(images: Tensor, texts: Tensor, scale: Tensor, **options: Any) -> Tensor:
    definition = Definition(images, texts, options)
    direction, teacher = options.get("direction", "both"), options.get("teacher")
    sides = [i for i, other in enumerate(("text_to_image", "image_to_text")) if direction != other]
    losses = []
    for side in sides:
        own, others = (images, texts) if side == 0 else (texts, images)
        extra = options.get("extra_texts" if side == 0 else "extra_images")
        others = others if extra is None else torch.cat([others, extra.detach()])
        taught = None
        if teacher is not None:
            mine, theirs = (teacher.rows, teacher.cols) if side == 0 else (teacher.cols, teacher.rows)
            taught = teacher.scale * cosines(mine[: len(own)], theirs[: len(others)]).detach()
        losses.append(definition.one_way(scale * cosines(own, others), side, taught))
    return definition.reduced(losses, sides)


def sigmoid_definition(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, **options: Any) -> Tensor:
    definition = Definition(images, texts, options)
    logits = scale * cosines(images, texts) + bias
    weights = definition.positive.double() if definition.weights is None else definition.weights
    positive = -weights * definition.positive * F.logsigmoid(logits)
    negative = -(definition.part & ~definition.positive).double() * F.logsigmoid(-logits)
    return definition.reduced([(positive + negative).sum(1)], [0])


IMAGES, TEXTS = normal(B, D), normal(B, D) + normal(B, D, seed=1)
WIDE = torch.cat([TEXTS, normal(3, D, seed=2)])  # [B + 3, D]
GUIDE = (normal(B, K), normal(B, K, seed=3))
IDS = torch.tensor([0, 1, 0, 2, 3, 3, 4])
PADDED = torch.tensor([0, 1, 0, 2, -1, 3, -1])
OTHER = torch.tensor([5, 1, 0, 0, 3, -1, 2])
UNEVEN = {0: [0, 3, 5], 1: [1], 3: [0, 2], 4: [4], 6: [5, 6]}  # row 2 and 5, column 1 ... with one or no positive
LABELS = Labels(IDS, torch.tensor([0, 0, 1, 2, 2, 5, 5]))  # some have no partner
OUT = csr({0: [1, 2], 1: [1], 4: [0, 5], 5: [6]}, B)
QUEUES = {"extra_texts": normal(Q, D, seed=4), "extra_images": normal(Q + 1, D, seed=5)}
WEIGHTS = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.5, 0.1, 0.7], dtype=torch.float64)
TEACHER = Teacher(*GUIDE, 3.0)
ABOVE = Above(*GUIDE, 0.2)

"""The losses of docs/losses.md as their papers define them: dense, in PyTorch, written independently of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import TokenReduction, TokenSelection
from tests.ops.alignment.papers import DEFINITIONS as WITHIN_PAIRS
from tests.ops.attention_pooling.papers import DEFINITIONS as POOLED
from tests.ops.contrastive.dense import cosines

BATCH, CAPTIONS, WIDTH, QUEUE, CLASSES, GUIDE = 6, 3, 10, 4, 9, 5


def draw(dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, Any]:
    """What a block of the page may name; pairs are matched (cosines around 0.7), and what learns needs gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images = normal(BATCH, WIDTH)
    near = lambda x: x + 0.8 * normal(*x.shape)  # noqa: E731
    learned = {
        "images": images,
        "texts": near(images),
        "captions": near(images.repeat_interleave(CAPTIONS, 0)),
        "view_1": near(images),
        "view_2": near(images),
        "centres": normal(CLASSES, WIDTH),
        "scale": torch.tensor(4.0),
        "bias": torch.tensor(-2.0),
    }
    fixed = {
        "images_m": near(images),
        "texts_m": near(images),
        "images_queue": normal(QUEUE, WIDTH),
        "texts_queue": normal(QUEUE, WIDTH),
        "teacher_images": normal(BATCH, GUIDE),
        "teacher_texts": normal(BATCH, GUIDE),
        "bank_of_images": normal(11, WIDTH),
        "bank_of_texts": normal(11, WIDTH),
        "weights": torch.rand(BATCH, generator=generator),
        "u_images": 0.1 + torch.rand(BATCH, generator=generator),
        "u_texts": 0.1 + torch.rand(BATCH, generator=generator),
    }
    whole = {
        "idx": torch.tensor([0, 1, 0, 2, 3, 2]),
        "labels": torch.tensor([4, 0, 4, 8, 4, 2]),  # of the centres too; the last two anchors are alone
        "positives": torch.stack([torch.randperm(CLASSES, generator=generator)[:2].sort().values for _ in images]),
        "index": torch.randint(11, (BATCH,), generator=generator),
    }
    learned |= {name: images[:, None] + normal(BATCH, 5, WIDTH) for name in ("patches", "tokens", "subcaptions")}
    models = {"reduction": TokenReduction(WIDTH, 3, groups=2), "selection": TokenSelection(WIDTH, 3)}
    for model in models.values():
        for parameter in model.parameters():
            parameter.data.copy_(normal(*parameter.shape) / WIDTH**0.5)
    whole["token_mask"] = torch.arange(5) < torch.tensor([5, 1, 3, 4, 2, 5])[:, None]
    whole["subcaption_mask"] = torch.arange(5) < torch.tensor([3, 5, 1, 2, 5, 4])[:, None]
    fixed |= {f"attention_of_{name}": torch.rand(BATCH, 5, generator=generator) for name in ("patches", "words")}
    fixed["targets"] = normal(BATCH, 5, WIDTH)
    numbers: dict[str, Any] = {
        "k": CAPTIONS,
        "gamma": 0.3,
        "rho": 6.0,
        "beta": 0.7,
        "tau_plus": 0.05,
        "teacher_scale": 3.0,
    }
    numbers["decode"] = lambda visible, tokens: visible + (visible + tokens).mean(1, keepdim=True)
    whole["matched"] = torch.tensor([True, False, True, True, False, True])
    return {
        **{name: x.to(device, dtype).requires_grad_() for name, x in learned.items()},
        **{name: x.to(device, dtype) for name, x in fixed.items()},
        **{name: x.to(device) for name, x in whole.items()},
        **{name: model.to(device, dtype) for name, model in models.items()},
        **numbers,
    }


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of -sum(target * log_softmax)."""
    return -(target * logits.log_softmax(1)).sum(1).mean()


def both_ways(logits: Tensor, target: Tensor) -> Tensor:
    """Targets normalised over rows, and over columns for the other direction."""
    rows, cols = (t / t.sum(1, keepdim=True).clamp(min=1e-9) for t in (target, target.T))
    return (soft_cross_entropy(logits, rows) + soft_cross_entropy(logits.T, cols)) / 2


def eye(x: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=torch.float64)


def belonging(x: dict[str, Any]) -> Tensor:
    """[B, B k]: the captions of each image."""
    return eye(x["images"]).repeat_interleave(x["k"], 1)


def clip(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"])
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def siglip(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"]) + x["bias"]
    return -F.logsigmoid((2 * eye(logits) - 1) * logits).sum() / len(logits)


def siglip_captions(x: dict[str, Any]) -> Tensor:
    logits, mine = x["scale"] * cosines(x["images"], x["captions"]) + x["bias"], belonging(x)
    return -(mine / x["k"] * F.logsigmoid(logits) + (1 - mine) * F.logsigmoid(-logits)).sum() / len(logits)


def alip(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"])
    target = torch.arange(len(logits))
    each = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
    return (x["weights"] * each / 2).mean()


def label_smoothing(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"])
    target = torch.arange(len(logits))
    return torch.stack([F.cross_entropy(z, target, label_smoothing=0.1) for z in (logits, logits.T)]).mean()


def albef(x: dict[str, Any]) -> Tensor:
    def one_way(own: str, other: str) -> Tensor:
        candidates = torch.cat([x[f"{other}_m"], x[f"{other}_queue"]])
        with torch.no_grad():
            soft = (x["scale"] * cosines(x[f"{own}_m"], candidates)).softmax(1)
            target = 0.4 * soft + 0.6 * F.pad(eye(soft), (0, QUEUE))
        return soft_cross_entropy(x["scale"] * cosines(x[own], candidates), target)

    return (one_way("images", "texts") + one_way("texts", "images")) / 2


def by_idx(x: dict[str, Any]) -> Tensor:
    same = (x["idx"][:, None] == x["idx"]).double()
    return both_ways(x["scale"] * cosines(x["images"], x["texts"]), same)


def one_to_k(x: dict[str, Any]) -> Tensor:
    logits, mine = x["scale"] * cosines(x["images"], x["captions"]), belonging(x)
    return (soft_cross_entropy(logits, mine) + soft_cross_entropy(logits.T, mine.T)) / 2 / x["k"]


def unicl(x: dict[str, Any]) -> Tensor:
    same = (x["labels"][:, None] == x["labels"]).double()
    return both_ways(x["scale"] * cosines(x["images"], x["texts"]), same)


def supcon(x: dict[str, Any]) -> Tensor:
    views, labels = torch.cat([x["view_1"], x["view_2"]]), x["labels"].repeat(2)
    total = torch.zeros((), dtype=torch.float64)
    similar = x["scale"] * cosines(views, views)
    for i in range(len(views)):
        others = [a for a in range(len(views)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        normaliser = torch.logsumexp(similar[i, others], 0)
        if positives:
            total = total - sum(similar[i, p] - normaliser for p in positives) / len(positives)
    return total / len(views)


def dreamlip(x: dict[str, Any]) -> Tensor:
    return both_ways(x["scale"] * cosines(x["images"], x["captions"]), belonging(x))


def laclip(x: dict[str, Any]) -> Tensor:
    return sum(clip({**x, "texts": x["captions"][i :: x["k"]]}) for i in range(x["k"])) / x["k"]


def distillation(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"])
    teacher = x["teacher_scale"] * cosines(x["teacher_images"], x["teacher_texts"])
    soft = soft_cross_entropy(logits, teacher.softmax(1)) + soft_cross_entropy(logits.T, teacher.T.softmax(1))
    return clip(x) + soft / 2


def icsd(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"])
    targets = (x["teacher_scale"] * cosines(y, y) for y in (x["teacher_images"], x["teacher_texts"]))
    of_images, of_texts = (y.softmax(1) for y in targets)
    return soft_cross_entropy(logits, of_images) + soft_cross_entropy(logits.T, of_texts)


def unime(x: dict[str, Any]) -> Tensor:
    similar = cosines(x["images"], x["texts"])
    allowed = similar.detach().clone()
    positive = allowed.diagonal().clone()
    allowed[allowed > positive[:, None] + 0.1] = -torch.inf
    allowed.fill_diagonal_(-torch.inf)
    losses = []
    for i in range(len(similar)):
        hard = [int(j) for j in allowed[i].argsort(descending=True)[: x["k"]] if allowed[i, j] > -torch.inf]
        losses.append(torch.logsumexp(x["scale"] * similar[i, [i, *hard]], 0) - x["scale"] * similar[i, i])
    return torch.stack(losses).mean()


def filtered(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["texts"])
    out = (cosines(x["teacher_images"], x["teacher_texts"]) > 0.3) & (eye(logits) == 0)
    assert out.any(1).sum() > 1
    target, logits = torch.arange(len(logits)), logits.masked_fill(out, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def infoloob(x: dict[str, Any]) -> Tensor:
    ratio = (x["scale"] * cosines(x["images"], x["texts"])).exp()
    negatives = ratio * (1 - eye(ratio))
    return -((ratio.diagonal() / negatives.sum(1)).log() + (ratio.diagonal() / negatives.sum(0)).log()).mean() / 2


def dcl(x: dict[str, Any]) -> Tensor:
    views = torch.cat([x["view_1"], x["view_2"]])
    similar, size = x["scale"] * cosines(views, views), len(x["view_1"])
    total = torch.zeros((), dtype=torch.float64)
    for i in range(2 * size):
        negatives = [j for j in range(2 * size) if j % size != i % size]
        total = total - similar[i, (i + size) % (2 * size)] + similar[i, negatives].exp().sum().log()
    return total / (2 * size)


def cloob(x: dict[str, Any]) -> Tensor:
    images, texts = F.normalize(x["images"], dim=-1), F.normalize(x["texts"], dim=-1)

    def retrieved(state: Tensor, stored: Tensor) -> Tensor:
        return F.normalize((x["beta"] * state @ stored.T).softmax(1) @ stored, dim=-1)

    def loob(anchors: Tensor, samples: Tensor) -> Tensor:
        similar = x["scale"] * anchors @ samples.T
        left = similar.masked_fill(eye(similar) == 1, -torch.inf)
        return (left.logsumexp(1) - similar.diagonal()).mean() / x["scale"]

    return loob(retrieved(images, images), retrieved(texts, images)) + loob(
        retrieved(texts, texts), retrieved(images, texts)
    )


def sogclr(x: dict[str, Any]) -> Tensor:
    similar, scale, size = cosines(x["images"], x["texts"]), x["scale"], BATCH
    difference = similar - similar.diagonal()[:, None], similar.T - similar.diagonal()[:, None]
    g = [((scale * d).exp() * (1 - eye(d))).sum(1) / (size - 1) for d in difference]
    u = [(1 - x["gamma"]) * old + x["gamma"] * new.detach() for old, new in zip((x["u_images"], x["u_texts"]), g)]
    features = (g[0] / u[0] + g[1] / u[1]).mean() / scale.detach()
    return features + x["rho"] / scale + (u[0].log() + u[1].log()).mean() / 2 / scale


def hcl(x: dict[str, Any]) -> Tensor:
    views = torch.cat([x["view_1"], x["view_2"]])
    size = len(x["view_1"])
    ratio = (x["scale"] * cosines(views, views)).exp()
    other = torch.arange(2 * size) % size
    keep = (other[:, None] != other).double()
    count = 2 * size - 2
    positive = ratio[torch.arange(2 * size), torch.arange(2 * size).roll(size)]
    importance = ratio ** x["beta"] * keep
    reweighted = (importance * ratio).sum(1) / (importance.sum(1) / count)
    negatives = (reweighted - x["tau_plus"] * count * positive) / (1 - x["tau_plus"])
    negatives = torch.maximum(negatives, count * (-x["scale"]).exp())
    return -(positive / (positive + negatives)).log().mean()


def mlcd(x: dict[str, Any]) -> Tensor:
    logits = x["scale"] * cosines(x["images"], x["centres"])
    losses = []
    for z, mine in zip(logits, x["positives"].tolist()):
        others = [c for c in range(CLASSES) if c not in mine]
        losses.append((1 + z[others].exp().sum()).log() + (1 + (-z[mine]).exp().sum()).log())
    return torch.stack(losses).mean()


def margins(x: dict[str, Any]) -> Tensor:
    similar = cosines(x["images"], x["centres"])
    mine = F.one_hot(x["labels"], CLASSES).double()
    cosface = similar - 0.35 * mine
    arcface = torch.where(mine == 1, (similar.acos() + 0.5).cos(), similar)
    return F.cross_entropy(x["scale"] * cosface, x["labels"]) + F.cross_entropy(x["scale"] * arcface, x["labels"])


def creamfl(x: dict[str, Any]) -> Tensor:
    return F.cross_entropy(cosines(x["images"], x["bank_of_texts"]) / 0.5, x["index"]) + F.cross_entropy(
        cosines(x["texts"], x["bank_of_images"]) / 0.5, x["index"]
    )


def cyclip(x: dict[str, Any]) -> Tensor:
    images, texts = x["images"], x["texts"]
    across = cosines(images, texts)
    cross_modal = (across - across.T).square().sum() / len(across)
    in_modal = (cosines(images, images) - cosines(texts, texts)).square().sum() / len(across)
    return clip(x) + 0.25 * in_modal + 0.25 * cross_modal


def nt_xent(x: dict[str, Any]) -> Tensor:
    views, size = torch.cat([x["view_1"], x["view_2"]]), len(x["view_1"])
    similar = (x["scale"] * cosines(views, views)).masked_fill(torch.eye(2 * size) == 1, -torch.inf)
    return F.cross_entropy(similar, torch.arange(2 * size).roll(size))


def filip(x: dict[str, Any], gates: Tensor | None = None) -> Tensor:
    """Section 3.1, pair by pair: L = 1/2 sum_k (L_k^I + L_k^T) / b; cosines times the gate of their patch."""
    images, texts = (F.normalize(x[name], dim=-1) for name in ("patches", "tokens"))
    of_images, of_texts = (x["scale"].new_zeros(BATCH, BATCH) for _ in range(2))
    for i in range(BATCH):
        for j in range(BATCH):
            similarities = images[i] @ texts[j][x["token_mask"][j]].T  # [patches, tokens]
            if gates is not None:
                similarities = gates[i][:, None] * similarities
            of_images[i, j] = similarities.max(1).values.mean()
            of_texts[i, j] = similarities.max(0).values.mean()
    total = x["scale"].new_zeros(())
    for k in range(BATCH):
        row, column = (x["scale"] * of_images[k]).exp(), (x["scale"] * of_texts[:, k]).exp()
        total = total - (row[k] / row.sum()).log() - (column[k] / column.sum()).log()
    return total / (2 * BATCH)


def wukong(x: dict[str, Any]) -> Tensor:
    """FILIP's loss of sums of patches: token k takes softmax over patches of (W_2 W_1 norm(x))_k of each W_3 x."""
    first, second, values = (
        layer.weight.flatten(1) for layer in (*x["reduction"].attention_maps, x["reduction"].feat_conv)
    )
    whole = [torch.block_diag(*weight.chunk(x["reduction"].groups)) for weight in (first, values)]
    norm = x["reduction"].norm
    normal = F.layer_norm(x["patches"], (WIDTH,), norm.weight, norm.bias)
    shares = (normal @ whole[0].T @ second.T).exp()  # [B, P, K]
    reduced = torch.einsum("bpk,bpd->bkd", shares / shares.sum(1, keepdim=True), x["patches"] @ whole[1].T)
    return filip({**x, "patches": reduced})


def of_selected(x: dict[str, Any]) -> Tensor:
    weight = x["selection"].weight
    scores = F.normalize(x["patches"], dim=-1) @ (weight / weight.norm())
    best = scores.argsort(1, descending=True)[:, : x["selection"].tokens]
    rows = torch.arange(BATCH)[:, None]
    return filip({**x, "patches": x["patches"][rows, best]}, 1 / (1 + (-scores[rows, best]).exp()))


# By the headings of the page.
DEFINITIONS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "CLIP": clip,
    "SigLIP": siglip,
    "SigLIP, several captions": siglip_captions,
    "LiT": lambda x: clip({**x, "images": x["images"].detach()}),
    "ALIP": alip,
    "Label smoothing": label_smoothing,
    "ALBEF": albef,
    "X-VLM": by_idx,
    "1-to-K": one_to_k,
    "UniCL": unicl,
    "SupCon": supcon,
    "DreamLIP": dreamlip,
    "LaCLIP": laclip,
    "DistillClipLoss": distillation,
    "ICSD": icsd,
    "UniME": unime,
    "False-negative filter": filtered,
    "DCL": dcl,
    "InfoLOOB": infoloob,
    "CLOOB": cloob,
    "SogCLR": sogclr,
    "HCL": hcl,
    "MLCD": mlcd,
    "Margins": margins,
    "CreamFL": creamfl,
    "CyCLIP": cyclip,
    "NT-Xent": nt_xent,
    "FILIP": filip,
    "Wukong": wukong,
    "Token selection": of_selected,
    **POOLED,
    **WITHIN_PAIRS,
}
LEARNED = (
    "images",
    "texts",
    "captions",
    "view_1",
    "view_2",
    "centres",
    "scale",
    "bias",
    "patches",
    "tokens",
    "subcaptions",
)

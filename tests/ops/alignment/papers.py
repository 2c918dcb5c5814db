"""The losses of docs/losses.md within pairs as their papers define them: pair by pair, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.contrastive.dense import cosines


def subcaption_grouping_of(
    patch_embeds: Tensor,
    subcaption_embeds: Tensor,
    subcaption_mask: Tensor,
    patch_mask: Tensor,
    logit_scale: Tensor,
    similarity_threshold: float,
    negatives: str,
) -> Tensor:
    """DreamLIP: t against sum_n w_n v_n, w the min-max cosines of t and v_n, cut and normalised."""
    groups, texts, image_of = [], [], []
    for i in range(len(patch_embeds)):
        patches = F.normalize(patch_embeds[i][patch_mask[i]], dim=-1)
        for text in subcaption_embeds[i][subcaption_mask[i]]:
            similar = patches @ F.normalize(text, dim=0)
            weights = (similar - similar.min()) / (similar.max() - similar.min())
            weights = torch.where(weights >= similarity_threshold, weights, 0.0)
            groups.append((weights / weights.sum()) @ patches)
            texts.append(text)
            image_of.append(i)
    logits = logit_scale * cosines(torch.stack(texts), torch.stack(groups))
    if negatives == "image":
        same = torch.tensor(image_of)[:, None] == torch.tensor(image_of)
        logits = logits.masked_fill(~same, -torch.inf)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def mgca_of(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor,
    text_mask: Tensor,
    image_weights: Tensor | None,
    text_weights: Tensor | None,
    logit_scale: Tensor,
    attention_scale: float,
    direction: str,
) -> Tensor:
    """Token-wise alignment, pair by pair and query by query."""
    total, count = logit_scale.new_zeros(()), 0
    for i in range(len(image_tokens)):
        images, texts = image_tokens[i][image_mask[i]], text_tokens[i][text_mask[i]]
        if len(images) == 0 or len(texts) == 0:
            continue
        count += 1
        for name, queries, keys, weights, mask in (
            ("text_to_image", texts, images, text_weights, text_mask),
            ("image_to_text", images, texts, image_weights, image_mask),
        ):
            if direction not in ("both", name):
                continue
            share = torch.ones(len(queries), dtype=torch.float64) if weights is None else weights[i][mask[i]]
            keys = F.normalize(keys, dim=-1)
            contexts = [(attention_scale * keys @ F.normalize(query, dim=0)).softmax(0) @ keys for query in queries]
            logits = logit_scale * cosines(queries, torch.stack(contexts))
            target = torch.arange(len(queries))
            each = F.cross_entropy(logits, target, reduction="none")
            each = (each + F.cross_entropy(logits.T, target, reduction="none")) / 2
            total = total + (share / share.sum() * each).sum()
    return total / count


def subcaptions(x: dict[str, Any]) -> Tensor:
    every = torch.ones(x["patches"].shape[:2], dtype=torch.bool)
    return subcaption_grouping_of(
        x["patches"],
        x["subcaptions"],
        x["subcaption_mask"],
        every,
        x["scale"],
        similarity_threshold=0,
        negatives="batch",
    )


def mgca(x: dict[str, Any]) -> Tensor:
    every = torch.ones(x["patches"].shape[:2], dtype=torch.bool)
    weights = (x["attention_of_patches"], x["attention_of_words"])
    scales = (torch.tensor(10.0, dtype=torch.float64), 10.0)
    return mgca_of(x["patches"], x["tokens"], every, x["token_mask"], *weights, *scales, "both")


def sycoca(x: dict[str, Any]) -> Tensor:
    """Mean square over the hidden half; 2.5 of 5 patches are 2, rounded to even."""
    squares = []
    for i in range(len(x["patches"])):
        words = x["tokens"][i][x["token_mask"][i]]
        hidden = cosines(x["patches"][i], words).max(1).values.topk(2).indices
        seen = [patch for p, patch in enumerate(x["patches"][i]) if p not in hidden.tolist()]
        restored = sum(seen, x["tokens"][i].sum(0)) / 5
        squares.append((restored - x["targets"][i][hidden]).square())
    return torch.stack(squares).mean()


def uniter(x: dict[str, Any]) -> Tensor:
    """Section 3.3 and the public code's loop: 50 proximal steps at beta 0.5, with the plan as a constant."""
    images, texts = (F.normalize(x[name], dim=-1) for name in ("patches", "tokens"))
    loss = x["scale"].new_zeros(())
    for i in range(len(x["patches"])):
        cost = 1 - texts[i][x["token_mask"][i]] @ images[i].T  # [words, patches]
        plan, words = torch.ones_like(cost), torch.full_like(cost[:, 0], 1 / len(cost))
        for _ in range(50):
            scaled = (-cost.detach() / 0.5).exp() * plan
            patches = 1 / (cost.shape[1] * (words @ scaled))
            words = 1 / (len(cost) * (scaled @ patches))
            plan = words[:, None] * scaled * patches
        loss = loss + (1 if x["matched"][i] else -1) * (cost * plan).sum() / len(x["patches"])
    return loss


# By the headings of the page.
DEFINITIONS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "DreamLIP, grouping": subcaptions,
    "MGCA": mgca,
    "SyCoCa": sycoca,
    "UNITER": uniter,
}

"""The losses of docs/losses.md on attention-pooled scores as their sources define them: pair by pair, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return x @ y / (x.norm() * y.norm())


def matrix(images: Tensor, texts: Any, score: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """[images, texts]."""
    return torch.stack([torch.stack([score(image, text) for text in texts]) for image in images])


def both_ways(logits: Tensor) -> Tensor:
    """[2]: the mean of -log softmax of the diagonal, over rows and over columns."""
    each = [(z.diagonal() - z.exp().sum(1).log()).mean() for z in (logits, logits.T)]
    return -torch.stack(each)


def gloria(x: dict[str, Any], temp1: float = 4.0, temp2: float = 5.0) -> Tensor:
    """``local_loss`` of marshuang80/gloria: the sum of its two losses."""

    def score(regions: Tensor, words: Tensor) -> Tensor:
        products = (regions @ words.T).exp()  # [regions, words]
        attention = (temp1 * products / products.sum(1, keepdim=True)).exp()
        attention = attention / attention.sum(0)
        contexts = attention.T @ regions
        return (
            torch.stack([(temp2 * cosine(word, context)).exp() for word, context in zip(words, contexts)]).sum().log()
        )

    words = [tokens[mask] for tokens, mask in zip(x["tokens"], x["token_mask"])]
    return both_ways(x["scale"] * matrix(x["patches"], words, score)).sum()


def pacl(x: dict[str, Any], scale: float = 10.0, to_one: bool = False) -> Tensor:
    """Each caption weighs the patches of each image by the sigmoid, or the softmax, of their cosines."""

    def score(patches: Tensor, text: Tensor) -> Tensor:
        directions = patches / patches.norm(dim=1, keepdim=True)
        similarities = scale * directions @ (text / text.norm())
        weights = similarities.exp() / similarities.exp().sum() if to_one else 1 / (1 + (-similarities).exp())
        return cosine(text, weights @ directions)

    return both_ways(x["scale"] * matrix(x["patches"], x["texts"], score)).mean()


def flair(x: dict[str, Any], scale: float | None = None) -> Tensor:
    """With the empty token: a patch 0 that attention may fall on."""

    def score(patches: Tensor, text: Tensor) -> Tensor:
        patches = torch.cat([patches, torch.zeros_like(patches[:1])])
        attention = ((1 / len(text) ** 0.5 if scale is None else scale) * patches @ text).exp()
        return cosine(text, attention / attention.sum() @ patches)

    logits = x["scale"] * matrix(x["patches"], x["captions"], score) + x["bias"]
    mine = torch.eye(len(logits), dtype=logits.dtype).repeat_interleave(x["k"], 1)
    return (1 + (-(2 * mine - 1) * logits).exp()).log().sum() / len(logits)


# By the headings of the page.
DEFINITIONS: dict[str, Callable[[dict[str, Any]], Tensor]] = {"GLoRIA": gloria, "PACL": pacl, "FLAIR": flair}

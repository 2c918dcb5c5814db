"""Losses on the scores of images with captions, of this process or of this rank's images with the captions of all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.distributed import Spread, global_ratios
from sparc_kernels.functional._everyone import merged_logsumexp
from sparc_kernels.functional._positives import softplus


def symmetric_cross_entropy(image_scores: Tensor, text_scores: Tensor, scale: Tensor, spread: Spread | None) -> Tensor:
    """[]: the mean cross-entropy of all images and captions, caption i belonging to image i; 0 of an empty batch.

    Args:
        image_scores: [I, J]: the softmax of an image runs over its row.
        text_scores: [I, J]: that of a caption over its column.
        scale: [] of the logits.
        spread: of the columns: J are positions, of which those with a caption take part. None: J = I.
    """
    images = image_scores.shape[0]
    if spread is None:
        target = torch.arange(images, device=image_scores.device)
        sums = (F.cross_entropy(scale * each, target, reduction="sum") for each in (image_scores, text_scores.T))
        return sum(sums, start=scale.new_zeros(())) / (2 * max(images, 1))
    # The softmax of an image is here; what this rank's images give to that of a caption goes to the caption's rank.
    image_logits = (scale * image_scores).masked_fill(~spread.there(), -torch.inf)
    of_images = F.cross_entropy(image_logits, spread.own_positions(), reduction="sum")
    text_logits = scale * text_scores
    levels = merged_logsumexp(spread.parts(text_logits.logsumexp(0)))
    total = (of_images + levels.sum() - spread.own(text_logits.T).diagonal().sum())[None]
    return global_ratios(total, torch.full_like(total, 2 * images).detach(), spread.ranks)[0]


def sigmoid_of_pairs(
    scores: Tensor, scale: Tensor, bias: Tensor, captions_per_image: int, spread: Spread | None
) -> Tensor:
    """[]: the logistic losses of all pairs, by the number of images; 0 of an empty batch.

    Args:
        scores: [I, J].
        scale, bias: [] of the logits.
        captions_per_image: K: captions K i to K i + K - 1 are the positives of image i.
        spread: of the columns, as above. None: J = K I.
    """
    images, columns = scores.shape
    place = torch.arange(columns, device=scores.device)
    if spread is not None:  # of this rank's captions; another rank's are negative, or more than there are here
        place = place - spread.ranks.rank * spread.capacity
    belongs = (
        place.div(captions_per_image, rounding_mode="floor") == torch.arange(images, device=scores.device)[:, None]
    )
    logits = scale * scores + bias
    losses = softplus(torch.where(belongs, -logits, logits))
    if spread is None:
        return losses.sum() / max(images, 1)
    total = losses.masked_fill(~spread.there(), 0.0).sum()[None]
    return global_ratios(total, torch.full_like(total, images).detach(), spread.ranks)[0]

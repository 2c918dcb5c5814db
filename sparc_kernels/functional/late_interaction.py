"""Late interaction: every image meets every caption of the batch, token by token."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Fact, Group, Spread, global_ratios, ranks_of, replicated
from sparc_kernels.functional._candidates import checked_scale
from sparc_kernels.functional._captions import (
    Batch,
    check_flag,
    checked,
    refuse_traced,
    with_all_captions,
    without_padding,
)
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE, DIRECTIONS, recordable, wanted_directions
from sparc_kernels.functional._everyone import merged_logsumexp
from sparc_kernels.ops._captions.sizes import captions
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.late_interaction.autograd import MaxSimilarityFunction
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference
from sparc_kernels.ops.late_interaction.schema import MOST_ENTRIES

POOLINGS = ("mean", "sum")


class LateInteractionScores(NamedTuple):
    """What :func:`late_interaction_scores` returns, in the accumulation dtype; None for what was not asked for.

    With a group I are the images of this rank and J the captions of all ranks, those of rank 0 first.
    """

    image_scores: Tensor | None
    """[I, J], image to text: of each patch the similarity with its best token, pooled over the image's patches."""
    text_scores: Tensor | None
    """[I, J], text to image: of each token the similarity with its best patch, pooled over the caption's tokens."""


def late_interaction_scores(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    pooling: str = "mean",
    direction: str = "both",
    normalize: bool = True,
    group: Group = None,
    backend: str = "auto",
) -> LateInteractionScores:
    """Scores of all images with all captions by maxima over tokens, without the similarities of all their tokens.

    ``pooling="mean"`` gives the token-wise maximum similarity of FILIP (Yao et al., 2021), ``pooling="sum"`` with
    ``direction="text_to_image"`` the MaxSim of ColBERT and ColPali (Khattab and Zaharia, 2020), queries being the
    captions and documents the images. ``pooling`` speaks of the tokens whose best partner is looked for; the partner is
    always the one of largest similarity, the first one where several share it. Kept for the backward pass are its
    index, one byte per pair and token (two where the other side has more than 255), and the inputs.

    Args:
        image_tokens: [I, P, D] patch embeddings; float16, bfloat16, float32 or float64.
        text_tokens: [J, L, D] token embeddings of the same dtype and device, or packed [N, D] with ``cu_seqlens``.
        image_mask: [I, P] bool, True = valid; None = all are.
        text_mask: [J, L] bool, True = valid; None = all are. None where captions are packed.
        cu_seqlens: [J + 1] int32 or int64, rising from 0 to N: caption j is ``cu_seqlens[j]`` to ``cu_seqlens[j + 1]``.
        max_seqlen: the longest packed caption, or more (not looked at on a GPU). None: asked of ``cu_seqlens``, for
            which the host waits; it has to be given where the call is traced or transformed, and with meta tensors.
        pooling: ``"mean"`` over valid tokens, or their ``"sum"``.
        direction: ``"both"``, ``"image_to_text"`` (``image_scores`` alone) or ``"text_to_image"``.
        normalize: similarities are cosines; False: products of the embeddings as they are.
        group: ``"world"`` or a process group: this rank's images meet the captions of all its ranks, which are counted
            through from rank 0 on. Each rank comes with its own images and captions, of any number, and with masks or
            offsets of these; the length L is the same on all, of packed captions ``max_seqlen``, which has to be
            given. Gradients are those of the sum, over ranks, of what each rank makes of its scores: without the
            factor that an average over ranks needs (docs/distributed.md). On a GPU the host waits for the number of
            captions; not where the call is traced. None: this process alone.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        A :class:`LateInteractionScores`, in float32 (float64 for float64 embeddings). An image without a valid patch,
        or a caption without a valid token, scores 0 and has gradient 0. NaN in a valid token makes the scores of its
        image or caption NaN.

    Raises:
        TypeError: an argument is no tensor, or of another dtype than it has to be.
        ValueError: shapes, devices, offsets or options that do not fit, with the argument's name.
        NotImplementedError: the backend cannot serve the call, or ``group`` is given where it is traced.
    """
    wanted = wanted_directions(direction)
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be {' or '.join(map(repr, POOLINGS))}, got {pooling!r}")
    check_flag("normalize", normalize)
    ranks = ranks_of(group, "mean", "late_interaction_scores")
    batch = _checked(image_tokens, text_tokens, image_mask, text_mask, cu_seqlens, max_seqlen)
    backend = resolve("late_interaction", backend, batch.image_tokens.device, batch.image_tokens.dtype)
    if ranks is None:
        return _scores(batch, normalize, pooling == "mean", wanted, backend)
    refuse_traced("late_interaction_scores", group)
    facts: dict[str, Fact] = {
        "pooling": (pooling, POOLINGS),
        "direction": (direction, DIRECTIONS),
        "normalize": normalize,
    }
    batch, spread = with_all_captions(batch, max_seqlen, facts, ranks)
    found = _scores(batch, normalize, pooling == "mean", wanted, backend)
    return LateInteractionScores(*(None if x is None else without_padding(x, spread) for x in found))


def filip_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The loss of FILIP: symmetric cross-entropy on the scores of late interaction.

    "FILIP: Fine-grained Interactive Language-Image Pre-Training" (Yao et al., 2021, arXiv 2111.07783), section 3.1: the
    softmax of an image runs over its image-to-text scores with all captions, that of a caption over its text-to-image
    scores with all images; the mean of both cross-entropies, caption i belonging to image i. Gradients flow to both
    kinds of tokens and to ``logit_scale``.

    Args:
        image_tokens: [B, P, D], and all else, as in :func:`late_interaction_scores`.
        text_tokens: [B, L, D], or packed [N, D].
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        group: ``"world"`` or a process group: the loss is that of the batches of all its ranks, and each rank returns
            it (docs/distributed.md). What a rank comes with is said at :func:`late_interaction_scores`; the scale is
            the same on all. Can be traced. None: this process alone.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``. With
            ``"mean"`` the gradient of ``logit_scale`` is that of the loss on every rank.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`late_interaction_scores`; as many images as captions are
            needed.
    """
    ranks = ranks_of(group, gradients, "filip_loss")
    batch = _checked(image_tokens, text_tokens, image_mask, text_mask, cu_seqlens, max_seqlen)
    images, texts = batch.image_tokens.shape[0], captions(batch.text_tokens, batch.text_offsets)
    if images != texts:
        raise ValueError(
            f"text_tokens must hold as many captions as there are images, got {texts} captions and {images} images"
        )
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_tokens", batch.image_tokens), ranks)
    backend = resolve("late_interaction", backend, batch.image_tokens.device, batch.image_tokens.dtype)
    if ranks is not None:
        facts: dict[str, Fact] = {
            "image_tokens requires_grad": batch.image_tokens.requires_grad,
            "logit_scale requires_grad": scale.requires_grad,
        }
        batch, spread = with_all_captions(batch, max_seqlen, facts, ranks)
        total = _cross_entropies_of_everyone(_scores(batch, True, True, (True, True), backend), scale, spread)[None]
        return global_ratios(total, torch.full_like(total, 2 * images).detach(), ranks)[0]
    image_scores, text_scores = _scores(batch, True, True, (True, True), backend)
    assert image_scores is not None
    assert text_scores is not None
    target = torch.arange(images, device=image_scores.device)
    sums = (F.cross_entropy(scale * each, target, reduction="sum") for each in (image_scores, text_scores.T))
    return sum(sums, start=scale.new_zeros(())) / (2 * max(images, 1))


def _cross_entropies_of_everyone(scores: LateInteractionScores, scale: Tensor, spread: Spread) -> Tensor:
    """[]: the sum over this rank's images and captions, of scores with the captions at all positions.

    The softmax of an image is here; what this rank's images give to that of a caption goes to the caption's rank.
    """
    image_scores, text_scores = scores
    assert image_scores is not None
    assert text_scores is not None
    image_logits = (scale * image_scores).masked_fill(~spread.there(), -torch.inf)
    of_images = F.cross_entropy(image_logits, spread.own_positions(), reduction="sum")
    text_logits = scale * text_scores
    levels = merged_logsumexp(spread.parts(text_logits.logsumexp(0)))
    return of_images + levels.sum() - spread.own(text_logits.T).diagonal().sum()


def _scores(
    batch: Batch, normalize: bool, average: bool, wanted: tuple[bool, bool], backend: str
) -> LateInteractionScores:
    if backend == "eager":
        inputs: list[Any] = [*map(recordable, batch[:-1]), batch.max_tokens, normalize, average, *wanted]
        found = late_interaction_reference(*inputs)
        return LateInteractionScores(*found)
    keep = torch.is_grad_enabled() and (batch.image_tokens.requires_grad or batch.text_tokens.requires_grad)
    image_scores, *_, text_scores = apply(
        MaxSimilarityFunction, "max_similarity_forward", *batch, normalize, average, *wanted, keep, backend
    )
    return LateInteractionScores(image_scores if wanted[0] else None, text_scores if wanted[1] else None)


def _checked(*arguments: Any) -> Batch:
    batch = checked(*arguments)
    longest = batch.max_tokens or batch.text_tokens.shape[1]
    for name, size in (("image_tokens", batch.image_tokens.shape[1]), ("text_tokens", longest)):
        if size > MOST_ENTRIES:
            raise ValueError(f"{name} must have at most {MOST_ENTRIES} tokens per item, got {size}")
    return batch

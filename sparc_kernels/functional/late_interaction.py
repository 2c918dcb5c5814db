"""Late interaction: every image meets every caption of the batch, token by token."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Fact, Group, Ranks, Spread, global_ratios, ranks_of, replicated, spread_over
from sparc_kernels.functional._candidates import checked_scale
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE, DIRECTIONS, autocast, recordable, wanted_directions
from sparc_kernels.functional._everyone import dtype_fact, merged_logsumexp
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.late_interaction.autograd import MaxSimilarityFunction
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference, padded_captions
from sparc_kernels.ops.late_interaction.schema import MOST_ENTRIES, captions

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
    _check_flag("normalize", normalize)
    ranks = ranks_of(group, "mean", "late_interaction_scores")
    batch = _checked(image_tokens, text_tokens, image_mask, text_mask, cu_seqlens, max_seqlen)
    backend = resolve("late_interaction", backend, batch.image_tokens.device, batch.image_tokens.dtype)
    if ranks is None:
        return _scores(batch, normalize, pooling == "mean", wanted, backend)
    if not _validate.runs_now():
        raise NotImplementedError(
            "group must be None where late_interaction_scores is traced or transformed: how many captions all ranks "
            f"have is not known then, got {group!r}"
        )
    facts: dict[str, Fact] = {
        "pooling": (pooling, POOLINGS),
        "direction": (direction, DIRECTIONS),
        "normalize": normalize,
    }
    batch, spread = _with_all_captions(batch, max_seqlen, facts, ranks)
    found = _scores(batch, normalize, pooling == "mean", wanted, backend)
    columns = spread.there().nonzero()[:, 0]
    if columns.shape[0] == spread.size:
        return found
    return LateInteractionScores(*(None if x is None else x.index_select(1, columns) for x in found))


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
        batch, spread = _with_all_captions(batch, max_seqlen, facts, ranks)
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


class _Batch(NamedTuple):
    """Checked tokens: the op's arguments of these names."""

    image_tokens: Tensor
    text_tokens: Tensor
    image_mask: Tensor | None
    text_mask: Tensor | None
    text_offsets: Tensor | None
    max_tokens: int


def _with_all_captions(
    batch: _Batch, max_seqlen: int | None, facts: dict[str, Fact], ranks: Ranks
) -> tuple[_Batch, Spread]:
    """This rank's images with the captions of all ranks, and where these are. Packed captions travel padded: what a
    rank may send is agreed on in captions, not in tokens."""
    text_tokens, text_mask, packed = batch.text_tokens, batch.text_mask, batch.text_offsets is not None
    if batch.text_offsets is not None:
        if max_seqlen is None:
            raise ValueError("max_seqlen must be given with cu_seqlens and group, the same on all ranks, got None")
        text_tokens, text_mask = padded_captions(text_tokens, batch.text_offsets, batch.max_tokens)
    own: dict[str, Fact] = {
        "text_tokens width": text_tokens.shape[2],
        "text_tokens dtype": dtype_fact(text_tokens),
        "text_tokens requires_grad": text_tokens.requires_grad,
        "cu_seqlens given": packed,
        "max_seqlen" if packed else "text_tokens length": text_tokens.shape[1],
        "text_mask given": batch.text_mask is not None,
    }
    everyone, spread = spread_over(text_tokens, {**own, **facts}, ranks)
    there = spread.there()[:, None]
    mask = there.expand(-1, text_tokens.shape[1]) if text_mask is None else spread.everyone(text_mask)
    return batch._replace(text_tokens=everyone, text_mask=mask.contiguous(), text_offsets=None, max_tokens=0), spread


def _scores(
    batch: _Batch, normalize: bool, average: bool, wanted: tuple[bool, bool], backend: str
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


# Checks


def _checked(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
) -> _Batch:
    _validate.embeddings("image_tokens", image_tokens, "[B, P, D]")
    _validate.embeddings("text_tokens", text_tokens, "[B, L, D]" if cu_seqlens is None else "[N, D]")
    image_tokens, text_tokens = autocast(image_tokens, text_tokens)
    _validate.same("text_tokens", text_tokens, "image_tokens", image_tokens, {"D": -1})
    _validate.mask("image_mask", image_mask, "image_tokens", image_tokens)
    if cu_seqlens is not None:
        if text_mask is not None:
            raise ValueError("text_mask must be None where cu_seqlens is given, all packed tokens being valid")
        offsets = _checked_offsets(cu_seqlens, text_tokens)
        longest = _checked_longest(max_seqlen, offsets)
    else:
        if max_seqlen is not None:
            raise ValueError(f"max_seqlen must be None without cu_seqlens, got {max_seqlen!r}")
        _validate.mask("text_mask", text_mask, "text_tokens", text_tokens)
        offsets, longest = None, 0
    for name, size in (("image_tokens", image_tokens.shape[1]), ("text_tokens", longest or text_tokens.shape[1])):
        if size > MOST_ENTRIES:
            raise ValueError(f"{name} must have at most {MOST_ENTRIES} tokens per item, got {size}")
    return _Batch(image_tokens, text_tokens, image_mask, text_mask, offsets, longest)


def _checked_offsets(offsets: object, text_tokens: Tensor) -> Tensor:
    """As int64."""
    if not isinstance(offsets, Tensor):
        raise TypeError(f"cu_seqlens must be an integer torch.Tensor or None, got {type(offsets).__name__}")
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must have dtype torch.int32 or torch.int64, got {offsets.dtype}")
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"cu_seqlens must have shape [captions + 1], got {list(offsets.shape)}")
    _validate.same_device("cu_seqlens", offsets, "text_tokens", text_tokens)
    if _validate.can_be_looked_at(offsets):
        first, last, falls = int(offsets[0]), int(offsets[-1]), bool((offsets.diff() < 0).any())
        if first != 0 or last != text_tokens.shape[0] or falls:
            raise ValueError(
                f"cu_seqlens must rise from 0 to {text_tokens.shape[0]}, the number of tokens, got {first} to {last}"
                + (", falling in between" if falls else "")
            )
    return offsets.to(torch.int64).contiguous()


def _checked_longest(longest: object, offsets: Tensor) -> int:
    """At least 1."""
    if longest is None:
        if not _validate.has_values(offsets):
            raise ValueError(
                "max_seqlen must be given with cu_seqlens where the call is traced or transformed (torch.func), or the "
                "tensors are meta or fake, got None"
            )
        return max(1, int(offsets.diff().amax())) if offsets.shape[0] > 1 else 1
    if isinstance(longest, bool) or not isinstance(longest, (int, torch.SymInt)):
        raise TypeError(f"max_seqlen must be an integer or None, got {type(longest).__name__}")
    if longest < 1:
        raise ValueError(f"max_seqlen must be at least 1, got {longest}")
    if _validate.can_be_looked_at(offsets) and offsets.shape[0] > 1 and int(offsets.diff().amax()) > longest:
        raise ValueError(
            f"max_seqlen must be at least {int(offsets.diff().amax())}, the longest caption of cu_seqlens, "
            f"got {longest}"
        )
    return longest  # type: ignore[return-value]


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")

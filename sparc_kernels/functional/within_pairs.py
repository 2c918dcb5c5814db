"""Losses and masks of an image and its own text, beside SPARC's: sub-captions, attention both ways, relevance."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import has_kernels, resolve
from sparc_kernels.distributed import Fact, Group, global_ratios, ranks_of, replicated
from sparc_kernels.functional._candidates import Ids, checked_scale
from sparc_kernels.functional._common import (
    DEFAULT_LOGIT_SCALE,
    DIRECTIONS,
    checked_pair,
    recordable,
    wanted_directions,
)
from sparc_kernels.functional.alignment import fine_grained_loss, language_grouped_embeddings
from sparc_kernels.functional.contrastive import contrastive_loss
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.softmax_alignment.autograd import SoftmaxAlignmentFunction
from sparc_kernels.ops.softmax_alignment.reference import softmax_alignment_reference

NEGATIVES = ("batch", "image")
RELEVANCES = ("highest", "lowest")
LOCAL_SCALE = 10.0  # 1 / temperature of the attention and of the logits in MGCA's code


def subcaption_grouping_loss(
    patch_embeds: Tensor,
    subcaption_embeds: Tensor,
    subcaption_mask: Tensor | None = None,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    patch_mask: Tensor | None = None,
    similarity_threshold: float | None = 0.0,
    negatives: str = "batch",
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Grouping loss of DreamLIP: each sub-caption against the patches of its image that it speaks of.

    Zheng et al., "DreamLIP: Language-Image Pre-training with Long Captions" (2024, arXiv 2403.17007). A sub-caption
    weighs the patches as a token does in SPARC (min-max similarities, a threshold), on normalised patches; its weighted
    mean of them is then contrasted with the sub-captions, both ways. A composition of
    :func:`language_grouped_embeddings` with :func:`contrastive_loss`, or :func:`fine_grained_loss`: no kernel of its
    own. The other part of DreamLIP's loss, global and with several positives, is in docs/losses.md.

    Args:
        patch_embeds: [B, P, D] patch embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        subcaption_embeds: [B, K, D] one embedding per sub-caption, of the same dtype and device.
        subcaption_mask: [B, K] bool, True = valid; None = all valid. Others take no part.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        patch_mask: [B, P] bool, True = valid; None = all valid.
        similarity_threshold: of the min-max similarities, in [0, 1]; 0 by default, as in the options of the public
            code. None = 1 / (number of valid patches of the image).
        negatives: ``"batch"``: the sub-captions of all images, those of the same one too, as the public code has it;
            ``"image"``: those of the same image alone.
        group: ``"world"`` or a process group, as in :func:`contrastive_loss`. None: this process alone.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``.
        backend: of both ops. Where the contrastive one has no kernels of the kind asked for (there are none in CUDA
            C++), it takes what ``"auto"`` gives it.

    Returns:
        []: the mean over valid sub-captions and both directions, in float32 (float64 for float64 embeddings); 0 where
        there is none.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: shapes, devices, scale, threshold, negatives or backend that do not fit; an image whose every patch
            is masked (looked at on the CPU only).
        NotImplementedError: a backend that cannot serve this dtype, device or machine.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives must be {' or '.join(map(repr, NEGATIVES))}, got {negatives!r}")
    patches, subcaptions = checked_pair(
        ("patch_embeds", patch_embeds, "[B, P, D]"),
        ("subcaption_embeds", subcaption_embeds, "[B, K, D]"),
        {"B": 0, "D": 2},
    )
    _validate.mask("subcaption_mask", subcaption_mask, "subcaption_embeds", subcaptions)
    _validate.mask("patch_mask", patch_mask, "patch_embeds", patches)
    patches, mask = _directions(patches, patch_mask), recordable(subcaption_mask)
    shared: dict[str, Any] = {"logit_scale": logit_scale, "group": group, "gradients": gradients}
    grouping: dict[str, Any] = {"patch_mask": patch_mask, "similarity_threshold": similarity_threshold}
    if negatives == "image":
        return fine_grained_loss(patches, subcaptions, subcaption_mask, **grouping, **shared, backend=backend)
    padding = None
    if mask is not None:
        subcaptions = recordable(subcaptions).masked_fill(~mask[..., None], 0)  # NaN there would reach the patches
        valid = mask.flatten().to(torch.int64)
        padding = Ids(valid - 1, 2 * valid - 1)  # 0 and 1, which never meet, or -1
    groups = language_grouped_embeddings(patches, subcaptions, **grouping, backend=backend)
    backend = backend if has_kernels("contrastive", backend) else "auto"
    return contrastive_loss(groups.flatten(0, 1), subcaptions.flatten(0, 1), exclude=padding, **shared, backend=backend)


def mgca_local_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    image_weights: Tensor | None = None,
    text_weights: Tensor | None = None,
    logit_scale: float | Tensor = LOCAL_SCALE,
    attention_scale: float | Tensor = LOCAL_SCALE,
    direction: str = "both",
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Token-wise alignment of MGCA: words against what they attend to in their image, patches likewise in their text.

    Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning" (2022,
    arXiv 2210.06044), as the default of its public code has it, without learned projections. A word attends over the
    patches of its image by a softmax of cosines; its context is contrasted with the words of the same text, both ways;
    the losses of the words are averaged by weights. ``ops/softmax_alignment/MATH.md`` has the equations, and says where
    the public code differs. Kept between forward and backward are the inputs, their directions, and seven numbers per
    word and patch: no attention, no context and no logits.

    Args:
        image_tokens: [B, P, D] patch embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_tokens: [B, L, D] word embeddings of the same dtype and device.
        image_mask: [B, P] bool, True = valid; None = all are.
        text_mask: [B, L] bool, True = valid; None = all are. Padding is neither query nor key nor negative.
        image_weights: [B, P] how much each patch counts among those of its image: not negative, any sum, without
            gradient. MGCA takes the last layer's attention of [CLS], clipped at its 10th and 90th percentile. None:
            all alike.
        text_weights: [B, L] the same of words.
        logit_scale: 1 / temperature of the contrast, a number or a one-element tensor (which receives a gradient).
        attention_scale: 1 / temperature of the attention, a number or a one-element tensor, without gradient.
        direction: ``"both"`` (their sum), ``"text_to_image"`` (words over patches) or ``"image_to_text"``.
        group: ``"world"`` or a process group: the mean is over the pairs of all its ranks, and each rank returns it
            (docs/distributed.md). Nothing else is exchanged. None: this process alone.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``. With
            ``"mean"`` the gradient of ``logit_scale`` is that of the loss on every rank.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        []: the mean over pairs in float32 (float64 for float64 embeddings). A pair without a valid word or without a
        valid patch has no loss and does not count.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: shapes, devices, weights, scales, direction or backend that do not fit.
        NotImplementedError: a backend that cannot serve this dtype, device or machine.
    """
    wanted = wanted_directions(direction)
    ranks = ranks_of(group, gradients, "mgca_local_loss")
    images, texts = checked_pair(
        ("image_tokens", image_tokens, "[B, P, D]"), ("text_tokens", text_tokens, "[B, L, D]"), {"B": 0, "D": 2}
    )
    _validate.mask("image_mask", image_mask, "image_tokens", images)
    _validate.mask("text_mask", text_mask, "text_tokens", texts)
    image_mask, text_mask = recordable(image_mask), recordable(text_mask)
    shares = (
        _shares("image_weights", image_weights, image_mask, "image_tokens", images),
        _shares("text_weights", text_weights, text_mask, "text_tokens", texts),
    )
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_tokens", images), ranks)
    attention = checked_scale("attention_scale", attention_scale, "image_tokens", images).detach()
    backend = resolve("softmax_alignment", backend, images.device, images.dtype)

    facts: dict[str, Fact] = {
        "direction": (direction, DIRECTIONS),
        "image_tokens requires_grad": images.requires_grad,
        "text_tokens requires_grad": texts.requires_grad,
        "logit_scale requires_grad": scale.requires_grad,
    }
    sides = (_directions(images, image_mask), image_mask), (_directions(texts, text_mask), text_mask)
    total = scale.new_zeros(())
    for want, (queries, query_mask), (keys, key_mask), share in zip(wanted, sides, sides[::-1], shares):
        if not want:
            continue
        if key_mask is not None:  # what the ops make of a query without a key is their own
            seen = key_mask.any(1, keepdim=True)
            query_mask = seen.expand(queries.shape[:2]) if query_mask is None else query_mask & seen
        inputs = (keys, queries, query_mask, key_mask, scale, attention)
        if backend == "eager":
            losses = softmax_alignment_reference(*inputs)
        else:
            losses = apply(SoftmaxAlignmentFunction, "softmax_alignment_forward", *inputs, backend)[0]
        total = total + (losses * share).sum()
    return global_ratios(total[None], _pairs_with_both(images, image_mask, text_mask), ranks, facts)[0]


def _pairs_with_both(images: Tensor, image_mask: Tensor | None, text_mask: Tensor | None) -> Tensor:
    """[1]: how many pairs have a valid patch and a valid word."""
    both = torch.ones(images.shape[:1], dtype=torch.bool, device=images.device)
    for mask in (image_mask, text_mask):
        both = both if mask is None else both & mask.any(1)
    return both.sum()[None]


def relevance_mask(
    patch_embeds: Tensor,
    text_embeds: Tensor,
    text_mask: Tensor | None = None,
    *,
    ratio: float = 0.5,
    relevance: str = "highest",
    patch_mask: Tensor | None = None,
) -> Tensor:
    """Attentive masking of SyCoCa: the patches of each image that its text speaks of most, or least.

    Ma et al., "SyCoCa: Symmetrizing Contrastive Captioners with Attentive Masking for Multimodal Alignment" (2024,
    arXiv 2401.02137). The relevance of a patch is its largest cosine with a token of the text. The paper hides the
    highest half where the text is to restore the image, and the lowest half where the image is to be described. Plain
    PyTorch in float32 on any device: one product and a sort of [P] numbers per image, without a backward pass.

    Args:
        patch_embeds: [B, P, D] patch embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_embeds: [B, L, D] token embeddings of the same dtype and device, or [B, D], one embedding per text.
        text_mask: [B, L] bool, True = valid; None = all are. None with [B, D].
        ratio: the share of an image's valid patches to choose, in [0, 1]: ``ratio`` times their number, rounded to the
            nearest integer, halves to even.
        relevance: ``"highest"`` or ``"lowest"``: which ones. Of patches that are equally relevant the first ones are
            taken; a NaN counts as highest.
        patch_mask: [B, P] bool, True = valid; None = all are. Others are never chosen, and do not count.

    Returns:
        [B, P] bool, True = chosen. All False for an image whose text has no valid token.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """
    if relevance not in RELEVANCES:
        raise ValueError(f"relevance must be {' or '.join(map(repr, RELEVANCES))}, got {relevance!r}")
    _validate.weight("ratio", ratio)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    _validate.embeddings("patch_embeds", patch_embeds, "[B, P, D]")
    if isinstance(text_embeds, Tensor) and text_embeds.dim() == 2:
        if text_mask is not None:
            raise ValueError("text_mask must be None where text_embeds has shape [B, D], got a mask")
        text_embeds = text_embeds[:, None]
    _validate.embeddings("text_embeds", text_embeds, "[B, L, D]")
    _validate.same("text_embeds", text_embeds, "patch_embeds", patch_embeds, {"B": 0, "D": 2})
    _validate.mask("text_mask", text_mask, "text_embeds", text_embeds)
    _validate.mask("patch_mask", patch_mask, "patch_embeds", patch_embeds)
    with torch.no_grad(), without_autocast(patch_embeds.device.type):
        dtype = accumulation_dtype(patch_embeds.dtype)
        patches, tokens = _directions(patch_embeds.to(dtype), patch_mask), _directions(text_embeds.to(dtype), text_mask)
        cosines = patches @ tokens.transpose(-1, -2)  # [B, P, L]
        if text_mask is not None:
            cosines = cosines.masked_fill(~text_mask[:, None], -torch.inf)
        score = cosines.amax(-1)  # [B, P]
        valid = torch.ones_like(score, dtype=torch.bool) if patch_mask is None else patch_mask
        count = (ratio * valid.sum(1, keepdim=True).double()).round()  # [B, 1]
        if text_mask is not None:
            count = count * text_mask.any(1, keepdim=True)
        key = score.nan_to_num(nan=2.0, neginf=-2.0)  # beyond any cosine
        key = (key if relevance == "lowest" else -key).masked_fill(~valid, torch.inf)
        place = key.argsort(dim=1, stable=True).argsort(dim=1)
        return place < count


def _directions(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """[B, N, D] of length 1, or 0, in the dtype of the embeddings; zeros in masked rows, whatever stands there."""
    embeds, mask = recordable(embeds), recordable(mask)
    if mask is not None:
        embeds = embeds.masked_fill(~mask[..., None], 0)
    wide = embeds.to(accumulation_dtype(embeds.dtype))  # float16 has no 1e-12
    return F.normalize(wide, dim=-1).to(embeds.dtype)


def _shares(name: str, weights: object, mask: Tensor | None, owner_name: str, owner: Tensor) -> Tensor:
    """[B, N] in the accumulation dtype: what each valid token counts among those of its item; they sum to 1, or 0."""
    dtype = accumulation_dtype(owner.dtype)
    if weights is None:
        shares = torch.ones(owner.shape[:2], dtype=dtype, device=owner.device)
    elif not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a floating torch.Tensor or None, got {type(weights).__name__}")
    elif not weights.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {weights.dtype}")
    elif weights.shape != owner.shape[:2]:
        raise ValueError(
            f"{name} must have shape {list(owner.shape[:2])}, the first two dimensions of {owner_name}, got "
            f"{list(weights.shape)}"
        )
    else:
        _validate.same_device(name, weights, owner_name, owner)
        shares = recordable(weights.detach()).to(dtype)
    if mask is not None:
        shares = shares.masked_fill(~mask, 0)
    if weights is not None and _validate.can_be_looked_at(shares) and not bool((shares >= 0).all()):
        raise ValueError(f"{name} must not be negative or NaN at a valid token, got {float(shares.min()):g}")
    return shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)

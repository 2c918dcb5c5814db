"""The SPARC fine-grained loss, language-grouped embeddings and alignment weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparc_kernels import _arrays, _validate
from sparc_kernels._arrays import ArrayT, DLPackArray
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Fact, Group, Ranks, global_ratios, ranks_of, replicated
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE, checked_pair, recordable, scalar
from sparc_kernels.ops._alignment.choice import kind_of_call
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.fine_grained.autograd import FineGrainedLossFunction
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.grouping.autograd import AlignmentWeightsFunction, LanguageGroupedEmbeddingsFunction
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference

REDUCTIONS = ("token", "caption", "none")


def _images_have_patches(patch_mask: Tensor | None) -> None:
    """Every image keeps at least one patch, as far as that can be seen."""
    if patch_mask is None or not _validate.can_be_looked_at(patch_mask):
        return
    without = (~patch_mask.any(1)).nonzero().flatten()
    if without.numel():
        raise ValueError(
            f"patch_mask must leave at least one patch to every image, got none for image {int(without[0])} "
            f"({without.numel()} of {patch_mask.shape[0]} images)"
        )


def check_similarity_threshold(value: object) -> None:
    """None (1 / number of valid patches) or a number in [0, 1]."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"similarity_threshold must be a number in [0, 1] or None, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"similarity_threshold must lie in [0, 1], got {value}")


def check_reduction(value: object) -> None:
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {value!r}")


class Pairs(NamedTuple):
    """Checked inputs of the ops on image-text pairs, in the dtype they are computed in."""

    patch_embeds: Tensor  # [B, P, D]
    token_embeds: Tensor  # [B, L, D]
    token_mask: Tensor | None  # [B, L]
    patch_mask: Tensor | None  # [B, P]
    threshold: Tensor | None  # []


def checked_pairs(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
) -> Pairs:
    patch_embeds, token_embeds = checked_pair(
        ("patch_embeds", patch_embeds, "[B, P, D]"), ("token_embeds", token_embeds, "[B, L, D]"), {"B": 0, "D": 2}
    )
    _validate.mask("token_mask", token_mask, "token_embeds", token_embeds)
    _validate.mask("patch_mask", patch_mask, "patch_embeds", patch_embeds)
    _images_have_patches(patch_mask)
    check_similarity_threshold(similarity_threshold)
    threshold = None if similarity_threshold is None else scalar(similarity_threshold, patch_embeds)
    return Pairs(patch_embeds, token_embeds, token_mask, patch_mask, threshold)


def reduced(token_loss: Tensor, token_mask: Tensor | None, reduction: str, ranks: Ranks | None = None) -> Tensor:
    """[B, L] to a scalar; empty captions, and a batch of nothing else, count 0 in loss and denominators."""
    if reduction == "none":
        return token_loss
    if ranks is not None:
        return _reduced_over_ranks(token_loss, token_mask, reduction, ranks)
    batch, length = token_loss.shape
    if token_mask is None:
        return token_loss.sum() / max(batch * length, 1)
    if reduction == "token":
        return token_loss.sum() / token_mask.sum().clamp(min=1)
    tokens = token_mask.sum(1)  # [B]
    per_caption = token_loss.sum(1) / tokens.clamp(min=1)
    return per_caption.sum() / (tokens > 0).sum().clamp(min=1)


def _reduced_over_ranks(token_loss: Tensor, token_mask: Tensor | None, reduction: str, ranks: Ranks) -> Tensor:
    batch, length = token_loss.shape
    if token_mask is None:
        tokens = torch.full((batch,), length, device=token_loss.device)
    else:
        tokens = token_mask.sum(1)  # [B]
    if reduction == "token":
        total, count = token_loss.sum(), tokens.sum()
    else:
        total, count = (token_loss.sum(1) / tokens.clamp(min=1)).sum(), (tokens > 0).sum()
    facts: dict[str, Fact] = {
        "reduction": (reduction, REDUCTIONS),
        "token_embeds requires_grad": token_loss.requires_grad,
    }
    return global_ratios(total[None], count[None], ranks, facts)[0]


def fine_grained_loss(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None = None,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    patch_mask: Tensor | None = None,
    similarity_threshold: float | None = None,
    reduction: str = "token",
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Sequence-wise fine-grained loss of SPARC: each token against its own language-grouped vision embedding.

    Equations 2-6 of Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024). Tokens are
    contrasted within their own caption only.

    Args:
        patch_embeds: [B, P, D] patch embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        token_embeds: [B, L, D] token embeddings, of the same dtype and device.
        token_mask: [B, L] bool, True = valid; None = all valid. Padded tokens are neither queries nor negatives.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        patch_mask: [B, P] bool, True = valid; None = all valid. Masked patches leave the minimum, the maximum and the
            groups.
        similarity_threshold: sigma of eq 3, in [0, 1]; None = 1 / (number of valid patches of the image).
        reduction: ``"token"``: mean over the valid tokens of the batch; ``"caption"``: mean over captions of each
            caption's mean (captions without a valid token do not count); ``"none"``: [B, L], 0 at padding.
        group: ``"world"`` or a process group: tokens and captions are counted over all its ranks, and each rank returns
            the mean over all of them (docs/distributed.md); ``"none"`` exchanges nothing. None: this process alone.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``. With
            ``"mean"`` the gradient of ``logit_scale`` is that of the loss on every rank.
        backend: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"eager"``; an explicit one never falls back.

    Returns:
        [] or [B, L] in float32 (float64 for float64 embeddings). Differentiable once in patch_embeds, token_embeds and
        logit_scale (the eager backend: any number of times).

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: shapes, devices, reduction, threshold or backend that do not fit; an image whose every patch is
            masked (looked at on the CPU only; on a GPU the loss is NaN, since looking would make the host wait).
        NotImplementedError: a backend that cannot serve this dtype, device or machine.
    """
    pairs = checked_pairs(patch_embeds, token_embeds, token_mask, patch_mask, similarity_threshold)
    check_reduction(reduction)
    ranks = ranks_of(group, gradients, "fine_grained_loss")
    token_loss, _, _ = token_losses(pairs, logit_scale, "logit_scale", backend, ranks=ranks)
    return reduced(token_loss, token_mask, reduction, ranks)


def token_losses(
    pairs: Pairs,
    logit_scale: float | Tensor,
    scale_name: str,
    backend: str,
    pool_patches: bool = False,
    pool_tokens: bool = False,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B, L], and the means [B, D] of the valid patches and tokens where asked for (else unspecified)."""
    patch_embeds, token_embeds, token_mask, patch_mask, threshold = pairs
    _validate.scalar(scale_name, logit_scale, "patch_embeds", patch_embeds)
    kind = kind_of_call(patch_embeds, token_embeds, token_mask)
    backend = resolve("fine_grained", backend, patch_embeds.device, patch_embeds.dtype, kind)
    scale = replicated(scalar(logit_scale, patch_embeds), ranks)
    inputs = (patch_embeds, token_embeds, token_mask, patch_mask, scale, threshold)
    if backend == "eager":
        patch_embeds, token_embeds = recordable(patch_embeds), recordable(token_embeds)
        return (
            fine_grained_reference(patch_embeds, token_embeds, *inputs[2:]),
            _valid_mean(patch_embeds, patch_mask) if pool_patches else patch_embeds,
            _valid_mean(token_embeds, token_mask) if pool_tokens else token_embeds,
        )
    token_loss, _, pooled_patches, pooled_tokens = apply(
        FineGrainedLossFunction, "fine_grained_forward", *inputs, pool_patches, pool_tokens, backend
    )
    return token_loss, pooled_patches, pooled_tokens


def _valid_mean(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [B, N, D] over the valid rows: [B, D] in the embeddings' dtype, accumulated wider; 0 where none is."""
    accumulation = accumulation_dtype(embeds.dtype)
    if mask is None:
        return embeds.mean(1, dtype=accumulation).to(embeds.dtype)
    total = embeds.masked_fill(~mask[..., None], 0).sum(1, dtype=accumulation)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(embeds.dtype)


def _call(
    function: Callable[..., Tensor],
    patch_embeds: ArrayT,
    token_embeds: ArrayT,
    patch_mask: DLPackArray | None,
    *options: object,
) -> ArrayT:
    """``function`` of tensors, or of arrays of another library as tensors."""
    embeds = (("patch_embeds", "[B, P, D]", patch_embeds), ("token_embeds", "[B, L, D]", token_embeds))
    return _arrays.call(function, embeds, {"patch_mask": patch_mask}, *options)


def language_grouped_embeddings(
    patch_embeds: ArrayT,
    token_embeds: ArrayT,
    *,
    patch_mask: DLPackArray | None = None,
    similarity_threshold: float | None = None,
    backend: str = "auto",
) -> ArrayT:
    """Language-grouped vision embeddings: for every token the weighted mean of the patches it aligns with.

    Equations 2-5 of Bica et al. (2024). Takes tensors, or arrays of another library (NumPy, CuPy, ...: whatever has
    ``__dlpack__``), and returns the same kind, without a copy on the way in or out.

    Args:
        patch_embeds: [B, P, D] patch embeddings; float16, bfloat16, float32 or float64 (NumPy has no bfloat16). Arrays
            may be read-only and strided, but not by negative strides.
        token_embeds: [B, L, D] token embeddings, of the same kind, dtype and device.
        patch_mask: [B, P] bool, a tensor or any DLPack array, True = valid; None = all valid.
        similarity_threshold: sigma of eq 3, in [0, 1]; None = 1 / (number of valid patches of the image).
        backend: as in :func:`fine_grained_loss`.

    Returns:
        [B, L, D] in the embeddings' dtype and kind. Of tensors: differentiable once in both (the eager backend: any
        number of times). Of arrays: no gradient, and autocast does not apply.

    Raises:
        TypeError: an argument of a wrong type or dtype; embeddings of two kinds; an array in foreign byte order.
        ValueError: shapes, devices, threshold or backend that do not fit; negative strides; an image whose every patch
            is masked (looked at on the CPU only).
        NotImplementedError: a backend that cannot serve this dtype, device or machine.
    """
    return _call(_language_grouped_embeddings, patch_embeds, token_embeds, patch_mask, similarity_threshold, backend)


def _language_grouped_embeddings(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, threshold: float | None, backend: str
) -> Tensor:
    inputs, backend = _grouping_inputs(patch_embeds, token_embeds, patch_mask, threshold, backend)
    if backend == "eager":
        return grouped_embeddings_reference(*map(recordable, inputs))
    return apply(LanguageGroupedEmbeddingsFunction, "grouped_embeddings_forward", *inputs, backend)[0]


def alignment_weights(
    patch_embeds: ArrayT,
    token_embeds: ArrayT,
    *,
    patch_mask: DLPackArray | None = None,
    similarity_threshold: float | None = None,
    backend: str = "auto",
) -> ArrayT:
    """Alignment weights of every token over the patches of its image; each row sums to 1.

    Equations 2-4 of Bica et al. (2024). The arguments, tensors or arrays of another library, and the errors are those
    of :func:`language_grouped_embeddings`.

    Returns:
        [B, L, P] in the embeddings' dtype and kind, exactly 0 below the threshold and at masked patches. Of tensors:
        differentiable once (the eager backend: any number of times). Of arrays: no gradient.
    """
    return _call(_alignment_weights, patch_embeds, token_embeds, patch_mask, similarity_threshold, backend)


def _alignment_weights(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, threshold: float | None, backend: str
) -> Tensor:
    inputs, backend = _grouping_inputs(patch_embeds, token_embeds, patch_mask, threshold, backend, weights=True)
    if backend == "eager":
        return alignment_weights_reference(*map(recordable, inputs))
    return apply(AlignmentWeightsFunction, "alignment_weights_forward", *inputs, backend)[0]


def _grouping_inputs(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    threshold: float | None,
    backend: str,
    weights: bool = False,
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], str]:
    pairs = checked_pairs(patch_embeds, token_embeds, None, patch_mask, threshold)
    embeds = pairs.patch_embeds
    kind = kind_of_call(embeds, pairs.token_embeds, weights=weights)
    backend = resolve("grouping", backend, embeds.device, embeds.dtype, kind)
    return (pairs.patch_embeds, pairs.token_embeds, patch_mask, pairs.threshold), backend

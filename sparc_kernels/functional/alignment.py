"""The public, stateless API: validate, choose a backend, call the op.

**Autocast.** Inside ``torch.autocast`` the embeddings are cast to the autocast dtype, as for a matrix product;
similarities, softmaxes and losses are accumulated in float32 all the same, and losses are float32. float64 embeddings
are left alone.

**Dtypes.** Losses come in the accumulation dtype: float64 for float64 embeddings, float32 for float32, bfloat16 and
float16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparc_kernels import _arrays, _validate
from sparc_kernels._arrays import ArrayT, DLPackArray
from sparc_kernels._dispatch import resolve
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.contrastive.reference import contrastive_reference
from sparc_kernels.ops.fine_grained.autograd import FineGrainedLossFunction
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.grouping.autograd import AlignmentWeightsFunction, LanguageGroupedEmbeddingsFunction
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference

DEFAULT_LOGIT_SCALE = 1 / 0.07


class SparcLossOutput(NamedTuple):
    """What ``sparc_loss(..., return_components=True)`` returns."""

    loss: Tensor
    """[]: global_weight * global_loss + local_weight * local loss (eq 7)."""
    global_loss: Tensor
    """[]: the contrastive loss over the batch (eq 1)."""
    local_loss: Tensor
    """[]: the fine-grained loss (eq 6), or [B, L] per token with ``reduction="none"``."""


def _autocast(*embeds: Tensor) -> tuple[Tensor, ...]:
    """The embeddings in the autocast dtype, where autocast is on and they are not float64."""
    device_type = embeds[0].device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return embeds
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in embeds)


class _Pairs(NamedTuple):
    """Checked inputs of the ops on image-text pairs, in the dtype they are computed in."""

    patch_embeds: Tensor  # [B, P, D]
    token_embeds: Tensor  # [B, L, D]
    token_mask: Tensor | None  # [B, L]
    patch_mask: Tensor | None  # [B, P]
    threshold: Tensor | None  # []


def _pairs(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
) -> _Pairs:
    _validate.embeddings("patch_embeds", patch_embeds, "[B, P, D]")
    _validate.embeddings("token_embeds", token_embeds, "[B, L, D]")
    patch_embeds, token_embeds = _autocast(patch_embeds, token_embeds)
    _validate.same("token_embeds", token_embeds, "patch_embeds", patch_embeds, {"B": 0, "D": 2})
    _validate.mask("token_mask", token_mask, "token_embeds", token_embeds)
    _validate.mask("patch_mask", patch_mask, "patch_embeds", patch_embeds)
    _validate.images_have_patches(patch_mask)
    _validate.similarity_threshold(similarity_threshold)
    threshold = None if similarity_threshold is None else _scalar(similarity_threshold, patch_embeds)
    return _Pairs(patch_embeds, token_embeds, token_mask, patch_mask, threshold)


def _scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or one-element tensor as a [] tensor of the accumulation dtype, on the device of ``like``."""
    dtype = accumulation_dtype(like.dtype)
    if isinstance(value, Tensor):
        return value.reshape(()).to(dtype)
    if torch.compiler.is_compiling():  # torch.full would compile anew for every value; a product takes it as an input
        return torch.ones((), dtype=dtype, device=like.device) * value
    return torch.full((), value, dtype=dtype, device=like.device)


def _reduce(token_loss: Tensor, token_mask: Tensor | None, reduction: str) -> Tensor:
    """[B, L] to a scalar; empty captions, and a batch of nothing else, count 0 in loss and denominators."""
    if reduction == "none":
        return token_loss
    batch, length = token_loss.shape
    if token_mask is None:
        return token_loss.sum() / max(batch * length, 1)
    if reduction == "token":
        return token_loss.sum() / token_mask.sum().clamp(min=1)
    tokens = token_mask.sum(1)  # [B]
    per_caption = token_loss.sum(1) / tokens.clamp(min=1)
    return per_caption.sum() / (tokens > 0).sum().clamp(min=1)


def fine_grained_loss(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None = None,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    patch_mask: Tensor | None = None,
    similarity_threshold: float | None = None,
    reduction: str = "token",
    group: object = None,
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
        group: a process group; only None for now.
        backend: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"eager"``; an explicit one never falls back.

    Returns:
        [] or [B, L] in float32 (float64 for float64 embeddings). Differentiable once in patch_embeds, token_embeds and
        logit_scale (the eager backend: any number of times).

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: shapes, devices, reduction, threshold or backend that do not fit; an image whose every patch is
            masked (looked at on the CPU only; on a GPU the loss is NaN, since looking would make the host wait).
        NotImplementedError: ``group`` given, or a backend that cannot serve this dtype, device or machine.
    """
    pairs = _pairs(patch_embeds, token_embeds, token_mask, patch_mask, similarity_threshold)
    _validate.reduction(reduction)
    _validate.group(group)
    token_loss, _, _ = _token_losses(pairs, logit_scale, "logit_scale", backend)
    return _reduce(token_loss, token_mask, reduction)


def _token_losses(
    pairs: _Pairs,
    logit_scale: float | Tensor,
    scale_name: str,
    backend: str,
    pool_patches: bool = False,
    pool_tokens: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B, L], and the means [B, D] of the valid patches and tokens where asked for (else unspecified)."""
    patch_embeds, token_embeds, token_mask, patch_mask, threshold = pairs
    _validate.logit_scale(scale_name, logit_scale, "patch_embeds", patch_embeds)
    backend = resolve("fine_grained", backend, patch_embeds.device, patch_embeds.dtype)
    inputs = (patch_embeds, token_embeds, token_mask, patch_mask, _scalar(logit_scale, patch_embeds), threshold)
    if backend == "eager":
        patch_embeds, token_embeds = _recordable(patch_embeds), _recordable(token_embeds)
        return (
            fine_grained_reference(patch_embeds, token_embeds, *inputs[2:]),
            _valid_mean(patch_embeds, patch_mask) if pool_patches else patch_embeds,
            _valid_mean(token_embeds, token_mask) if pool_tokens else token_embeds,
        )
    token_loss, _, pooled_patches, pooled_tokens = apply(
        FineGrainedLossFunction, "fine_grained_forward", *inputs, pool_patches, pool_tokens, backend
    )
    return token_loss, pooled_patches, pooled_tokens


def _recordable(tensor: Tensor | None) -> Any:
    """A tensor made under ``torch.inference_mode`` as one that autograd's own operators can save: a copy."""
    if (
        tensor is None
        or torch.compiler.is_compiling()
        or not tensor.is_inference()
        or torch.is_inference_mode_enabled()
    ):
        return tensor
    return tensor.clone()


def _valid_mean(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [B, N, D] over the valid rows: [B, D] in the embeddings' dtype, accumulated wider; 0 where none is."""
    accumulation = accumulation_dtype(embeds.dtype)
    if mask is None:
        return embeds.mean(1, dtype=accumulation).to(embeds.dtype)
    total = embeds.masked_fill(~mask[..., None], 0).sum(1, dtype=accumulation)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(embeds.dtype)


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
    return _arrays.call(
        _language_grouped_embeddings, patch_embeds, token_embeds, patch_mask, similarity_threshold, backend
    )


def _language_grouped_embeddings(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, threshold: float | None, backend: str
) -> Tensor:
    inputs, backend = _grouping_inputs(patch_embeds, token_embeds, patch_mask, threshold, backend)
    if backend == "eager":
        return grouped_embeddings_reference(*map(_recordable, inputs))
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
    return _arrays.call(_alignment_weights, patch_embeds, token_embeds, patch_mask, similarity_threshold, backend)


def _alignment_weights(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, threshold: float | None, backend: str
) -> Tensor:
    inputs, backend = _grouping_inputs(patch_embeds, token_embeds, patch_mask, threshold, backend)
    if backend == "eager":
        return alignment_weights_reference(*map(_recordable, inputs))
    return apply(AlignmentWeightsFunction, "alignment_weights_forward", *inputs, backend)[0]


def _grouping_inputs(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, threshold: float | None, backend: str
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], str]:
    pairs = _pairs(patch_embeds, token_embeds, None, patch_mask, threshold)
    backend = resolve("grouping", backend, pairs.patch_embeds.device, pairs.patch_embeds.dtype)
    return (pairs.patch_embeds, pairs.token_embeds, patch_mask, pairs.threshold), backend


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    group: object = None,
    backend: str = "auto",
) -> Tensor:
    """Global contrastive loss: symmetric InfoNCE of the cosines between all images and texts of the batch.

    Equation 1 of Bica et al. (2024); the loss of CLIP. Served by the eager backend for now.

    Args:
        image_embeds: [B, D] image embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_embeds: [B, D] text embeddings, of the same dtype and device.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        group: a process group; only None for now.
        backend: ``"auto"`` or ``"eager"``.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fine_grained_loss`.
    """
    _validate.embeddings("image_embeds", image_embeds, "[B, D]")
    _validate.embeddings("text_embeds", text_embeds, "[B, D]")
    image_embeds, text_embeds = _autocast(image_embeds, text_embeds)
    _validate.same("text_embeds", text_embeds, "image_embeds", image_embeds, {"B": 0, "D": 1})
    _validate.logit_scale("logit_scale", logit_scale, "image_embeds", image_embeds)
    _validate.group(group)
    resolve("contrastive", backend, image_embeds.device, image_embeds.dtype)
    scale = _scalar(logit_scale, image_embeds)
    return contrastive_reference(_recordable(image_embeds), _recordable(text_embeds), scale)


def sparc_loss(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None = None,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    local_logit_scale: float | Tensor | None = None,
    patch_mask: Tensor | None = None,
    image_embeds: Tensor | None = None,
    text_embeds: Tensor | None = None,
    similarity_threshold: float | None = None,
    global_weight: float = 0.5,
    local_weight: float = 1.0,
    reduction: str = "token",
    return_components: bool = False,
    group: object = None,
    backend: str = "auto",
) -> Tensor | SparcLossOutput:
    """The SPARC loss: ``global_weight * contrastive_loss + local_weight * fine_grained_loss``.

    Equation 7 of Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024).

    Args:
        patch_embeds: [B, P, D] patch embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        token_embeds: [B, L, D] token embeddings, of the same dtype and device.
        token_mask: [B, L] bool, True = valid; None = all valid.
        logit_scale: 1 / temperature of both losses, a number or a one-element tensor (which receives a gradient in its
            shape). A learned logarithm, as CLIP keeps it, comes in as ``log_scale.exp()``.
        local_logit_scale: 1 / temperature of the fine-grained loss where it is to differ; None = ``logit_scale``.
        patch_mask: [B, P] bool, True = valid; None = all valid.
        image_embeds: [B, G] global image embeddings; None = mean over the valid patches.
        text_embeds: [B, G] global text embeddings; None = mean over the valid tokens.
        similarity_threshold: sigma of eq 3, in [0, 1]; None = 1 / (number of valid patches of the image).
        global_weight: lambda_g of eq 7.
        local_weight: lambda_f of eq 7.
        reduction: of the fine-grained loss, as in :func:`fine_grained_loss`. ``"none"`` needs ``return_components``:
            the [B, L] losses are then in ``local_loss``, while ``loss`` takes their mean over valid tokens.
        return_components: return a :class:`SparcLossOutput` (loss, global_loss, local_loss).
        group: a process group; only None for now.
        backend: of the fine-grained loss, as in :func:`fine_grained_loss` (the global loss is eager for now).

    Returns:
        [] in float32 (float64 for float64 embeddings), or a :class:`SparcLossOutput`.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fine_grained_loss`.
    """
    pairs = _pairs(patch_embeds, token_embeds, token_mask, patch_mask, similarity_threshold)
    _validate.weight("global_weight", global_weight)
    _validate.weight("local_weight", local_weight)
    _validate.reduction(reduction)
    _validate.group(group)
    if reduction == "none" and not return_components:
        raise ValueError("reduction='none' gives no scalar loss: pass return_components=True, got False")
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if embeds is not None:
            _validate.embeddings(name, embeds, "[B, G]")
            _validate.global_batch(name, embeds, "patch_embeds", patch_embeds)

    own_scale = local_logit_scale is not None
    token_loss, pooled_patches, pooled_tokens = _token_losses(
        pairs,
        logit_scale if local_logit_scale is None else local_logit_scale,
        "local_logit_scale" if own_scale else "logit_scale",
        backend,
        pool_patches=image_embeds is None,
        pool_tokens=text_embeds is None,
    )
    local_loss = _reduce(token_loss, token_mask, reduction)
    global_loss = contrastive_loss(
        pooled_patches if image_embeds is None else image_embeds,
        pooled_tokens if text_embeds is None else text_embeds,
        logit_scale=logit_scale,
    )
    local_mean = _reduce(local_loss, token_mask, "token") if reduction == "none" else local_loss
    loss = global_weight * global_loss + local_weight * local_mean
    return SparcLossOutput(loss, global_loss, local_loss) if return_components else loss

"""Contrastive losses over all pairs of a batch, composed of streamed statistics (docs/losses.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE, autocast, recordable, scalar
from sparc_kernels.functional.similarity import Ids, similarity_logsumexp, similarity_softplus
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast
from sparc_kernels.ops.contrastive.reference import contrastive_reference, sigmoid_reference


def paired_cosines(rows: Tensor, cols: Tensor) -> Tensor:
    """[M] cosines of row i with column i, in the accumulation dtype."""
    dtype = accumulation_dtype(rows.dtype)
    with without_autocast(rows.device.type):
        x, y = rows.to(dtype), cols.to(dtype)
        norms = [torch.linalg.vector_norm(side, dim=-1).clamp_min(1e-12) for side in (x, y)]
        # norms apart: through F.normalize forward and backward take three times as long on a CPU
        return (x * y).sum(-1) / norms[0] / norms[1]


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    group: object = None,
    backend: str = "auto",
) -> Tensor:
    """Global contrastive loss: symmetric InfoNCE of the cosines between all images and texts of the batch.

    Equation 1 of Bica et al. (2024); the loss of CLIP.

    Args:
        image_embeds: [B, D] image embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_embeds: [B, D] text embeddings, of the same dtype and device.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        group: a process group; only None for now.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fine_grained_loss`.
    """
    image_embeds, text_embeds = _paired(image_embeds, text_embeds)
    _validate.scalar("logit_scale", logit_scale, "image_embeds", image_embeds)
    _validate.group(group)
    backend = resolve("contrastive", backend, image_embeds.device, image_embeds.dtype)
    scale = scalar(logit_scale, image_embeds)
    if backend == "eager":
        return contrastive_reference(recordable(image_embeds), recordable(text_embeds), scale)
    ids = torch.arange(image_embeds.shape[0], device=image_embeds.device)
    found = similarity_logsumexp(
        image_embeds, text_embeds, row_scale=scale, exclude=Ids(ids, ids), group=group, backend=backend
    )
    positives = scale * paired_cosines(recordable(image_embeds), recordable(text_embeds))
    assert found.row_lse is not None
    assert found.col_lse is not None
    total = F.softplus(found.row_lse - positives).sum() + F.softplus(found.col_lse - positives).sum()
    return total / (2 * max(image_embeds.shape[0], 1))


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    group: object = None,
    backend: str = "auto",
) -> Tensor:
    """The sigmoid loss: every pair of the batch a binary classification.

    Equation 1 of Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023).

    Args:
        image_embeds: [B, D] image embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_embeds: [B, D] text embeddings, of the same dtype and device.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        logit_bias: added to every logit, a number or a one-element tensor; the paper starts at -10.
        group: a process group; only None for now.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [] in float32 (float64 for float64 embeddings): the sum over all pairs, divided by B; 0 for an empty batch.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fine_grained_loss`.
    """
    image_embeds, text_embeds = _paired(image_embeds, text_embeds)
    for name, value in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        _validate.scalar(name, value, "image_embeds", image_embeds)
    _validate.group(group)
    backend = resolve("contrastive", backend, image_embeds.device, image_embeds.dtype)
    scale, bias = scalar(logit_scale, image_embeds), scalar(logit_bias, image_embeds)
    if backend == "eager":
        return sigmoid_reference(recordable(image_embeds), recordable(text_embeds), scale, bias)
    ids = torch.arange(image_embeds.shape[0], device=image_embeds.device)
    negatives = similarity_softplus(
        image_embeds, text_embeds, scale=scale, bias=bias, exclude=Ids(ids, ids), group=group, backend=backend
    )
    positives = scale * paired_cosines(recordable(image_embeds), recordable(text_embeds)) + bias
    return (negatives + F.softplus(-positives)).sum() / max(image_embeds.shape[0], 1)


def _paired(image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, ...]:
    _validate.embeddings("image_embeds", image_embeds, "[B, D]")
    _validate.embeddings("text_embeds", text_embeds, "[B, D]")
    image_embeds, text_embeds = autocast(image_embeds, text_embeds)
    _validate.same("text_embeds", text_embeds, "image_embeds", image_embeds, {"B": 0, "D": 1})
    return image_embeds, text_embeds

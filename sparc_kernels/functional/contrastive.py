"""The global contrastive loss."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE, autocast, recordable, scalar
from sparc_kernels.ops.contrastive.reference import contrastive_reference


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
    image_embeds, text_embeds = autocast(image_embeds, text_embeds)
    _validate.same("text_embeds", text_embeds, "image_embeds", image_embeds, {"B": 0, "D": 1})
    _validate.scalar("logit_scale", logit_scale, "image_embeds", image_embeds)
    _validate.group(group)
    resolve("contrastive", backend, image_embeds.device, image_embeds.dtype)
    scale = scalar(logit_scale, image_embeds)
    return contrastive_reference(recordable(image_embeds), recordable(text_embeds), scale)

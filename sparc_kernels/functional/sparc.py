"""The SPARC loss: the global and the fine-grained one, weighed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import has_kernels
from sparc_kernels.distributed import Group, ranks_of
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE
from sparc_kernels.functional.alignment import check_reduction, checked_pairs, reduced, token_losses
from sparc_kernels.functional.contrastive import contrastive_loss


class SparcLossOutput(NamedTuple):
    """What ``sparc_loss(..., return_components=True)`` returns."""

    loss: Tensor
    """[]: global_weight * global_loss + local_weight * local loss (eq 7)."""
    global_loss: Tensor
    """[]: the contrastive loss over the batch (eq 1)."""
    local_loss: Tensor
    """[]: the fine-grained loss (eq 6), or [B, L] per token with ``reduction="none"``."""


def _check_batch(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Global embeddings ``value`` belong to the pairs of ``other``: the same first dimension and device."""
    if value.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} and {other_name} must have the same B, got B={value.shape[0]} in {list(value.shape)} and "
            f"{other.shape[0]} in {list(other.shape)}; those of other processes take part by group='world'"
        )
    _validate.same_device(name, value, other_name, other)


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
    group: Group = None,
    gradients: str = "mean",
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
        group: ``"world"`` or a process group: the losses are those of the batches of all its ranks, as in
            :func:`contrastive_loss` and :func:`fine_grained_loss`, and every rank returns them. None: this process
            alone.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``.
        backend: of both losses, as in :func:`fine_grained_loss`. Where the global loss has no kernels of the kind asked
            for (there are none in CUDA C++), it takes what ``"auto"`` gives it; where it has, it never falls back.

    Returns:
        [] in float32 (float64 for float64 embeddings), or a :class:`SparcLossOutput`.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fine_grained_loss`.
    """
    pairs = checked_pairs(patch_embeds, token_embeds, token_mask, patch_mask, similarity_threshold)
    _validate.weight("global_weight", global_weight)
    _validate.weight("local_weight", local_weight)
    check_reduction(reduction)
    ranks = ranks_of(group, gradients, "sparc_loss")
    if reduction == "none" and not return_components:
        raise ValueError("reduction='none' gives no scalar loss: pass return_components=True, got False")
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if embeds is not None:
            _validate.embeddings(name, embeds, "[B, G]")
            _check_batch(name, embeds, "patch_embeds", patch_embeds)

    own_scale = local_logit_scale is not None
    token_loss, pooled_patches, pooled_tokens = token_losses(
        pairs,
        logit_scale if local_logit_scale is None else local_logit_scale,
        "local_logit_scale" if own_scale else "logit_scale",
        backend,
        pool_patches=image_embeds is None,
        pool_tokens=text_embeds is None,
        ranks=ranks,
    )
    local_loss = reduced(token_loss, token_mask, reduction, ranks)
    global_loss = contrastive_loss(
        pooled_patches if image_embeds is None else image_embeds,
        pooled_tokens if text_embeds is None else text_embeds,
        logit_scale=logit_scale,
        group=group,
        gradients=gradients,
        backend=backend if has_kernels("contrastive", backend) else "auto",
    )
    local_mean = reduced(local_loss, token_mask, "token", ranks) if reduction == "none" else local_loss
    loss = global_weight * global_loss + local_weight * local_mean
    return SparcLossOutput(loss, global_loss, local_loss) if return_components else loss

"""Eager definition of the global contrastive loss.

Source: Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), equation 1; the loss of
CLIP (Radford et al., 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def contrastive_reference(
    image_embeds: Tensor,  # [B, D]
    text_embeds: Tensor,  # [B, D]
    logit_scale: Tensor,  # []
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # []
    """Symmetric InfoNCE over the batch (eq 1), the mean of both directions; 0 for an empty batch.

    Computed in ``compute_dtype`` (default: the accumulation dtype of the inputs), except for norms and cross-entropies,
    which always run in the accumulation dtype.
    """
    with without_autocast(image_embeds.device.type):
        accumulation = accumulation_dtype(image_embeds.dtype)
        dtype = compute_dtype or accumulation
        images = F.normalize(image_embeds.to(accumulation), dim=-1).to(dtype)
        texts = F.normalize(text_embeds.to(accumulation), dim=-1).to(dtype)
        logits = logit_scale.to(accumulation) * (images @ texts.T).to(accumulation)  # [B, B]
        diagonal = logits.diagonal()
        rows, columns = logits.logsumexp(1) - diagonal, logits.logsumexp(0) - diagonal
        return (rows + columns).sum() / (2 * max(logits.shape[0], 1))

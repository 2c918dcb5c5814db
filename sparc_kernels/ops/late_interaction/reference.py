"""Eager definition of late interaction: the truth that the kernels are held to (``MATH.md``).

Sources: FILIP (Yao et al., 2021, arXiv 2111.07783), section 3.1; ColBERT's MaxSim (Khattab and Zaharia, 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._captions.eager import flat_products, padded_captions, valid_tokens
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def _pooled(similarities: Tensor, others: Tensor, own: Tensor, dim: int, average: bool) -> Tensor:  # [I, J]
    """The maximum along ``dim`` over valid ``others``, pooled over the valid ones of the ``own`` side."""
    best = similarities.masked_fill(~others, -torch.inf).max(dim).values  # [I, J, own side]
    best = torch.where(own & others.any(dim), best, 0)
    total = best.sum(2)
    return total / own.sum(2).clamp(min=1) if average else total


def late_interaction_reference(
    image_tokens: Tensor,  # [I, P, D]
    text_tokens: Tensor,  # [J, L, D] or packed [N, D]
    image_mask: Tensor | None = None,  # [I, P]
    text_mask: Tensor | None = None,  # [J, L]
    text_offsets: Tensor | None = None,  # [J + 1]
    max_tokens: int = 0,
    normalize: bool = True,
    average: bool = True,
    by_image: bool = True,
    by_text: bool = True,
    *,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """image_scores and text_scores, [I, J]; None for what is not asked for.

    Similarities are computed in ``compute_dtype`` (default: the accumulation dtype of the inputs); norms, maxima and
    sums in the accumulation dtype.
    """
    with without_autocast(image_tokens.device.type):
        if text_offsets is not None:
            text_tokens, text_mask = padded_captions(text_tokens, text_offsets, max(max_tokens, 1))
        accumulation = accumulation_dtype(image_tokens.dtype)
        sides = []
        for tokens, mask in ((image_tokens, image_mask), (text_tokens, text_mask)):
            there, valid = valid_tokens(tokens.to(accumulation), mask)
            sides.append(
                ((F.normalize(there, dim=-1) if normalize else there).to(compute_dtype or accumulation), valid)
            )
        (patches, patch_valid), (tokens, token_valid) = sides
        similarities = flat_products(patches, tokens).to(accumulation)  # [I, J, L, P]
        token_side = token_valid[None, :, :, None]  # [1, J, L, 1]
        patch_side = patch_valid[:, None, None, :]  # [I, 1, 1, P]
        image_scores = text_scores = None
        if by_image:
            image_scores = _pooled(similarities, token_side, patch_side.squeeze(2), 2, average)
        if by_text:
            text_scores = _pooled(similarities, patch_side, token_side.squeeze(3), 3, average)
        return image_scores, text_scores

"""Eager definition of attention-pooled scores: the truth that the kernels are held to (``MATH.md``).

Sources: GLoRIA (Huang et al., ICCV 2021), section 3.2; PACL (Mukhoti et al., 2023, arXiv 2212.04994), section 3.2;
FLAIR (Xiao et al., 2025, arXiv 2412.03561), section 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._captions.eager import flat_products, padded_captions, valid_tokens
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def _weights(
    similarities: Tensor,  # [I, J, L, P]
    token_valid: Tensor,  # [J, L]
    patch_valid: Tensor,  # [I, P]
    kind: str,
    scale: float,
) -> Tensor:  # [I, J, L, P], 0 at patches that are not valid
    patches = patch_valid[:, None, None, :]
    # Finite, so that a softmax over nothing valid has a finite derivative.
    lowest = torch.finfo(similarities.dtype).min
    if kind == "sigmoid":
        return torch.where(patches, (scale * similarities).sigmoid(), 0)
    if kind == "words_softmax":
        similarities = similarities.masked_fill(~token_valid[None, :, :, None], lowest).softmax(2)
    logits = (scale * similarities).masked_fill(~patches, lowest)
    if kind == "softmax_sink":
        logits = F.pad(logits, (0, 1))
    weights = logits.softmax(3)
    return torch.where(patches, weights[..., : patch_valid.shape[1]], 0)


def attention_pooled_reference(
    image_tokens: Tensor,  # [I, P, D]
    text_tokens: Tensor,  # [J, L, D] or packed [N, D]
    image_mask: Tensor | None = None,  # [I, P]
    text_mask: Tensor | None = None,  # [J, L]
    text_offsets: Tensor | None = None,  # [J + 1]
    max_tokens: int = 0,
    normalize: bool = True,
    weights: str = "softmax",
    attention_scale: float = 10.0,
    pooling: str = "mean",
    pooling_scale: float = 5.0,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [I, J]
    """Scores of all pairs.

    Similarities and contexts are computed in ``compute_dtype`` (default: the accumulation dtype of the inputs); norms,
    weights, cosines and sums in the accumulation dtype.
    """
    with without_autocast(image_tokens.device.type):
        if text_offsets is not None:
            text_tokens, text_mask = padded_captions(text_tokens, text_offsets, max(max_tokens, 1))
        accumulation = accumulation_dtype(image_tokens.dtype)
        patches, patch_valid = valid_tokens(image_tokens.to(accumulation), image_mask)
        tokens, token_valid = valid_tokens(text_tokens.to(accumulation), text_mask)
        directions = F.normalize(tokens, dim=-1)  # [J, L, D]
        if normalize:
            patches, tokens = F.normalize(patches, dim=-1), directions
        patches, tokens = (x.to(compute_dtype or accumulation) for x in (patches, tokens))
        similarities = flat_products(patches, tokens).to(accumulation)  # (1), [I, J, L, P]
        chosen = _weights(similarities, token_valid, patch_valid, weights, attention_scale)  # (2)
        i, j, l, p = chosen.shape
        flat = chosen.to(patches.dtype).view(i, j * l, p) @ patches
        contexts = flat.view(i, j, l, patches.shape[2]).to(accumulation)  # (3)
        cosines = (F.normalize(contexts, dim=-1) * directions).sum(3)  # (4), [I, J, L]
        if pooling == "logsumexp":  # (5)
            lowest = torch.finfo(accumulation).min
            scores = (pooling_scale * cosines).masked_fill(~token_valid, lowest).logsumexp(2)
        else:
            scores = torch.where(token_valid, cosines, 0).sum(2) / token_valid.sum(1).clamp(min=1)
        return torch.where(patch_valid.any(1)[:, None] & token_valid.any(1), scores, 0)

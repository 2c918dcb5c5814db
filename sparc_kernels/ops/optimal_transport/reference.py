"""Eager definition of optimal transport within pairs: the truth that the kernels are held to (``MATH.md``).

Sources: the inexact proximal point method of Xie et al. (2018, arXiv 1802.04307), algorithm 1 with one inner step, as
UNITER uses it (Chen et al., 2019, arXiv 1909.11740, section 3.3 and ``model/ot.py``); Sinkhorn's iteration (Cuturi,
2013, arXiv 1306.0895).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def _valid(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens with zeros in padding, so that what stands there reaches no gradient, and the mask."""
    if mask is None:
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return torch.where(mask[:, :, None], tokens, 0), mask


def _log_plan(
    similarities: Tensor,  # [B, L, P]
    valid: Tensor,  # [B, L, P] bool
    beta: float | Tensor,
    iterations: int,
    proximal: bool,
) -> Tensor:  # [B, L, P], -inf where a pair is not valid
    """Logarithm of the plan after ``iterations`` steps, from vectors alone (eq 2-5)."""
    unit = torch.where(valid, similarities, 0) / beta
    outside = torch.zeros_like(unit).masked_fill(~valid, -math.inf)
    tokens, patches = valid.any(2), valid.any(1)  # [B, L], [B, P]
    log_n = tokens.sum(1, keepdim=True).clamp(min=1).to(unit.dtype).log()
    log_m = patches.sum(1, keepdim=True).clamp(min=1).to(unit.dtype).log()
    f_before = f = torch.zeros_like(unit[:, :, 0])
    g = torch.zeros_like(unit[:, 0])
    kernel = unit + outside
    for step in range(1, iterations + 1):
        if proximal:
            kernel = step * unit + outside  # eq 2
        start = 2 * f - f_before if proximal else f  # eq 3
        g = torch.where(patches, -log_m - (kernel + start[:, :, None]).logsumexp(1), 0)  # eq 4
        f_before, f = f, torch.where(tokens, -log_n - (kernel + g[:, None]).logsumexp(2), 0)  # eq 5
    return torch.where(valid, kernel + f[:, :, None] + g[:, None], -math.inf)


def transport_reference(
    image_tokens: Tensor,  # [B, P, D]
    text_tokens: Tensor,  # [B, L, D]
    image_mask: Tensor | None = None,  # [B, P]
    text_mask: Tensor | None = None,  # [B, L]
    beta: float | Tensor = 0.5,
    iterations: int = 50,
    proximal: bool = True,
    *,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """What it costs to transport each token [B, L], and the plan [B, L, P], which has no gradient.

    Similarities are computed in ``compute_dtype`` (default: the accumulation dtype of the inputs); norms, potentials
    and costs in the accumulation dtype.
    """
    with without_autocast(image_tokens.device.type):
        accumulation = accumulation_dtype(image_tokens.dtype)
        sides = []
        for tokens, mask in ((image_tokens, image_mask), (text_tokens, text_mask)):
            there, valid = _valid(tokens.to(accumulation), mask)
            sides.append((F.normalize(there, dim=-1).to(compute_dtype or accumulation), valid))
        (patches, patch_valid), (words, word_valid) = sides
        similarities = (words @ patches.transpose(1, 2)).to(accumulation)  # [B, L, P]
        valid = word_valid[:, :, None] & patch_valid[:, None]
        plan = _log_plan(similarities.detach(), valid, beta, iterations, proximal).exp()
        return ((1 - similarities) * plan).sum(2), plan  # eq 1, 6


def optimal_transport_reference(
    image_tokens: Tensor,  # [B, P, D]
    text_tokens: Tensor,  # [B, L, D]
    image_mask: Tensor | None = None,  # [B, P]
    text_mask: Tensor | None = None,  # [B, L]
    beta: float | Tensor = 0.5,
    iterations: int = 50,
    proximal: bool = True,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [B]
    """The distance of each pair: the sum of :func:`transport_reference`'s costs."""
    costs, _ = transport_reference(
        image_tokens, text_tokens, image_mask, text_mask, beta, iterations, proximal, compute_dtype=compute_dtype
    )
    return costs.sum(1)

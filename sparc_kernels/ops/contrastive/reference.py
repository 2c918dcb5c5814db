"""Eager definitions: statistics of a similarity matrix, and the contrastive loss as CLIP writes it (``MATH.md``).

Sources: Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), equation 1; Radford et
al. (2021); the sigmoid loss of Zhai et al. (2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast


def _directions(sides: tuple[Tensor, Tensor], compute_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Of norm 1 or 0, in ``compute_dtype`` (default: the accumulation dtype); norms in the accumulation dtype."""
    accumulation = accumulation_dtype(sides[0].dtype)
    x, y = (F.normalize(side.to(accumulation), dim=-1).to(compute_dtype or accumulation) for side in sides)
    return x, y


def _cosines(rows: Tensor, cols: Tensor, compute_dtype: torch.dtype | None) -> Tensor:  # [M, N]
    x, y = _directions((rows, cols), compute_dtype)
    return (x @ y.T).to(accumulation_dtype(rows.dtype))


def _taking_part(
    rows: Tensor,
    cols: Tensor,
    row_ids: Tensor | None,
    col_ids: Tensor | None,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    guide_cosines: Tensor | None,
    guide_threshold: Tensor | None,
    ids_exclude: bool,
) -> tuple[Tensor, Tensor]:
    """E and T, [M, N] bool."""
    m, n = rows.shape[0], cols.shape[0]
    part = torch.ones((m, n), dtype=torch.bool, device=rows.device)
    same = torch.zeros_like(part)
    if row_ids is not None and col_ids is not None:
        same = row_ids[:, None] == col_ids
        part = part & (row_ids[:, None] != -1) & (col_ids != -1)
        if ids_exclude:
            part = part & ~same
    if excluded_indptr is not None and excluded_indices is not None:
        position = torch.arange(excluded_indices.shape[0], device=rows.device)
        row = torch.searchsorted(excluded_indptr, position, right=True) - 1
        inside = (excluded_indices >= 0) & (excluded_indices < n)
        flat = torch.where(inside, row * n + excluded_indices, m * n)  # the last place is nobody's
        out = torch.zeros(m * n + 1, dtype=torch.bool, device=rows.device).index_fill(0, flat, True)
        part = part & ~out[: m * n].view(m, n)
    if guide_cosines is not None and guide_threshold is not None:
        part = part & ~(guide_cosines > guide_threshold.reshape(-1, 1))
    return part, part & same & (not ids_exclude)


def _logsumexp(logits: Tensor, part: Tensor, dim: int) -> Tensor:
    """Over the pairs that take part; -inf, with gradient 0, where there is none."""
    logits = logits.masked_fill(~part, -torch.inf)
    if logits.shape[dim] == 0:
        return logits.sum(dim) - torch.inf
    top = logits.detach().amax(dim, keepdim=True)
    total = (logits - top.masked_fill(top == -torch.inf, 0.0)).exp().sum(dim)
    some = part.any(dim)
    lse = top.squeeze(dim).masked_fill(~some, 0.0) + total.masked_fill(~some, 1.0).log()
    return lse.masked_fill(~some, -torch.inf)


def _softplus(z: Tensor) -> Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))


def similarity_logsumexp_reference(
    rows: Tensor,  # [M, D]
    cols: Tensor,  # [N, D]
    row_scale: Tensor,  # [] or [M]
    col_scale: Tensor,  # [] or [N]
    row_ids: Tensor | None = None,  # [M]
    col_ids: Tensor | None = None,  # [N]
    excluded_indptr: Tensor | None = None,  # [M + 1]
    excluded_indices: Tensor | None = None,
    guide_rows: Tensor | None = None,  # [M, K]
    guide_cols: Tensor | None = None,  # [N, K]
    guide_scale: Tensor | None = None,  # []
    guide_threshold: Tensor | None = None,  # [] or [M]
    by_rows: bool = True,
    by_cols: bool = True,
    ids_exclude: bool = True,
    *,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, ...]:
    """row_lse, col_lse, row_target, col_target, row_soft, col_soft (``MATH.md``); None for what is not asked for."""
    with without_autocast(rows.device.type), torch.no_grad():
        guide = _cosines(guide_rows, guide_cols, None) if guide_rows is not None and guide_cols is not None else None
        part, same = _taking_part(
            rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide, guide_threshold, ids_exclude
        )
    with without_autocast(rows.device.type):
        cosines = _cosines(rows, cols, compute_dtype)  # [M, N]
        results: list[Tensor | None] = []
        for dim, wanted, scale in ((1, by_rows, row_scale.reshape(-1, 1)), (0, by_cols, col_scale.reshape(1, -1))):
            logits = scale.to(cosines.dtype) * cosines
            lse = _logsumexp(logits, part, dim) if wanted else None
            target = (logits * same).sum(dim) if wanted and row_ids is not None and not ids_exclude else None
            soft = None
            if wanted and guide is not None and guide_scale is not None:
                teacher = guide_scale.detach() * guide
                level = _logsumexp(teacher, part, dim).unsqueeze(dim)
                probability = (teacher - level.masked_fill(level == -torch.inf, 0.0)).exp() * part
                soft = (probability * logits).sum(dim)
            results += [lse, target, soft]
        return results[0], results[3], results[1], results[4], results[2], results[5]


def similarity_softplus_reference(
    rows: Tensor,  # [M, D]
    cols: Tensor,  # [N, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    row_ids: Tensor | None = None,  # [M]
    col_ids: Tensor | None = None,  # [N]
    excluded_indptr: Tensor | None = None,  # [M + 1]
    excluded_indices: Tensor | None = None,
    guide_rows: Tensor | None = None,  # [M, K]
    guide_cols: Tensor | None = None,  # [N, K]
    guide_threshold: Tensor | None = None,  # [] or [M]
    ids_exclude: bool = True,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [M]
    """row_sum (``MATH.md``)."""
    with without_autocast(rows.device.type):
        guide = _cosines(guide_rows, guide_cols, None) if guide_rows is not None and guide_cols is not None else None
        part, same = _taking_part(
            rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide, guide_threshold, ids_exclude
        )
        z = scale * _cosines(rows, cols, compute_dtype) + bias  # [M, N]
        return _softplus(torch.where(same, -z, z)).masked_fill(~part, 0.0).sum(1)


def paired_cosines_reference(
    rows: Tensor,  # [M, D]
    cols: Tensor,  # [M, D]
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # [M]
    """Cosines of row i and column i (``MATH.md``)."""
    with without_autocast(rows.device.type):
        x, y = _directions((rows, cols), compute_dtype)
        return (x * y).sum(-1).to(accumulation_dtype(rows.dtype))


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
        logits = logit_scale.to(accumulation_dtype(image_embeds.dtype)) * _cosines(
            image_embeds, text_embeds, compute_dtype
        )
        diagonal = logits.diagonal()
        rows, columns = logits.logsumexp(1) - diagonal, logits.logsumexp(0) - diagonal
        return (rows + columns).sum() / (2 * max(logits.shape[0], 1))


def sigmoid_reference(
    image_embeds: Tensor,  # [B, D]
    text_embeds: Tensor,  # [B, D]
    logit_scale: Tensor,  # []
    logit_bias: Tensor,  # []
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:  # []
    """The sigmoid loss of Zhai et al. (2023), equation 1: the mean over rows of the sum over columns; 0 for an empty
    batch. Precision as in :func:`contrastive_reference`."""
    with without_autocast(image_embeds.device.type):
        z = logit_scale * _cosines(image_embeds, text_embeds, compute_dtype) + logit_bias
        labels = 2 * torch.eye(z.shape[0], dtype=z.dtype, device=z.device) - 1
        return _softplus(-labels * z).sum() / max(z.shape[0], 1)

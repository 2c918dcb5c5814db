"""Hard negatives of a batch or a bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.distributed import Group, ranks_of
from sparc_kernels.functional._candidates import (
    Exclusion,
    Scope,
    checked_levels,
    checked_rows_and_columns,
    checked_scope,
)
from sparc_kernels.functional._everyone import everyone_of, exclusion_facts, scope_of_everyone
from sparc_kernels.functional._positives import rows_of
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast

_CHUNK_BYTES = 64 * 2**20  # of the similarities of some rows


@torch.no_grad()
def mine_negatives(
    rows: Tensor,
    cols: Tensor,
    k: int,
    *,
    exclude: Exclusion | Sequence[Exclusion] | None = None,
    at_most: float | Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """The ``k`` columns of largest cosine with each row, the most similar first.

    Computed with PyTorch's operators, some rows at a time: memory is linear in the number of items. No gradient: gather
    the embeddings by the indices, and compute the [M, k] similarities with them.

    Args:
        rows: [M, D] embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        cols: [N, D] embeddings, of the same dtype and device.
        k: how many, from 1 to N (with ``group``: to the columns of all ranks).
        exclude: who is no negative, as in :func:`similarity_logsumexp`: the positives, to begin with.
        at_most: columns of a cosine above this are no negatives: a number, a one-element tensor or [M], such as the
            positive's cosine + 0.1 (UniME).
        group: ``"world"`` or a process group: columns are those of all its ranks, one after the other, and indices
            count them through. Each rank comes with its own rows and columns, of any number, with ids, guides and
            thresholds of these, and with the rows of ``indptr`` of its own rows. The columns are gathered.

    Returns:
        [M, k] int64: indices of columns; -1 where a row has no more.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`similarity_logsumexp`.
    """
    rows, cols = checked_rows_and_columns(rows, cols)
    ranks = ranks_of(group, "mean", "mine_negatives")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    most = None if at_most is None else checked_levels("at_most", at_most, rows).expand(rows.shape[0])
    if ranks is None:
        _check_count(k, cols.shape[0])
        scope = checked_scope(rows, cols, exclude, None, None)
        with without_autocast(rows.device.type):
            return _mined(rows, cols, k, scope, most)
    everyone = everyone_of("cols", cols, exclusion_facts(exclude) | {"k": k}, ranks)
    spread = everyone.spread
    _check_count(k, spread.items())
    scope = checked_scope(rows, cols, exclude, None, None, spread.items())
    scope = scope_of_everyone(scope, everyone, rows)
    with without_autocast(rows.device.type):
        return spread.indices_of(_mined(rows, everyone.cols, k, scope, most))


def _check_count(k: int, columns: int) -> None:
    if not 1 <= k <= columns:
        raise ValueError(f"k must lie between 1 and {columns}, the number of columns, got {k}")


def _mined(rows: Tensor, cols: Tensor, k: int, scope: Scope, most: Tensor | None) -> Tensor:
    dtype = accumulation_dtype(rows.dtype)
    step = max(1, _CHUNK_BYTES // (dtype.itemsize * cols.shape[0]))
    directions = F.normalize(cols.to(dtype), dim=-1)
    guide = None if scope.guide_cols is None else F.normalize(scope.guide_cols.to(dtype), dim=-1)
    found = [rows.new_empty((0, k), dtype=torch.int64)]
    for start in range(0, rows.shape[0], step):
        chunk = slice(start, start + step)
        cosines = F.normalize(rows[chunk].to(dtype), dim=-1) @ directions.T
        out = _left_out(scope, chunk, cosines, guide)
        if most is not None:
            out |= cosines > most[chunk, None]
        values, indices = cosines.masked_fill_(out, -torch.inf).topk(k)
        found.append(indices.masked_fill(values == -torch.inf, -1))
    return torch.cat(found)


def _left_out(scope: Scope, chunk: slice, cosines: Tensor, guide: Tensor | None) -> Tensor:
    """[rows of the chunk, N] bool."""
    count, n = cosines.shape
    out = torch.zeros(count * n + 1, dtype=torch.bool, device=cosines.device)
    if scope.excluded_indptr is not None and scope.excluded_indices is not None:
        row = rows_of(scope.excluded_indptr, scope.excluded_indices) - chunk.start
        flat = torch.where((row >= 0) & (row < count), row * n + scope.excluded_indices, count * n)
        out.index_fill_(0, flat, True)  # the last place is that of other chunks
    out = out[: count * n].view(count, n)
    if scope.row_ids is not None and scope.col_ids is not None:
        own = scope.row_ids[chunk, None]
        out |= (own == scope.col_ids) | (own == -1) | (scope.col_ids == -1)
    if guide is not None and scope.guide_rows is not None and scope.guide_threshold is not None:
        teacher = F.normalize(scope.guide_rows[chunk].to(cosines.dtype), dim=-1) @ guide.T
        threshold = scope.guide_threshold
        out |= teacher > (threshold if threshold.dim() == 0 else threshold[chunk, None])
    return out

"""Positives one by one: their cosines, and their cross-entropies among the candidates of an item.

All of it in the accumulation dtype, of static shapes, without waiting for the device. Sums over the positives of an
item go through ``index_add``, whose order on a GPU is PyTorch's (``torch.use_deterministic_algorithms`` fixes it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from sparc_kernels.distributed import Spread
from sparc_kernels.functional._candidates import Scope
from sparc_kernels.functional._common import recordable
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast
from sparc_kernels.ops._registration import applied

_EPS = 1e-12  # least norm, as in F.normalize
# Of one side, in the accumulation dtype. On the CPU (2 cores, [4096, 512], forward and backward, noisy) 4 MiB took 0.6
# (float32) to 0.8 (bfloat16) of the time of one piece; elsewhere every piece costs launches.
_CHUNK_BYTES = {"cpu": 4 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 64 * 2**20


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); PyTorch's own threshold of 20 would cut 2e-9 off."""
    return F.softplus(x, threshold=40.0)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, dtype=accumulation_dtype(x.dtype))


def _inverse(norms: Tensor) -> Tensor:
    return norms.clamp(min=_EPS).reciprocal()


def inverse_norms(x: Tensor) -> Tensor:
    """[items] of [items, D], in the accumulation dtype."""
    return _inverse(_norms(x))


def _statistics(rows: Tensor, cols: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[K] cosines, and norms of all rows and of all columns."""
    norms = (_norms(rows), _norms(cols))
    parts = [(x * y).sum(-1) for _, x, y in _chunks(rows, cols, row, col)]
    products = parts[0] if len(parts) == 1 else torch.cat(parts)
    return products * _inverse(norms[0])[row] * _inverse(norms[1])[col], *norms


class CosinesOfPairsFunction(Function):
    """``apply(rows, cols, row, col)``: [K] cosines of ``rows[row]`` and ``cols[col]``; and the norms, which have no
    gradient.

    Keeps its inputs and results, works on some pairs at a time, and sums the gradients of an item before it rounds
    them. The derivative is made of PyTorch's operators, so it can be differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, cols: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _statistics(rows, cols, row, col)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *of_norms: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, row, col, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # what was kept does not know the inputs that it is made of
            kept = list(_statistics(rows, cols, row, col))
        cosines, *norms = kept
        inverse = [_inverse(norm) for norm in norms]
        across = grad * inverse[0][row] * inverse[1][col]
        sums: list[Tensor | None] = []
        along = []
        for own, index, norm, each, need in zip(
            (rows, cols), (row, col), norms, inverse, ctx.needs_input_grad[:2], strict=True
        ):
            sums.append(across.new_zeros(own.shape) if need else None)
            # A norm below the least one counts as a constant.
            along.append(grad * cosines * torch.where(norm > _EPS, each.square(), 0.0)[index])
        for chunk, x, y in _chunks(rows, cols, row, col):
            for total, index, own, other, turn in zip(sums, (row, col), (x, y), (y, x), along, strict=True):
                if total is not None:
                    found = torch.addcmul(across[chunk, None] * other, turn[chunk, None], own, value=-1)
                    total.index_add_(0, index[chunk], found)
        return (*(None if total is None else total.to(rows.dtype) for total in sums), None, None)


def _chunks(rows: Tensor, cols: Tensor, row: Tensor, col: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    dtype = accumulation_dtype(rows.dtype)
    budget = _CHUNK_BYTES.get(rows.device.type, _CHUNK_BYTES_ELSEWHERE)
    step = max(1, budget // (dtype.itemsize * rows.shape[1]))
    for start in range(0, max(row.shape[0], 1), step):
        chunk = slice(start, start + step)
        yield chunk, rows[row[chunk]].to(dtype), cols[col[chunk]].to(dtype)


def cosines_of_pairs(rows: Tensor, cols: Tensor, row: Tensor, col: Tensor, backend: str) -> Tensor:
    """[K] cosines of ``rows[row]`` and ``cols[col]``, in the accumulation dtype."""
    rows, cols, row, col = map(recordable, (rows, cols, row, col))
    if not (torch.compiler.is_compiling() or backend == "eager"):
        cosines: Tensor = applied(CosinesOfPairsFunction, rows, cols, row, col)[0]
        return cosines
    # A compiler chooses by itself what to keep, and eager has derivatives of every kind.
    dtype = accumulation_dtype(rows.dtype)
    with without_autocast(rows.device.type):
        x, y = rows[row].to(dtype), cols[col].to(dtype)
        return (x * y).sum(-1) * inverse_norms(x) * inverse_norms(y)


# Pairs in CSR form


def rows_of(indptr: Tensor, indices: Tensor) -> Tensor:
    """[number of pairs]: the row of each pair."""
    position = torch.arange(indices.shape[0], device=indices.device)
    return torch.searchsorted(indptr, position, right=True) - 1


def union(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], cols: int) -> tuple[Tensor, Tensor]:
    """``(indptr, indices)`` of the pairs in one or the other. Shapes are static: of a pair in both, one is moved to
    index ``cols``, where it excludes nothing."""
    width = cols + 1
    keys = torch.cat([rows_of(*pairs) * width + pairs[1] for pairs in (one, other)]).sort().values
    again = torch.cat([keys.new_zeros(keys.shape[:1], dtype=torch.bool)[:1], keys[1:] == keys[:-1]])
    keys = torch.where(again, keys - keys % width + cols, keys).sort().values
    starts = torch.arange(one[0].shape[0], device=keys.device) * width
    return torch.searchsorted(keys, starts), keys % width


def counts(segment: Tensor, items: Tensor) -> Tensor:
    """How many pairs each of the items has, in their shape and dtype."""
    return torch.zeros_like(items).index_add(0, segment, items.new_ones(segment.shape))


# Cross-entropies


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """logaddexp, whose derivative at two infinities is 0 and not NaN."""
    nothing = (a == -torch.inf) & (b == -torch.inf)
    return torch.logaddexp(a.masked_fill(nothing, 0.0), b.masked_fill(nothing, 0.0)).masked_fill(nothing, -torch.inf)


def over_ranks(of_items: Tensor, spread: Spread | None, largest: bool = False) -> Tensor:
    """Sums (or maxima) over ranks, of items at the positions of ``spread``; what lies behind them is this rank's."""
    if spread is None:
        return of_items
    parts = spread.parts(of_items[: spread.size])
    merged = spread.everyone(parts.amax(0) if largest else parts.sum(0))
    return torch.cat([merged, of_items[spread.size :]])


def segment_cross_entropies(
    positives: Tensor, segment: Tensor, negatives: Tensor, spread: Spread | None = None
) -> Tensor:
    """-log softmax of each positive's logit [K] among its item's candidates: all positives of item ``segment`` [K] and
    the negatives, of log-sum-exp ``negatives`` [items].

    Where one positive stands above the others of its item, theirs and the negatives' sum is set against it
    by softplus: exact where its probability is 1 but for a rounding, as with one positive alone.

    With ``spread`` the items are positions, and positives of an item are on all ranks.
    """
    items = negatives.shape[0]
    zero = negatives.detach().new_zeros(items)
    logits = positives.detach()
    top = over_ranks((zero - torch.inf).scatter_reduce(0, segment, logits, "amax"), spread, largest=True)
    is_top = logits == top[segment]
    lone = is_top & (over_ranks(zero.index_add(0, segment, is_top.to(zero.dtype)), spread)[segment] == 1)
    level = torch.maximum(top, negatives.detach())
    level = level.masked_fill(level == -torch.inf, 0.0)
    terms = (positives - level[segment]).exp().masked_fill(lone, 0.0)
    total = (negatives - level).exp() + over_ranks(zero.index_add(0, segment, terms), spread)
    none = total == 0
    rest = (level + total.masked_fill(none, 1.0).log()).masked_fill(none, -torch.inf)
    alone = over_ranks(zero.index_add(0, segment, positives.masked_fill(~lone, 0.0)), spread)
    has_lone = over_ranks(zero.index_add(0, segment, lone.to(zero.dtype)), spread) > 0
    whole = log_add(rest, alone.masked_fill(~has_lone, -torch.inf))
    return torch.where(lone, softplus(rest[segment] - positives), whole[segment] - positives)


# Labels


def label_counts(scope: Scope, by_rows: bool) -> Tensor:
    """[items] int64: how many targets a row (or a column) has where equal ids are targets."""
    assert scope.row_ids is not None
    assert scope.col_ids is not None
    own, others = (scope.row_ids, scope.col_ids) if by_rows else (scope.col_ids, scope.row_ids)
    ordered = others.sort().values
    found = torch.searchsorted(ordered, own, right=True) - torch.searchsorted(ordered, own)
    if scope.excluded_indptr is not None and scope.excluded_indices is not None:
        row, col = rows_of(scope.excluded_indptr, scope.excluded_indices), scope.excluded_indices
        same = scope.row_ids[row] == scope.col_ids[col]
        found = found - torch.zeros_like(found).index_add(0, row if by_rows else col, same.to(found.dtype))
    return found.masked_fill(own == -1, 0)

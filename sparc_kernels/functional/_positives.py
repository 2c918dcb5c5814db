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

from sparc_kernels.functional._candidates import Scope
from sparc_kernels.functional._common import recordable
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast

_EPS = 1e-12  # least norm, as in F.normalize
# Of one side, in the accumulation dtype. On the CPU (2 cores, [4096, 512], forward and backward, noisy) 4 MiB took 0.6
# (float32) to 0.8 (bfloat16) of the time of one piece; elsewhere every piece costs launches.
_CHUNK_BYTES = {"cpu": 4 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 64 * 2**20


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); PyTorch's own threshold of 20 would cut 2e-9 off."""
    return F.softplus(x, threshold=40.0)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1) / (_norms(x).clamp(min=_EPS) * _norms(y).clamp(min=_EPS))


def _gradients(x: Tensor, y: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> list[Tensor | None]:
    """Of the cosines of x and y (both [K, D]), from that of each cosine."""
    norms = (_norms(x), _norms(y))
    product = grad / (norms[0].clamp(min=_EPS) * norms[1].clamp(min=_EPS))
    turn = product * (x * y).sum(-1)
    found: list[Tensor | None] = []
    for own, other, norm, need in ((x, y, norms[0], needed[0]), (y, x, norms[1], needed[1])):
        # A norm below the least one counts as a constant.
        along = torch.where(norm > _EPS, turn / norm.clamp(min=_EPS).square(), 0.0)
        found.append(torch.addcmul(product[:, None] * other, along[:, None], own, value=-1) if need else None)
    return found


class PairedCosinesFunction(Function):
    """``apply(rows, cols, row, col)``: [K] cosines of ``rows[row]`` and ``cols[col]`` (None: of row i with column i).

    Keeps its inputs and nothing else, works on some pairs at a time, and sums the gradients of an item before it rounds
    them. The derivative is made of PyTorch's operators, so it can be differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, cols: Tensor, row: Tensor | None, col: Tensor | None) -> Tensor:
        return torch.cat([_cosines(x, y) for _, x, y in _chunks(rows, cols, row, col)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, row, col = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        parts: list[list[Tensor]] = [[], []]
        for chunk, x, y in _chunks(rows, cols, row, col):
            for side, (own, index, found) in enumerate(
                zip((rows, cols), (row, col), _gradients(x, y, grad[chunk], needed))
            ):
                if found is None:
                    continue
                if index is None:
                    parts[side].append(found.to(own.dtype))
                    continue
                so_far = parts[side].pop() if parts[side] else found.new_zeros(own.shape)
                parts[side].append(so_far.index_add(0, index[chunk], found))
        grads = (torch.cat(each).to(own.dtype) if each else None for own, each in zip((rows, cols), parts))
        return (*grads, None, None)


def _chunks(
    rows: Tensor, cols: Tensor, row: Tensor | None, col: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    dtype = accumulation_dtype(rows.dtype)
    count = (rows if row is None else row).shape[0]
    budget = _CHUNK_BYTES.get(rows.device.type, _CHUNK_BYTES_ELSEWHERE)
    step = max(1, budget // (dtype.itemsize * rows.shape[1]))
    for start in range(0, max(count, 1), step):
        chunk = slice(start, start + step)
        x, y = (side[chunk] if index is None else side[index[chunk]] for side, index in ((rows, row), (cols, col)))
        yield chunk, x.to(dtype), y.to(dtype)


def cosines_of_pairs(rows: Tensor, cols: Tensor, row: Tensor | None = None, col: Tensor | None = None) -> Tensor:
    """[K] cosines of ``rows[row]`` and ``cols[col]`` (None: of row i with column i), in the accumulation dtype."""
    rows, cols = recordable(rows), recordable(cols)
    if not torch.compiler.is_compiling():
        return PairedCosinesFunction.apply(rows, cols, recordable(row), recordable(col))
    dtype = accumulation_dtype(rows.dtype)
    with without_autocast(rows.device.type):  # a compiler chooses by itself what to keep
        x, y = (side.to(dtype) for side in (rows, cols))
        return _cosines(x if row is None else x[row], y if col is None else y[col])


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


def segment_cross_entropies(positives: Tensor, segment: Tensor, negatives: Tensor) -> Tensor:
    """-log softmax of each positive's logit [K] among its item's candidates: all positives of item ``segment`` [K] and
    the negatives, of log-sum-exp ``negatives`` [items].

    Where one positive stands above the others of its item, theirs and the negatives' sum is set against it
    by softplus: exact where its probability is 1 but for a rounding, as with one positive alone.
    """
    items = negatives.shape[0]
    zero = negatives.detach().new_zeros(items)
    logits = positives.detach()
    top = (zero - torch.inf).scatter_reduce(0, segment, logits, "amax")
    is_top = logits == top[segment]
    lone = is_top & (zero.index_add(0, segment, is_top.to(zero.dtype))[segment] == 1)
    level = torch.maximum(top, negatives.detach())
    level = level.masked_fill(level == -torch.inf, 0.0)
    terms = (positives - level[segment]).exp().masked_fill(lone, 0.0)
    total = (negatives - level).exp().index_add(0, segment, terms)
    none = total == 0
    rest = (level + total.masked_fill(none, 1.0).log()).masked_fill(none, -torch.inf)
    alone = zero.index_add(0, segment, positives.masked_fill(~lone, 0.0))
    has_lone = zero.index_add(0, segment, lone.to(zero.dtype)) > 0
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

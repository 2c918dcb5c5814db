"""One pass over a similarity matrix whose columns go around a ring of ranks.

Each rank has its rows, and multiplies them with one block of columns while the next is on its way. What it finds of a
column travels with the block and is home after a round; so do gradients, in the accumulation dtype. A column's numbers
are added up by one rank after the other, its owner first, a row's in the order of the visits: the same bits every time.
Nothing is added up on two ranks, which could then differ.

The functions are implementations of the ops in ``_ring.py``, and take the arguments of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparc_kernels.distributed import Ranks, Ring, Travelling
from sparc_kernels.functional._positives import inverse_norms
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import kernel
from sparc_kernels.ops.contrastive.schema import STATS, kept_dtype


class _Matrix(NamedTuple):
    """This rank's rows of the matrix, block after block."""

    rows: Tensor  # [M, D]
    cols: Tensor  # [n, D], this rank's, padded to as many as all ranks have
    row_ids: Tensor
    col_ids: Tensor
    indptr: Tensor | None
    indices: Tensor | None
    """Positions, counted through all ranks."""
    ring: Ring
    backend: str
    precision: str

    @classmethod
    def of(cls, rows: Tensor, cols: Tensor, scope: Sequence[Any], where: Sequence[Any]) -> _Matrix:
        group, size, rank, call, backend, precision = where
        row_ids, col_ids, indptr, indices = scope
        return cls(
            rows,
            cols,
            row_ids,
            col_ids,
            indptr,
            indices,
            Ring(Ranks(group, size, rank, call, True)),
            backend,
            precision,
        )

    def kernel(self, name: str) -> Any:
        return kernel(name, self.backend)

    def blocks(self, *more: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor | None, ...], tuple[Tensor, ...]]]:
        """Columns; the kernels' arguments from ``row_ids`` to ``guide_cols``; what travels with the columns."""
        for owner, (cols, ids, *others) in self.ring.blocks(self.cols.contiguous(), self.col_ids, *more):
            first = owner * self.cols.shape[0]  # indices of other blocks exclude nothing
            indices = None if self.indices is None else self.indices - first
            yield cols, (self.row_ids, ids, self.indptr, indices, None, None), tuple(others)

    def new(self, *shape: int) -> Tensor:
        """Zeros of the accumulation dtype."""
        return self.rows.new_zeros(shape, dtype=accumulation_dtype(self.rows.dtype))


class _Gradients:
    """Of rows, columns and two parameters, where they are needed, summed over blocks in the accumulation dtype."""

    def __init__(self, matrix: _Matrix, parameters: Sequence[Tensor], needed: Sequence[bool]) -> None:
        need_rows, need_cols, *others = needed
        self.rows = matrix.new(*matrix.rows.shape) if need_rows else None
        self.cols = Travelling(matrix.ring, matrix.new(*matrix.cols.shape)) if need_cols else None
        self.parameters = [torch.zeros_like(x) if need else None for x, need in zip(parameters, others)]
        self.matrix = matrix

    def add(self, rows: Tensor, cols: Tensor, *parameters: Tensor) -> None:
        for total, found in zip((self.rows, *self.parameters), (rows, *parameters)):
            if total is not None:
                total.add_(found)
        if self.cols is not None:
            self.cols.arrived().add_(cols)
            self.cols.pass_on()

    def home(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """[0] for what is not needed."""
        embeds = (self.rows, None if self.cols is None else self.cols.arrived())
        return (
            *(self.matrix.new(0).to(dtype) if x is None else x.to(dtype) for x in embeds),
            *(self.matrix.new(0) if x is None else x for x in self.parameters),
        )


# log-sum-exp: (largest, sum of exponentials relative to it) of rows here, of columns on their way


def _no_exponentials(matrix: _Matrix, size: int) -> Tensor:
    found = matrix.new(2, size)
    found[0] = -torch.inf
    return found


def _add_exponentials(held: Tensor, lse: Tensor) -> None:
    top = torch.maximum(held[0], lse)
    level = top.masked_fill(top == -torch.inf, 0.0)
    held[1] = held[1] * (held[0] - level).exp() + (lse - level).exp()
    held[0] = top


def _logarithm(held: Tensor) -> Tensor:
    return held[0] + held[1].log()


def logsumexp_forward(*args: Any) -> tuple[Tensor, Tensor]:
    rows, cols, row_scale, col_scale = args[:4]
    by_rows, by_cols = args[8:10]
    matrix = _Matrix.of(rows, cols, args[4:8], args[10:])
    forward = matrix.kernel("similarity_logsumexp_forward")
    of_rows = _no_exponentials(matrix, rows.shape[0] if by_rows else 0)
    of_cols = Travelling(matrix.ring, _no_exponentials(matrix, cols.shape[0])) if by_cols else None
    for block, scope, _ in matrix.blocks():
        row_lse, _, col_lse, *_ = forward(
            rows, block, row_scale, col_scale, *scope, None, None, by_rows, by_cols, True, False, matrix.precision
        )
        if by_rows:
            _add_exponentials(of_rows, row_lse)
        if of_cols is not None:
            _add_exponentials(of_cols.arrived(), col_lse)
            of_cols.pass_on()
    return _logarithm(of_rows), matrix.new(0) if of_cols is None else _logarithm(of_cols.arrived())


def logsumexp_backward(*args: Any) -> tuple[Tensor, ...]:
    grad_rows, grad_cols, rows, cols, row_scale, col_scale = args[:6]
    row_lse, col_lse, by_rows, by_cols, *needed = args[10:18]
    matrix = _Matrix.of(rows, cols, args[6:10], args[18:])
    backward = matrix.kernel("similarity_logsumexp_backward")
    of_rows, of_cols = matrix.new(len(STATS), rows.shape[0]), matrix.new(3, cols.shape[0])
    of_rows[0], of_cols[0] = inverse_norms(rows), inverse_norms(cols)
    if by_rows:
        of_rows[1] = row_lse
    if by_cols:
        of_cols[1], of_cols[2] = col_lse, grad_cols
    grads = _Gradients(matrix, (row_scale, col_scale), needed)
    for block, scope, (known,) in matrix.blocks(of_cols):
        # the kernel's probabilities are those of all columns, since the log-sum-exp is
        stats = torch.cat([of_rows.flatten(), known[:2].flatten(), matrix.new((len(STATS) - 2) * cols.shape[0])])
        grads.add(
            *backward(
                grad_rows if by_rows else None, known[2] if by_cols else None, *(None,) * 4, rows, block, row_scale,
                col_scale, *scope, None, None, stats, True, False, *needed, matrix.precision,
            )
        )  # fmt: skip
    return grads.home(rows.dtype)


# Sums of softplus


def softplus_forward(*args: Any) -> Tensor:
    rows, cols, scale, bias = args[:4]
    matrix = _Matrix.of(rows, cols, args[4:8], args[9:])
    forward = matrix.kernel("similarity_softplus_forward")
    total = matrix.new(rows.shape[0])
    for block, scope, _ in matrix.blocks():
        total += forward(rows, block, scale, bias, *scope, None, args[8], False, matrix.precision)[0]
    return total


def softplus_backward(*args: Any) -> tuple[Tensor, ...]:
    grad, rows, cols, scale, bias = args[:5]
    ids_exclude, *needed = args[9:14]
    matrix = _Matrix.of(rows, cols, args[5:9], args[14:])
    backward = matrix.kernel("similarity_softplus_backward")
    of_rows = matrix.new(len(STATS), rows.shape[0])
    of_rows[0] = inverse_norms(rows)
    grads = _Gradients(matrix, (scale, bias), needed)
    for block, scope, (norms,) in matrix.blocks(inverse_norms(cols)):
        stats = torch.cat([of_rows.flatten(), norms, matrix.new((len(STATS) - 1) * cols.shape[0])])
        grads.add(
            *backward(
                grad, rows, block, scale, bias, *scope, None, stats, ids_exclude, False, *needed, matrix.precision
            )
        )
    return grads.home(rows.dtype)


def softplus_total_forward(*args: Any) -> tuple[Tensor, ...]:
    """The total, and the gradients for an upstream of 1, of one round."""
    rows, cols, scale, bias, row_weights = args[:5]
    needed = args[10:14]
    matrix = _Matrix.of(rows, cols, args[5:9], args[14:])
    forward = matrix.kernel("similarity_softplus_total_forward")
    total, grads = matrix.new(), _Gradients(matrix, (scale, bias), needed)
    for block, scope, _ in matrix.blocks():
        found, _, *kept = forward(
            rows, block, scale, bias, row_weights, *scope, None, args[9], *needed, matrix.precision
        )
        total += found
        grads.add(*kept)
    return total, *grads.home(kept_dtype(rows.dtype))

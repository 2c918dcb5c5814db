"""Statistics of the matrix of cosines, and losses of its diagonal, of checked arguments: by kernels or eager, of this
rank's rows with its own columns or with everyone's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from sparc_kernels import _validate
from sparc_kernels.functional._candidates import Scope
from sparc_kernels.functional._common import recordable
from sparc_kernels.functional._everyone import Everyone, merged_logsumexp
from sparc_kernels.functional._ring import ring_logsumexp, ring_softplus, ring_softplus_total
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import applied, apply
from sparc_kernels.ops.contrastive.autograd import (
    MeanSoftmaxLossFunction,
    PairedCosinesFunction,
    SimilarityLogsumexpFunction,
    SimilaritySoftplusFunction,
    SimilaritySoftplusTotalFunction,
    TritonSigmoidLossFunction,
    TritonSoftmaxLossFunction,
)
from sparc_kernels.ops.contrastive.reference import (
    paired_cosines_reference,
    similarity_logsumexp_reference,
    similarity_softplus_reference,
)

# On the CPU, and in float32 on a GPU, the matrix is kept for the backward pass up to this size, which spares a product;
# a constant, so memory stays linear in the batch.
KEEP_BYTES = 128 * 2**20


class SimilarityLogsumexp(NamedTuple):
    """What :func:`similarity_logsumexp` returns, in the accumulation dtype; None for what was not asked for."""

    row_lse: Tensor | None
    """[M]: log of the sum over columns of exp(row_scale * cosine); -inf where no pair of the row takes part."""
    col_lse: Tensor | None
    """[N]: log of the sum over rows of exp(col_scale * cosine)."""
    row_target: Tensor | None = None
    """[M]: sum of row_scale * cosine over the columns of the row's label."""
    col_target: Tensor | None = None
    """[N]: sum of col_scale * cosine over the rows of the column's label."""
    row_soft: Tensor | None = None
    """[M]: mean of row_scale * cosine over columns by the teacher's softmax of the row; 0 where no pair takes part."""
    col_soft: Tensor | None = None
    """[N]: mean of col_scale * cosine over rows by the teacher's softmax of the column."""


def streamed_logsumexp(
    rows: Tensor,
    cols: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    scope: Scope,
    wanted: tuple[bool, bool],
    ids_exclude: bool,
    backend: str,
) -> SimilarityLogsumexp:
    """:func:`similarity_logsumexp` of checked arguments; ``wanted``: for the rows, for the columns."""
    if backend == "eager":
        inputs: list[Any] = [*map(recordable, (rows, cols, row_scale, col_scale, *scope)), *wanted, ids_exclude]
        return SimilarityLogsumexp(*similarity_logsumexp_reference(*inputs))
    keep = _keeps(backend, rows, cols, row_scale, col_scale)
    row_lse, _, col_lse, *others = apply(
        SimilarityLogsumexpFunction, "similarity_logsumexp_forward", rows, cols, row_scale, col_scale, *scope, *wanted,
        ids_exclude, keep, backend,
    )  # fmt: skip
    targets, soft = scope.row_ids is not None and not ids_exclude, scope.guide_scale is not None
    asked = [*wanted, *(want and targets for want in wanted), *(want and soft for want in wanted)]
    return SimilarityLogsumexp(*(x if want else None for x, want in zip((row_lse, col_lse, *others), asked)))


def logsumexp_of_everyone(
    rows: Tensor,
    everyone: Everyone,
    row_scale: Tensor,
    col_scale: Tensor,
    scope: Scope,
    wanted: tuple[bool, bool],
    ids_exclude: bool,
    backend: str,
) -> SimilarityLogsumexp:
    """As :func:`streamed_logsumexp`, of this rank's rows and columns; ``scope`` and scales per column are of all ranks.

    A rank's block of the matrix serves both directions: what it finds of a column goes to the rank that has the column.
    """
    if everyone.ring:
        scales = (row_scale, col_scale)
        return SimilarityLogsumexp(
            *ring_logsumexp(rows, everyone.cols, scales, scope, wanted, everyone.spread, backend)
        )
    found = streamed_logsumexp(rows, everyone.cols, row_scale, col_scale, scope, wanted, ids_exclude, backend)
    if found.col_lse is None:
        return found
    parts = everyone.spread.parts
    soft = found.col_soft
    if soft is not None:
        # A mean by the softmax over a rank's rows, weighed by its share of the softmax over all rows.
        guide: list[Any] = [scope.guide_rows, scope.guide_cols, scope.guide_scale, scope.guide_scale]
        with torch.no_grad():
            guide += [scope._replace(guide_scale=None), (False, True), ids_exclude, backend]
            lse = streamed_logsumexp(*guide).col_lse
            assert lse is not None
            level = merged_logsumexp(parts(lse))
            share = (parts(lse) - level.masked_fill(level == -torch.inf, 0.0)).exp()
        soft = (share * parts(soft)).sum(0)
    return found._replace(
        col_lse=merged_logsumexp(parts(found.col_lse)),
        col_target=None if found.col_target is None else parts(found.col_target).sum(0),
        col_soft=soft,
    )


def softplus_of_everyone(
    rows: Tensor, everyone: Everyone, numbers: tuple[Tensor, Tensor], scope: Scope, ids_exclude: bool, backend: str
) -> Tensor:
    """As :func:`streamed_softplus`, of this rank's rows."""
    if everyone.ring:
        return ring_softplus(rows, everyone.cols, numbers, scope, ids_exclude, everyone.spread, backend)
    return streamed_softplus(rows, everyone.cols, *numbers, scope, ids_exclude, backend)


def streamed_softplus(
    rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, scope: Scope, ids_exclude: bool, backend: str
) -> Tensor:
    """:func:`similarity_softplus` of checked arguments."""
    scope_but_scale = (*scope[:6], scope.guide_threshold)
    if backend == "eager":
        inputs: list[Any] = [*map(recordable, (rows, cols, scale, bias, *scope_but_scale)), ids_exclude]
        return similarity_softplus_reference(*inputs)
    keep = _keeps(backend, rows, cols, scale, bias)
    row_sum: Tensor = apply(
        SimilaritySoftplusFunction, "similarity_softplus_forward", rows, cols, scale, bias, *scope_but_scale,
        ids_exclude, keep, backend,
    )[0]  # fmt: skip
    return row_sum


def streamed_softplus_total(
    rows: Tensor,
    cols: Tensor,
    numbers: tuple[Tensor, Tensor],
    row_weights: Tensor,
    scope: Scope,
    ids_exclude: bool,
    backend: str,
) -> Tensor:
    """[]: the sum of ``row_weights`` times :func:`streamed_softplus` at ``numbers``, scale and bias.

    What weighs the gradient is known before the sweep, so that one of 3 products gives the value and all gradients.
    """
    if backend == "eager":
        return (row_weights * streamed_softplus(rows, cols, *numbers, scope, ids_exclude, backend)).sum()
    traced = torch.compiler.is_exporting() or not torch.is_grad_enabled()
    keep = [not traced and x.requires_grad for x in (rows, cols, *numbers)]
    total: Tensor = apply(
        SimilaritySoftplusTotalFunction, "similarity_softplus_total_forward", rows, cols, *numbers, row_weights,
        *scope[:6], scope.guide_threshold, ids_exclude, *keep, backend,
    )[0]  # fmt: skip
    return total


def softplus_total_of_everyone(
    rows: Tensor,
    everyone: Everyone,
    numbers: tuple[Tensor, Tensor],
    row_weights: Tensor,
    scope: Scope,
    ids_exclude: bool,
    backend: str,
) -> Tensor:
    """As :func:`streamed_softplus_total`, of this rank's rows."""
    if everyone.ring:
        spread = everyone.spread
        return ring_softplus_total(rows, everyone.cols, numbers, row_weights, scope, ids_exclude, spread, backend)
    return streamed_softplus_total(rows, everyone.cols, numbers, row_weights, scope, ids_exclude, backend)


def cosines_of_rows(rows: Tensor, cols: Tensor, backend: str) -> Tensor:
    """:func:`paired_cosines` of checked arguments."""
    if backend == "eager":
        return paired_cosines_reference(recordable(rows), recordable(cols))
    cosines: Tensor = apply(PairedCosinesFunction, "paired_cosines_forward", rows, cols, backend)[0]
    return cosines


def mean_of_cross_entropies(rows: Tensor, cols: Tensor, scale: Tensor, backend: str) -> Tensor:
    """[]: the mean over rows and columns of the cross-entropy of pair (i, i), by kernels."""
    keep = _keeps(backend, rows, cols, scale)
    loss: Tensor
    if launches_whole_losses(backend, rows, cols):
        loss = applied(TritonSoftmaxLossFunction, rows, cols, scale, keep)
    else:
        loss = applied(MeanSoftmaxLossFunction, rows, cols, scale, keep, backend)
    return loss


def sigmoid_of_pairs(rows: Tensor, cols: Tensor, numbers: tuple[Tensor, Tensor], mean: bool) -> Tensor:
    """[]: the sigmoid loss of pairs (i, i) at ``numbers``, scale and bias, where ``launches_whole_losses``."""
    loss: Tensor = applied(TritonSigmoidLossFunction, rows, cols, *numbers, mean)
    return loss


def launches_whole_losses(backend: str, rows: Tensor, cols: Tensor) -> bool:
    """Whether a loss of pairs can be made without the registered ops: nobody transforms, traces or counts these, the
    embeddings are plain tensors, and there are any."""
    if backend != "triton" or not _validate.runs_now() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return rows.shape[0] > 0 and all(type(x) in (Tensor, Parameter) for x in (rows, cols))


def _keeps(backend: str, rows: Tensor, *others: Tensor) -> bool:
    # on a GPU the product that this spares costs most where matrix units have no float32
    serves = backend == "cpu" or (backend == "triton" and rows.dtype == torch.float32)
    if not serves or torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    if not any(x.requires_grad for x in (rows, *others)):
        return False
    # bool: in torch.jit.trace a comparison of sizes is a tensor, which would pass for one of the op's
    return bool(rows.shape[0] * others[0].shape[0] * accumulation_dtype(rows.dtype).itemsize <= KEEP_BYTES)

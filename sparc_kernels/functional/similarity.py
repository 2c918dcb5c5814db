"""Statistics of the matrix of cosines between all rows and all columns, without the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Group, ranks_of
from sparc_kernels.functional._candidates import (
    Exclusion,
    Labels,
    Scope,
    Teacher,
    checked_scale,
    checked_scales,
    checked_scope,
    checked_single,
)
from sparc_kernels.functional._common import autocast, recordable
from sparc_kernels.functional._everyone import (
    Everyone,
    everyone_of,
    exclusion_facts,
    merged_logsumexp,
    scope_of_everyone,
)
from sparc_kernels.functional._ring import check_exchange, ring_logsumexp, ring_softplus, ring_softplus_total
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


DIRECTIONS = ("both", "rows", "cols")


def similarity_logsumexp(
    rows: Tensor,
    cols: Tensor,
    *,
    row_scale: float | Tensor,
    col_scale: float | Tensor | None = None,
    exclude: Exclusion | Sequence[Exclusion] | None = None,
    targets: Labels | None = None,
    teacher: Teacher | None = None,
    direction: str = "both",
    group: Group = None,
    exchange: str = "gather",
    backend: str = "auto",
) -> SimilarityLogsumexp:
    """Log-sum-exp of each row and each column of the matrix of scaled cosines, which is never stored.

    What every softmax loss over a batch is made of: ``contrastive_loss`` and the recipes of docs/losses.md are
    compositions of these vectors. Gradients flow to rows, cols and the scales.

    Args:
        rows: [M, D] embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        cols: [N, D] embeddings, of the same dtype and device.
        row_scale: 1 / temperature of the softmax over a row's columns: a number, a one-element tensor, or [M].
        col_scale: 1 / temperature of the softmax over a column's rows: a number, a one-element tensor, or [N]; None =
            ``row_scale``, which then has to be a single one.
        exclude: who does not take part: :class:`Ids`, :class:`Pairs`, :class:`Above`, or several of different kind.
        targets: :class:`Labels`, for ``row_target`` and ``col_target``; not together with :class:`Ids`.
        teacher: for ``row_soft`` and ``col_soft``; together with :class:`Above` it has to name the same tensors.
        direction: ``"both"``, ``"rows"`` (results of the rows alone) or ``"cols"``.
        group: ``"world"`` or a process group: the matrix is that of the rows and columns of all its ranks, one after
            the other, and each rank gets the results of its own. It comes with its own rows and columns, of any number,
            with ids, labels, guides, thresholds and scales per item of these, and with the rows of ``indptr`` of its
            own rows; ``indices`` of :class:`Pairs` count the columns of all ranks. A single scale is the same on all.
            Gradients are those of the sum, over ranks, of what each rank makes of its results: without the factor that
            an average over ranks needs (docs/distributed.md). None: this process alone.
        exchange: how the columns of other ranks come: ``"gather"``, all at once, or ``"ring"``, one rank's after the
            other's, in memory that does not grow with the ranks. A ring does not serve targets, a teacher,
            :class:`Above`, scales per column and ``backend="eager"``.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        A :class:`SimilarityLogsumexp`, in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is no tensor, or of another dtype than it has to be.
        ValueError: shapes, devices, ids, pairs, scales or thresholds that do not fit, with the argument's name.
        NotImplementedError: the backend cannot serve the call.
    """
    rows, cols = _embeddings(rows, cols)
    ranks = ranks_of(group, "mean", "similarity_logsumexp")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if col_scale is None and direction != "rows":
        if isinstance(row_scale, Tensor) and row_scale.numel() != 1:
            raise ValueError(f"col_scale must be given where row_scale is one per row, got {list(row_scale.shape)}")
        col_scale = row_scale
    row = checked_scales("row_scale", row_scale, "rows", rows)
    col = row.detach().new_ones(()) if col_scale is None else checked_scales("col_scale", col_scale, "cols", cols)
    wanted = (direction != "cols", direction != "rows")
    backend = resolve("contrastive", backend, rows.device, rows.dtype)
    refused = {
        "targets": (targets is not None, "sums over targets do not travel"),
        "a teacher": (teacher is not None, "the teacher's embeddings would have to travel, too"),
        "a scale per column": (col.dim() > 0, "scales do not travel"),
    }
    ring = check_exchange(exchange, backend, exclude, {what: why for what, (is_so, why) in refused.items() if is_so})
    if ranks is None:
        scope = checked_scope(rows, cols, exclude, targets, teacher)
        return streamed_logsumexp(rows, cols, row, col, scope, wanted, targets is None, backend)
    facts = exclusion_facts(exclude) | {
        "rows requires_grad": rows.requires_grad,
        "row_scale requires_grad": row.requires_grad,
        "col_scale requires_grad": col.requires_grad,
        "row_scale dimensions": row.dim(),
        "col_scale dimensions": col.dim(),
        "targets": ("None" if targets is None else "Labels", ("None", "Labels")),
        "teacher width": 0 if teacher is None else teacher.cols.shape[1],
        "direction": (direction, DIRECTIONS),
    }
    everyone = everyone_of("cols", cols, facts, ranks, ring)
    spread = everyone.spread
    scope = scope_of_everyone(checked_scope(rows, cols, exclude, targets, teacher, spread.items()), everyone, rows)
    if col.dim():
        col = spread.everyone(col, 1)
    return logsumexp_of_everyone(rows, everyone, row, col, scope, wanted, targets is None, backend)


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


def similarity_softplus(
    rows: Tensor,
    cols: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor = 0.0,
    exclude: Exclusion | Sequence[Exclusion] | None = None,
    targets: Labels | None = None,
    group: Group = None,
    exchange: str = "gather",
    backend: str = "auto",
) -> Tensor:
    """Sum over columns of softplus(scale * cosine + bias), for each row; the matrix is never stored.

    What sigmoid losses over a batch are made of (Zhai et al., 2023). Gradients flow to rows, cols, scale and bias.

    Args:
        rows: [M, D] embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        cols: [N, D] embeddings, of the same dtype and device.
        scale: 1 / temperature, a number or a one-element tensor.
        bias: added to every logit, a number or a one-element tensor.
        exclude: who does not take part, as in :func:`similarity_logsumexp`.
        targets: :class:`Labels`: pairs of equal label count as softplus(-logit); not together with :class:`Ids`.
        group: as in :func:`similarity_logsumexp`.
        exchange: likewise; a ring does not serve :class:`Above` and ``backend="eager"``.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [M] in float32 (float64 for float64 embeddings); 0 where no pair of the row takes part.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`similarity_logsumexp`.
    """
    rows, cols = _embeddings(rows, cols)
    ranks = ranks_of(group, "mean", "similarity_softplus")
    numbers = (checked_scale("scale", scale, "rows", rows), checked_single("bias", bias, "rows", rows))
    backend = resolve("contrastive", backend, rows.device, rows.dtype)
    ring = check_exchange(exchange, backend, exclude, {})
    if ranks is None:
        scope = checked_scope(rows, cols, exclude, targets, None)
        return streamed_softplus(rows, cols, *numbers, scope, targets is None, backend)
    facts = exclusion_facts(exclude) | {
        "rows requires_grad": rows.requires_grad,
        "targets": ("None" if targets is None else "Labels", ("None", "Labels")),
    }
    everyone = everyone_of("cols", cols, facts, ranks, ring)
    scope = checked_scope(rows, cols, exclude, targets, None, everyone.spread.items())
    scope = scope_of_everyone(scope, everyone, rows)
    return softplus_of_everyone(rows, everyone, numbers, scope, targets is None, backend)


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


def paired_cosines(rows: Tensor, cols: Tensor, *, backend: str = "auto") -> Tensor:
    """Cosines of row i and column i: the positives of a batch of pairs.

    Gradients flow to rows and cols. Beside its inputs the fused kernels keep three numbers per pair.

    Args:
        rows: [M, D] embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        cols: [M, D] embeddings, of the same dtype and device.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [M] in float32 (float64 for float64 embeddings); 0 with a zero vector.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`similarity_logsumexp`.
    """
    rows, cols = _embeddings(rows, cols)
    _validate.same("cols", cols, "rows", rows, {"M": 0})
    return cosines_of_rows(rows, cols, resolve("contrastive", backend, rows.device, rows.dtype))


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


def _embeddings(rows: Tensor, cols: Tensor) -> tuple[Tensor, ...]:
    _validate.embeddings("rows", rows, "[M, D]")
    _validate.embeddings("cols", cols, "[N, D]")
    rows, cols = autocast(rows, cols)
    _validate.same("cols", cols, "rows", rows, {"D": 1})
    return rows, cols


def _keeps(backend: str, rows: Tensor, *others: Tensor) -> bool:
    # on a GPU the product that this spares costs most where matrix units have no float32
    serves = backend == "cpu" or (backend == "triton" and rows.dtype == torch.float32)
    if not serves or torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    if not any(x.requires_grad for x in (rows, *others)):
        return False
    return rows.shape[0] * others[0].shape[0] * accumulation_dtype(rows.dtype).itemsize <= KEEP_BYTES

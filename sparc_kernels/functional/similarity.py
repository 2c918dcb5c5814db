"""Statistics of the matrix of cosines between all rows and all columns, without the matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Group, ranks_of
from sparc_kernels.functional._candidates import (
    Exclusion,
    Labels,
    Teacher,
    checked_rows_and_columns,
    checked_scale,
    checked_scales,
    checked_scope,
    checked_single,
)
from sparc_kernels.functional._everyone import everyone_of, exclusion_facts, scope_of_everyone
from sparc_kernels.functional._ring import check_exchange
from sparc_kernels.functional._streamed import (
    SimilarityLogsumexp,
    cosines_of_rows,
    logsumexp_of_everyone,
    softplus_of_everyone,
    streamed_logsumexp,
    streamed_softplus,
)

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
    rows, cols = checked_rows_and_columns(rows, cols)
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
    rows, cols = checked_rows_and_columns(rows, cols)
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
    rows, cols = checked_rows_and_columns(rows, cols)
    _validate.same("cols", cols, "rows", rows, {"M": 0})
    return cosines_of_rows(rows, cols, resolve("contrastive", backend, rows.device, rows.dtype))

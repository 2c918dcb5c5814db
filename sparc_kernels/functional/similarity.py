"""Statistics of the matrix of cosines between all rows and all columns, without the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.functional._common import autocast, recordable, scalar
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.contrastive.autograd import SimilarityLogsumexpFunction, SimilaritySoftplusFunction
from sparc_kernels.ops.contrastive.reference import similarity_logsumexp_reference, similarity_softplus_reference

# On the CPU the matrix is kept for the backward pass up to this size, which spares a product; a constant, so memory
# stays linear in the batch.
KEEP_BYTES = 128 * 2**20


class Ids(NamedTuple):
    """Pairs of equal id do not take part; an item of id -1 takes part in no pair (padding)."""

    rows: Tensor
    """[M], integer."""
    cols: Tensor
    """[N], integer."""


class Labels(NamedTuple):
    """Targets: all pairs of equal label are positives; an item of label -1 takes part in no pair (padding)."""

    rows: Tensor
    """[M], integer."""
    cols: Tensor
    """[N], integer."""


class Pairs(NamedTuple):
    """Pairs in CSR form: row i with columns ``indices[indptr[i] : indptr[i + 1]]``, ascending within a row."""

    indptr: Tensor
    """[M + 1], integer."""
    indices: Tensor
    """[number of pairs], integer."""
    weights: Tensor | None = None
    """[number of pairs], floating: weights as targets (None: 1 / number of positives of the row or column)."""


class Above(NamedTuple):
    """Pairs that a teacher finds more similar than a threshold do not take part (probably false negatives)."""

    rows: Tensor
    """[M, K] the teacher's embeddings, of any width; not normalised by the caller, and without gradient."""
    cols: Tensor
    """[N, K]."""
    threshold: float | Tensor
    """A cosine: a number, a one-element tensor or [M], a number per row."""


class Teacher(NamedTuple):
    """Soft targets: the softmax of a teacher's scaled cosines over the pairs that take part."""

    rows: Tensor
    """[M, K] the teacher's embeddings, of any width; not normalised by the caller, and without gradient."""
    cols: Tensor
    """[N, K]."""
    scale: float | Tensor
    """1 / temperature of the teacher, a number or a one-element tensor; without gradient."""


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


Exclusion: TypeAlias = Ids | Pairs | Above
_T = TypeVar("_T")
DIRECTIONS = ("both", "rows", "cols")


class _Scope(NamedTuple):
    """Who takes part: the ops' arguments of these names."""

    row_ids: Tensor | None = None
    col_ids: Tensor | None = None
    excluded_indptr: Tensor | None = None
    excluded_indices: Tensor | None = None
    guide_rows: Tensor | None = None
    guide_cols: Tensor | None = None
    guide_scale: Tensor | None = None
    guide_threshold: Tensor | None = None


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
    group: object = None,
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
        group: a process group; only None for now.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        A :class:`SimilarityLogsumexp`, in float32 (float64 for float64 embeddings).

    Raises:
        TypeError: an argument is no tensor, or of another dtype than it has to be.
        ValueError: shapes, devices, ids, pairs, scales or thresholds that do not fit, with the argument's name.
        NotImplementedError: the backend cannot serve the call, or ``group`` is given.
    """
    rows, cols = _embeddings(rows, cols)
    _validate.group(group)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if col_scale is None and direction != "rows":
        if isinstance(row_scale, Tensor) and row_scale.numel() != 1:
            raise ValueError(f"col_scale must be given where row_scale is one per row, got {list(row_scale.shape)}")
        col_scale = row_scale
    row = _scales("row_scale", row_scale, "rows", rows)
    col = row.detach().new_ones(()) if col_scale is None else _scales("col_scale", col_scale, "cols", cols)
    scope = _scope(rows, cols, exclude, targets, teacher)
    wanted = (direction != "cols", direction != "rows")
    ids_exclude = targets is None
    backend = resolve("contrastive", backend, rows.device, rows.dtype)
    if backend == "eager":
        inputs: list[Any] = [*map(recordable, (rows, cols, row, col, *scope)), *wanted, ids_exclude]
        return SimilarityLogsumexp(*similarity_logsumexp_reference(*inputs))
    keep = _keeps(backend, rows, cols, row, col)
    row_lse, _, col_lse, *others = apply(
        SimilarityLogsumexpFunction, "similarity_logsumexp_forward", rows, cols, row, col, *scope, *wanted, ids_exclude,
        keep, backend,
    )  # fmt: skip
    asked = [
        *wanted,
        *(want and targets is not None for want in wanted),
        *(want and teacher is not None for want in wanted),
    ]
    return SimilarityLogsumexp(*(x if want else None for x, want in zip((row_lse, col_lse, *others), asked)))


def similarity_softplus(
    rows: Tensor,
    cols: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor = 0.0,
    exclude: Exclusion | Sequence[Exclusion] | None = None,
    targets: Labels | None = None,
    group: object = None,
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
        group: a process group; only None for now.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [M] in float32 (float64 for float64 embeddings); 0 where no pair of the row takes part.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`similarity_logsumexp`.
    """
    rows, cols = _embeddings(rows, cols)
    _validate.group(group)
    numbers = (_scales("scale", scale, "rows", rows, single=True), _single("bias", bias, rows))
    scope = _scope(rows, cols, exclude, targets, None)
    scope_but_scale = (*scope[:6], scope.guide_threshold)
    backend = resolve("contrastive", backend, rows.device, rows.dtype)
    if backend == "eager":
        inputs: list[Any] = [*map(recordable, (rows, cols, *numbers, *scope_but_scale)), targets is None]
        return similarity_softplus_reference(*inputs)
    keep = _keeps(backend, rows, cols, *numbers)
    row_sum: Tensor = apply(
        SimilaritySoftplusFunction, "similarity_softplus_forward", rows, cols, *numbers, *scope_but_scale,
        targets is None, keep, backend,
    )[0]  # fmt: skip
    return row_sum


def _embeddings(rows: Tensor, cols: Tensor) -> tuple[Tensor, ...]:
    _validate.embeddings("rows", rows, "[M, D]")
    _validate.embeddings("cols", cols, "[N, D]")
    rows, cols = autocast(rows, cols)
    _validate.same("cols", cols, "rows", rows, {"D": 1})
    return rows, cols


def _keeps(backend: str, rows: Tensor, *others: Tensor) -> bool:
    if backend != "cpu" or torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    if not any(x.requires_grad for x in (rows, *others)):
        return False
    return rows.shape[0] * others[0].shape[0] * accumulation_dtype(rows.dtype).itemsize <= KEEP_BYTES


def _single(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A number or one-element tensor as a [] tensor."""
    _validate.scalar(name, value, "rows", like)
    return scalar(value, like)


def _scales(name: str, value: float | Tensor, owner_name: str, owner: Tensor, single: bool = False) -> Tensor:
    """A number, a one-element tensor or one scale per item, as [] or [items] of the accumulation dtype."""
    if not isinstance(value, Tensor) or value.numel() == 1 or single:
        found = _single(name, value, owner)
        if not isinstance(value, Tensor) and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    else:
        _per_item(name, value, owner_name, owner)
        found = value.to(accumulation_dtype(owner.dtype))
    if _validate.can_be_looked_at(found) and not bool(((found > 0) & found.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite, got {found.min():g} to {found.max():g}")
    return found


def _per_item(name: str, value: Tensor, owner_name: str, owner: Tensor) -> None:
    if value.shape != owner.shape[:1]:
        raise ValueError(
            f"{name} must be a single number or have shape {list(owner.shape[:1])}, one per item of {owner_name}, got "
            f"{list(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
    _validate.same_device(name, value, owner_name, owner)


def _integers(name: str, value: object, size: int | None, owner: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an integer torch.Tensor, got {type(value).__name__}")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {value.dtype}")
    if value.dim() != 1 or (size is not None and value.shape[0] != size):
        raise ValueError(f"{name} must have shape [{'any' if size is None else size}], got {list(value.shape)}")
    _validate.same_device(name, value, "rows", owner)
    return value.to(torch.int64)


def check_pairs(name: str, pairs: Pairs, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """``indptr`` and ``indices`` as int64.

    Raises:
        TypeError, ValueError: they are no CSR pattern of [M, N] (values are looked at on the CPU alone).
    """
    indptr = _integers(f"{name}.indptr", pairs.indptr, rows.shape[0] + 1, rows)
    indices = _integers(f"{name}.indices", pairs.indices, None, rows)
    if not (_validate.can_be_looked_at(indptr) and _validate.can_be_looked_at(indices)):
        return indptr, indices
    nnz = indices.shape[0]
    if int(indptr[0]) != 0 or int(indptr[-1]) != nnz or bool((indptr.diff() < 0).any()):
        raise ValueError(
            f"{name}.indptr must rise from 0 to {nnz}, the number of pairs, got {int(indptr[0])} to {int(indptr[-1])}"
            + (", falling in between" if bool((indptr.diff() < 0).any()) else "")
        )
    if nnz and (int(indices.min()) < 0 or int(indices.max()) >= cols.shape[0]):
        raise ValueError(
            f"{name}.indices must lie in [0, {cols.shape[0]}), got {int(indices.min())} to {int(indices.max())}"
        )
    first = torch.zeros(nnz + 1, dtype=torch.bool).index_fill_(0, indptr, True)[:nnz]
    if nnz and bool(((indices.diff() <= 0) & ~first[1:]).any()):
        raise ValueError(f"{name}.indices must ascend within each row, without repetition")
    return indptr, indices


def _guide(name: str, of: Above | Teacher, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    for side, value, other in (("rows", of.rows, rows), ("cols", of.cols, cols)):
        _validate.embeddings(f"{name}.{side}", value, "[M, K]" if side == "rows" else "[N, K]")
        if value.shape[0] != other.shape[0]:
            raise ValueError(
                f"{name}.{side} must have {other.shape[0]} items, those of {side}, got {list(value.shape)}: "
                "a teacher's embeddings belong to the same batch"
            )
        _validate.same_device(f"{name}.{side}", value, side, other)
    _validate.same(f"{name}.cols", of.cols, f"{name}.rows", of.rows, {"K": 1})
    return of.rows.detach().to(rows.dtype), of.cols.detach().to(rows.dtype)


def _only(kind: type[_T], found: Sequence[Any]) -> _T | None:
    some = [x for x in found if isinstance(x, kind)]
    if len(some) > 1:
        raise ValueError(f"exclude takes each kind once, got {len(some)} of {kind.__name__}")
    return some[0] if some else None


def _scope(
    rows: Tensor,
    cols: Tensor,
    exclude: Exclusion | Sequence[Exclusion] | None,
    targets: Labels | None,
    teacher: Teacher | None,
) -> _Scope:
    kinds = (Ids, Pairs, Above)
    given: Sequence[Any] = [] if exclude is None else [exclude] if isinstance(exclude, kinds) else list(exclude)
    for each in given:
        if not isinstance(each, kinds):
            raise TypeError(f"exclude must be made of Ids, Pairs and Above, got {type(each).__name__}")
    if targets is not None and not isinstance(targets, Labels):
        raise TypeError(f"targets must be Labels or None, got {type(targets).__name__}")
    if teacher is not None and not isinstance(teacher, Teacher):
        raise TypeError(f"teacher must be a Teacher or None, got {type(teacher).__name__}")
    ids, pairs, above = _only(Ids, given), _only(Pairs, given), _only(Above, given)
    if ids is not None and targets is not None:
        raise ValueError("exclude may not hold Ids where targets are Labels: ids name the one or the other")
    known: dict[str, Tensor] = {}
    for name, named in (("exclude ids", ids), ("targets", targets)):
        if named is not None:
            known["row_ids"] = _integers(f"{name}.rows", named.rows, rows.shape[0], rows)
            known["col_ids"] = _integers(f"{name}.cols", named.cols, cols.shape[0], rows)
    if pairs is not None:
        known["excluded_indptr"], known["excluded_indices"] = check_pairs("exclude pairs", pairs, rows, cols)
    if above is not None and teacher is not None and (above.rows is not teacher.rows or above.cols is not teacher.cols):
        raise ValueError("Above and teacher must name the same tensors where both are given, got different ones")
    for name, guide in (("exclude above", above), ("teacher", teacher)):
        if guide is not None:
            known["guide_rows"], known["guide_cols"] = _guide(name, guide, rows, cols)
    if above is not None:
        known["guide_threshold"] = _threshold(above.threshold, rows)
    if teacher is not None:
        known["guide_scale"] = _scales("teacher.scale", teacher.scale, "rows", rows, single=True).detach()
    return _Scope(**known)


def _threshold(value: float | Tensor, rows: Tensor) -> Tensor:
    name = "exclude above.threshold"
    if isinstance(value, Tensor) and value.numel() != 1:
        _per_item(name, value, "rows", rows)
        return value.detach().to(accumulation_dtype(rows.dtype))
    return _single(name, value, rows).detach()

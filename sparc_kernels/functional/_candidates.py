"""Who takes part in a matrix of similarities, and who is a target: the words for it, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.functional._common import autocast, checked_pair, recordable, scalar
from sparc_kernels.ops._dtype import accumulation_dtype


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
    """[number of pairs], floating, not negative: weights as targets (None: 1 / number of positives of the row or
    column; for sigmoid losses 1)."""


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


Exclusion: TypeAlias = Ids | Pairs | Above
_T = TypeVar("_T")


class Scope(NamedTuple):
    """Who takes part: the ops' arguments of these names."""

    row_ids: Tensor | None = None
    col_ids: Tensor | None = None
    excluded_indptr: Tensor | None = None
    excluded_indices: Tensor | None = None
    guide_rows: Tensor | None = None
    guide_cols: Tensor | None = None
    guide_scale: Tensor | None = None
    guide_threshold: Tensor | None = None


def checked_rows_and_columns(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    return checked_pair(("rows", rows, "[M, D]"), ("cols", cols, "[N, D]"), {"D": 1})


def checked_single(name: str, value: float | Tensor, owner_name: str, owner: Tensor) -> Tensor:
    """A number or one-element tensor as a [] tensor of the accumulation dtype."""
    _validate.scalar(name, value, owner_name, owner)
    return scalar(value, owner)


def checked_scale(name: str, value: float | Tensor, owner_name: str, owner: Tensor) -> Tensor:
    """As :func:`checked_single`, positive and finite."""
    found = checked_single(name, value, owner_name, owner)
    if not isinstance(value, Tensor) and value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return _positive(name, found)


def checked_scales(name: str, value: float | Tensor, owner_name: str, owner: Tensor) -> Tensor:
    """A number, a one-element tensor or one scale per item, as [] or [items] of the accumulation dtype."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return checked_scale(name, value, owner_name, owner)
    _per_item(name, value, owner_name, owner)
    return _positive(name, value.to(accumulation_dtype(owner.dtype)))


def checked_levels(name: str, value: float | Tensor, rows: Tensor) -> Tensor:
    """Cosines that pairs are compared with: [] or [M], without gradient."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return checked_single(name, value, "rows", rows).detach()
    _per_item(name, value, "rows", rows)
    return value.detach().to(accumulation_dtype(rows.dtype))


def _positive(name: str, scale: Tensor) -> Tensor:
    if _validate.can_be_looked_at(scale) and not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite, got {scale.min():g} to {scale.max():g}")
    return scale


def _per_item(name: str, value: Tensor, owner_name: str, owner: Tensor) -> None:
    if value.shape != owner.shape[:1]:
        raise ValueError(
            f"{name} must be a single number or have shape {list(owner.shape[:1])}, one per item of {owner_name}, got "
            f"{list(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
    _validate.same_device(name, value, owner_name, owner)


def checked_weights(name: str, value: object, size: int, owner_name: str, owner: Tensor) -> Tensor:
    """[size] in the accumulation dtype, not negative."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a floating torch.Tensor or None, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
    if value.dim() != 1 or value.shape[0] != size:
        raise ValueError(f"{name} must have shape [{size}], got {list(value.shape)}")
    _validate.same_device(name, value, owner_name, owner)
    if _validate.can_be_looked_at(value) and not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(f"{name} must be finite and not negative, got {value.min():g} to {value.max():g}")
    return recordable(value.to(accumulation_dtype(owner.dtype)))


def _integers(name: str, value: object, size: int | None, owner: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an integer torch.Tensor, got {type(value).__name__}")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {value.dtype}")
    if value.dim() != 1 or (size is not None and value.shape[0] != size):
        raise ValueError(f"{name} must have shape [{'any' if size is None else size}], got {list(value.shape)}")
    _validate.same_device(name, value, "rows", owner)
    return value.to(torch.int64).contiguous()


def check_pairs(name: str, pairs: Pairs, rows: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """``indptr`` and ``indices`` as int64.

    Raises:
        TypeError, ValueError: they are no CSR pattern of [M, columns] (values are looked at on the CPU alone).
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
    if nnz and (int(indices.min()) < 0 or int(indices.max()) >= columns):
        raise ValueError(f"{name}.indices must lie in [0, {columns}), got {int(indices.min())} to {int(indices.max())}")
    first = indptr.new_zeros(nnz + 1, dtype=torch.bool).index_fill_(0, indptr, True)[:nnz]
    if nnz and bool(((indices.diff() <= 0) & ~first[1:]).any()):
        raise ValueError(f"{name}.indices must ascend within each row, without repetition")
    return indptr, indices


def checked_guide(name: str, of: Above | Teacher, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    for side, value, other in (("rows", of.rows, rows), ("cols", of.cols, cols)):
        _validate.embeddings(f"{name}.{side}", value, "[M, K]" if side == "rows" else "[N, K]")
        if value.shape[0] != other.shape[0]:
            raise ValueError(
                f"{name}.{side} must have {other.shape[0]} items, those of {side}, got {list(value.shape)}: "
                "a teacher's embeddings belong to the same batch"
            )
        _validate.same_device(f"{name}.{side}", value, side, other)
    as_operands = autocast(of.rows, of.cols)  # two dtypes are one there, as those of embeddings are
    _validate.same(f"{name}.cols", as_operands[1], f"{name}.rows", as_operands[0], {"K": 1})
    return of.rows.detach().to(rows.dtype), of.cols.detach().to(rows.dtype)


def _only(kind: type[_T], found: Sequence[Any]) -> _T | None:
    some = [x for x in found if isinstance(x, kind)]
    if len(some) > 1:
        raise ValueError(f"exclude takes each kind once, got {len(some)} of {kind.__name__}")
    return some[0] if some else None


def exclusions(exclude: Exclusion | Sequence[Exclusion] | None) -> list[Exclusion]:
    """Each of them, by itself."""
    kinds = (Ids, Pairs, Above)
    if exclude is None:
        return []
    given: list[Any] = (
        [exclude] if isinstance(exclude, kinds) or not isinstance(exclude, (list, tuple)) else list(exclude)
    )
    for each in given:
        if not isinstance(each, kinds):
            raise TypeError(f"exclude must be made of Ids, Pairs and Above, got {type(each).__name__}")
    return given


def checked_scope(
    rows: Tensor,
    cols: Tensor,
    exclude: Exclusion | Sequence[Exclusion] | None,
    targets: Labels | None,
    teacher: Teacher | None,
    columns: int | None = None,
) -> Scope:
    """
    Args:
        columns: how many the indices of pairs count, where it is not those of ``cols``.

    Raises:
        TypeError, ValueError: the argument, what came, what was expected.
    """
    given = exclusions(exclude)
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
            known["row_ids"] = known["col_ids"] = _integers(f"{name}.rows", named.rows, rows.shape[0], rows)
            if named.cols is not named.rows or rows.shape[0] != cols.shape[0]:
                known["col_ids"] = _integers(f"{name}.cols", named.cols, cols.shape[0], rows)
    if pairs is not None:
        if pairs.weights is not None:
            raise ValueError("exclude pairs.weights must be None: a pair takes part or does not, got weights")
        known["excluded_indptr"], known["excluded_indices"] = check_pairs(
            "exclude pairs", pairs, rows, cols.shape[0] if columns is None else columns
        )
    if above is not None and teacher is not None and (above.rows is not teacher.rows or above.cols is not teacher.cols):
        raise ValueError("Above and teacher must name the same tensors where both are given, got different ones")
    for name, guide in (("exclude above", above), ("teacher", teacher)):
        if guide is not None:
            known["guide_rows"], known["guide_cols"] = checked_guide(name, guide, rows, cols)
    if above is not None:
        known["guide_threshold"] = checked_levels("exclude above.threshold", above.threshold, rows)
    if teacher is not None:
        known["guide_scale"] = checked_scale("teacher.scale", teacher.scale, "rows", rows).detach()
    return Scope(**known)

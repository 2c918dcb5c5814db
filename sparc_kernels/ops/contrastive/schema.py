"""Signatures of the ops and what they return, shared by every backend that registers them (``MATH.md``)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

_EXCLUDED = "Tensor? row_ids, Tensor? col_ids, Tensor? excluded_indptr, Tensor? excluded_indices"
_GUIDE = "Tensor? guide_rows, Tensor? guide_cols"
_LOGSUMEXP_TENSORS = (
    f"Tensor rows, Tensor cols, Tensor row_scale, Tensor col_scale, {_EXCLUDED}, {_GUIDE}, Tensor? guide_scale, "
    "Tensor? guide_threshold"
)
_SOFTPLUS_TENSORS = (
    f"Tensor rows, Tensor cols, Tensor scale, Tensor bias, {_EXCLUDED}, {_GUIDE}, Tensor? guide_threshold"
)
LOGSUMEXP_FORWARD = (
    f"({_LOGSUMEXP_TENSORS}, bool by_rows, bool by_cols, bool ids_exclude, bool keep_similarities, "
    "str float32_precision) -> (Tensor row_lse, Tensor stats, Tensor col_lse, Tensor row_target, Tensor col_target, "
    "Tensor row_soft, Tensor col_soft)"
)
LOGSUMEXP_BACKWARD = (
    "(Tensor? grad_row_lse, Tensor? grad_col_lse, Tensor? grad_row_target, Tensor? grad_col_target, "
    f"Tensor? grad_row_soft, Tensor? grad_col_soft, {_LOGSUMEXP_TENSORS}, Tensor stats, bool ids_exclude, "
    "bool keep_similarities, bool need_rows, bool need_cols, bool need_row_scale, bool need_col_scale, "
    "str float32_precision) -> (Tensor grad_rows, Tensor grad_cols, Tensor grad_row_scale, Tensor grad_col_scale)"
)
SOFTPLUS_FORWARD = (
    f"({_SOFTPLUS_TENSORS}, bool ids_exclude, bool keep_similarities, str float32_precision) "
    "-> (Tensor row_sum, Tensor stats)"
)
SOFTPLUS_BACKWARD = (
    f"(Tensor grad_row_sum, {_SOFTPLUS_TENSORS}, Tensor stats, bool ids_exclude, bool keep_similarities, "
    "bool need_rows, bool need_cols, bool need_scale, bool need_bias, str float32_precision) "
    "-> (Tensor grad_rows, Tensor grad_cols, Tensor grad_scale, Tensor grad_bias)"
)
SOFTPLUS_TOTAL_FORWARD = (
    f"(Tensor rows, Tensor cols, Tensor scale, Tensor bias, Tensor row_weights, {_EXCLUDED}, {_GUIDE}, "
    "Tensor? guide_threshold, bool ids_exclude, bool keep_rows, bool keep_cols, bool keep_scale, bool keep_bias, "
    "str float32_precision) -> (Tensor total, Tensor stats, Tensor kept_rows, Tensor kept_cols, Tensor kept_scale, "
    "Tensor kept_bias)"
)
SOFTPLUS_TOTAL_BACKWARD = (
    "(Tensor grad_total, Tensor rows, Tensor kept_rows, Tensor kept_cols, Tensor kept_scale, Tensor kept_bias, "
    "str float32_precision) -> (Tensor grad_rows, Tensor grad_cols, Tensor grad_scale, Tensor grad_bias)"
)
PAIRED_FORWARD = "(Tensor rows, Tensor cols, str float32_precision) -> (Tensor cosines, Tensor stats)"
PAIRED_BACKWARD = (
    "(Tensor grad_cosines, Tensor rows, Tensor cols, Tensor stats, bool need_rows, bool need_cols, "
    "str float32_precision) -> (Tensor grad_rows, Tensor grad_cols)"
)

STATS = ("inverse_norm", "lse", "guide_inverse_norm", "guide_lse")  # of a row, and of a column
SOFTPLUS_TOTAL_KEPT = 5  # results without gradient: the statistics, and four gradients for an upstream of 1
PAIRED_STATS = ("row_inverse_norm", "col_inverse_norm", "cosine")  # of a pair


def _fake_stats(rows: Tensor, cols: Tensor, keep_similarities: bool) -> Tensor:
    m, n = rows.shape[0], cols.shape[0]
    size = len(STATS) * (m + n) + (m * n if keep_similarities else 0)
    return rows.new_empty((size,), dtype=accumulation_dtype(rows.dtype))


def fake_logsumexp_forward(
    rows: Tensor,
    cols: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    row_ids: Tensor | None,
    col_ids: Tensor | None,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    guide_rows: Tensor | None,
    guide_cols: Tensor | None,
    guide_scale: Tensor | None,
    guide_threshold: Tensor | None,
    by_rows: bool,
    by_cols: bool,
    ids_exclude: bool,
    keep_similarities: bool,
    float32_precision: str,
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``similarity_logsumexp_forward``."""
    target, soft = row_ids is not None and not ids_exclude, guide_scale is not None

    def vector(like: Tensor, wanted: bool) -> Tensor:
        return rows.new_empty((like.shape[0] if wanted else 0,), dtype=accumulation_dtype(rows.dtype))

    return (
        vector(rows, by_rows),
        _fake_stats(rows, cols, keep_similarities),
        vector(cols, by_cols),
        vector(rows, by_rows and target),
        vector(cols, by_cols and target),
        vector(rows, by_rows and soft),
        vector(cols, by_cols and soft),
    )


def fake_softplus_forward(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    col_ids: Tensor | None,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    guide_rows: Tensor | None,
    guide_cols: Tensor | None,
    guide_threshold: Tensor | None,
    ids_exclude: bool,
    keep_similarities: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``similarity_softplus_forward``."""
    row_sum = rows.new_empty((rows.shape[0],), dtype=accumulation_dtype(rows.dtype))
    return row_sum, _fake_stats(rows, cols, keep_similarities)


def _fake_grads(inputs: tuple[Tensor, ...], needed: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(inputs, needed, strict=True))


def fake_logsumexp_backward(*args: object) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``similarity_logsumexp_backward``."""
    return _fake_grads(args[6:10], args[-5:-1])  # type: ignore[arg-type]


def fake_softplus_backward(*args: object) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``similarity_softplus_backward``."""
    return _fake_grads(args[1:5], args[-5:-1])  # type: ignore[arg-type]


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the gradients of embeddings that a forward pass keeps: float16 has no room for them, whose weights may be
    1 / batch and whose upstream, a loss scale, comes later."""
    return torch.float32 if dtype == torch.float16 else dtype


def fake_softplus_total_forward(
    rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, row_weights: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``similarity_softplus_total_forward``."""
    kept = (
        x.new_empty(x.shape if keep else (0,), dtype=kept_dtype(x.dtype))
        for x, keep in zip((rows, cols, scale, bias), rest[-5:-1], strict=True)
    )
    total = rows.new_empty((), dtype=accumulation_dtype(rows.dtype))
    return total, _fake_stats(rows, cols, False), *kept


def fake_softplus_total_backward(
    grad_total: Tensor,
    rows: Tensor,
    kept_rows: Tensor,
    kept_cols: Tensor,
    kept_scale: Tensor,
    kept_bias: Tensor,
    float32_precision: str,
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``similarity_softplus_total_backward``."""
    embeds = (kept.new_empty(kept.shape, dtype=rows.dtype) for kept in (kept_rows, kept_cols))
    return *embeds, *(kept.new_empty(kept.shape) for kept in (kept_scale, kept_bias))


def fake_paired_forward(rows: Tensor, cols: Tensor, float32_precision: str) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``paired_cosines_forward``."""
    m, dtype = rows.shape[0], accumulation_dtype(rows.dtype)
    return rows.new_empty((m,), dtype=dtype), rows.new_empty((len(PAIRED_STATS), m), dtype=dtype)


def fake_paired_backward(
    grad_cosines: Tensor,
    rows: Tensor,
    cols: Tensor,
    stats: Tensor,
    need_rows: bool,
    need_cols: bool,
    float32_precision: str,
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of ``paired_cosines_backward``."""
    return _fake_grads((rows, cols), (need_rows, need_cols))


def _product(rows: Tensor, cols: Tensor) -> int:
    """Flop of one product over rows and columns."""
    return 2 * rows.shape[0] * cols.shape[0] * rows.shape[1]


def forward_flops(rows: Tensor, cols: Tensor, *rest: object) -> int:
    """The similarities, and the guide's."""
    guide_rows, guide_cols = rest[6:8]
    guide = _product(guide_rows, guide_cols) if isinstance(guide_rows, Tensor) and isinstance(guide_cols, Tensor) else 0
    return _product(rows, cols) + guide


def _backward_flops(inputs: tuple[object, ...], needed: tuple[object, ...], kept: object) -> int:
    rows, cols = inputs[:2]
    assert isinstance(rows, Tensor)
    assert isinstance(cols, Tensor)
    similarities = forward_flops(*inputs) - (_product(rows, cols) if kept else 0)  # type: ignore[arg-type]
    return similarities + _product(rows, cols) * sum(1 for need in needed[:2] if need)


def logsumexp_backward_flops(*args: object) -> int:
    """The similarities where they are not kept, the guide's; G Y for dX; G^T X for dY."""
    return _backward_flops(args[6:], args[-5:-1], args[-6])


def softplus_backward_flops(*args: object) -> int:
    """As :func:`logsumexp_backward_flops`."""
    return _backward_flops(args[1:], args[-5:-1], args[-6])


def softplus_total_forward_flops(*args: object) -> int:
    """The similarities, the guide's; G Y and G^T X where they are wanted."""
    return _backward_flops((*args[:4], *args[5:]), args[-5:-1], None)


def softplus_total_backward_flops(*args: object) -> int:
    """No products."""
    return 0


def paired_forward_flops(rows: Tensor, cols: Tensor, float32_precision: str) -> int:
    """The products of row i and column i; not the norms."""
    return 2 * rows.numel()


def paired_backward_flops(
    grad_cosines: Tensor,
    rows: Tensor,
    cols: Tensor,
    stats: Tensor,
    need_rows: bool,
    need_cols: bool,
    float32_precision: str,
) -> int:
    """Of each gradient, the other side's share."""
    return 2 * rows.numel() * (int(need_rows) + int(need_cols))

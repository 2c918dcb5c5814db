# mypy: disable-error-code="no-untyped-def"
"""Cosines of row i and column i and their gradients: kernels that read both embeddings once each way, and launchers."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparc_kernels.ops._triton.launch import Launch, cdiv, strides, upcast
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops._triton.tiles import MIN_NORM, load_tile, store_tile
from sparc_kernels.ops.contrastive.schema import fake_paired_backward, fake_paired_forward
from sparc_kernels.ops.contrastive.triton_tiles import load_vector
from sparc_kernels.ops.contrastive.triton_whole import BIAS, SCALE, VALUE, exp_of_size, sigmoid, softplus


@triton.jit
def _inverse(b_norm):
    """1 / norm, clamped; NaN stays NaN."""
    return 1.0 / tl.where(b_norm <= MIN_NORM, MIN_NORM, b_norm)


@triton.jit(do_not_specialize=["M"])
def paired_kernel(
    p_rows, p_cols,  # [M, D]
    p_cosines,  # [M]
    p_row_inverse, p_col_inverse,  # [M], of the norms
    p_kept_cosines,  # [M] or None
    p_ids,  # [M] int64 or None: 0 to M - 1
    p_weights,  # [M] or None: 1, or 1 / M for a MEAN
    p_of_cosines,  # [M] or None: gradient of each cosine in the weighted sum of softplus(-(scale * cosine + bias))
    p_scale, p_bias,  # [], for it
    stride_m, stride_md, stride_n, stride_nd,
    M,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m = o < M
    b_xx = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    b_yy = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    b_xy = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_rows, o, o_d, m, D, stride_m, stride_md, UPCAST).to(tl.float32)
        b_y = load_tile(p_cols, o, o_d, m, D, stride_n, stride_nd, UPCAST).to(tl.float32)
        b_xx += b_x * b_x
        b_yy += b_y * b_y
        b_xy += b_x * b_y
    b_a = _inverse(tl.sqrt_rn(tl.sum(b_xx, axis=1)))
    b_b = _inverse(tl.sqrt_rn(tl.sum(b_yy, axis=1)))
    b_cosine = tl.sum(b_xy, axis=1) * b_a * b_b
    tl.store(p_cosines + o, b_cosine, mask=m)
    tl.store(p_row_inverse + o, b_a, mask=m)
    tl.store(p_col_inverse + o, b_b, mask=m)
    if p_kept_cosines is not None:
        tl.store(p_kept_cosines + o, b_cosine, mask=m)
    if p_ids is not None:
        tl.store(p_ids + o, o, mask=m)
    if p_weights is not None:
        b_weight = tl.zeros([BLOCK], tl.float32) + (1.0 / M if MEAN else 1.0)
        tl.store(p_weights + o, b_weight, mask=m)
        if p_of_cosines is not None:
            scale = tl.load(p_scale)
            b_z = -(scale * b_cosine + tl.load(p_bias))
            tl.store(p_of_cosines + o, -scale * b_weight * sigmoid(b_z, exp_of_size(b_z)), mask=m)


@triton.jit(do_not_specialize=["M"])
def paired_gradient_kernel(
    p_grad_cosines,  # [M]
    p_rows, p_cols,  # [M, D]
    p_stats,  # [3, M], contiguous
    p_grad_rows, p_grad_cols,  # [M, D], contiguous, or None
    stride_g, stride_m, stride_md, stride_n, stride_nd,
    M,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m = o < M
    b_grad = tl.load(p_grad_cosines + o * stride_g, mask=m, other=0.0)
    b_a = tl.load(p_stats + o, mask=m, other=0.0)
    b_b = tl.load(p_stats + M + o, mask=m, other=0.0)
    b_turn = b_grad * tl.load(p_stats + 2 * M + o, mask=m, other=0.0)
    b_across = (b_grad * b_a * b_b)[:, None]
    # a norm below the least one counts as a constant
    b_along_x = tl.where(b_a < 1e12, b_turn * b_a * b_a, 0.0)[:, None]
    b_along_y = tl.where(b_b < 1e12, b_turn * b_b * b_b, 0.0)[:, None]
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_rows, o, o_d, m, D, stride_m, stride_md, UPCAST).to(tl.float32)
        b_y = load_tile(p_cols, o, o_d, m, D, stride_n, stride_nd, UPCAST).to(tl.float32)
        if p_grad_rows is not None:
            store_tile(p_grad_rows, b_across * b_y - b_along_x * b_x, o, o_d, m, D, D, UPCAST)
        if p_grad_cols is not None:
            store_tile(p_grad_cols, b_across * b_x - b_along_y * b_y, o, o_d, m, D, D, UPCAST)


@triton.jit(do_not_specialize=["N"])
def softplus_totals_kernel(
    p_sums,  # [FIELDS, N]: those of ``triton_whole``
    p_weights,  # [N], of the values
    p_cosines,  # [N] or None: of pairs (i, i), whose weighted softplus(-(scale * cosine + bias)) comes in addition
    p_scale, p_bias,  # []
    p_grad_scale, p_grad_bias, p_total,  # [] or None
    N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A program for each field."""
    field = tl.program_id(0)
    scale, bias = tl.load(p_scale), tl.load(p_bias)
    b_sum = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < N:
        o = start + tl.arange(0, BLOCK)
        b_weight = load_vector(p_weights, o, N)
        b_value = load_vector(p_sums + tl.cast(N, tl.int64) * field, o, N)
        if field == VALUE:
            b_value *= b_weight
        if p_cosines is not None:
            b_cosine = load_vector(p_cosines, o, N)
            b_z = -(scale * b_cosine + bias)
            b_u = exp_of_size(b_z)
            b_slope = -sigmoid(b_z, b_u)
            b_of_pair = tl.where(field == SCALE, b_slope * b_cosine, b_slope)
            b_value += b_weight * tl.where(field == VALUE, softplus(b_z, b_u), b_of_pair)
        b_sum += b_value
        start += BLOCK
    total = tl.sum(b_sum, axis=0)
    if p_grad_scale is not None:
        tl.store(p_grad_scale, total, mask=field == SCALE)
    if p_grad_bias is not None:
        tl.store(p_grad_bias, total, mask=field == BIAS)
    if p_total is not None:
        tl.store(p_total, total, mask=field == VALUE)


@triton.jit
def load_margins(p_row_lse, p_col_lse, p_cosines, scale, o, N):
    """Log-sum-exp of the others over the logit of the pair (i, i), of rows and of columns; and its cosine."""
    b_cosine = load_vector(p_cosines, o, N)
    b_logit = scale * b_cosine
    return load_vector(p_row_lse, o, N) - b_logit, load_vector(p_col_lse, o, N) - b_logit, b_cosine


@triton.jit(do_not_specialize=["N"])
def mean_softmax_kernel(
    p_row_lse, p_col_lse,  # [N], without the pairs (i, i)
    p_cosines,  # [N], of these pairs
    p_scale,  # []
    p_loss,  # []
    N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The mean of softplus(log-sum-exp - logit) over rows and columns."""
    scale = tl.load(p_scale)
    b_sum = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < N:
        o = start + tl.arange(0, BLOCK)
        b_row, b_col, _ = load_margins(p_row_lse, p_col_lse, p_cosines, scale, o, N)
        b_value = softplus(b_row, exp_of_size(b_row)) + softplus(b_col, exp_of_size(b_col))
        b_sum += tl.where(o < N, b_value, 0.0)
        start += BLOCK
    tl.store(p_loss, tl.sum(b_sum, axis=0) / (2.0 * N))


@triton.jit(do_not_specialize=["N"])
def mean_softmax_gradient_kernel(
    p_grad_loss,  # []
    p_row_lse, p_col_lse, p_cosines, p_scale,  # as above
    p_grad_row_lse, p_grad_col_lse,  # [N]
    p_of_cosines,  # [N]: gradient of each cosine
    p_of_scale,  # [N]: each pair's share of the scale's gradient, beside that of the log-sum-exps
    p_ids,  # [N] int64: 0 to N - 1
    N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < N
    scale = tl.load(p_scale)
    share = tl.load(p_grad_loss) / (2.0 * N)
    b_row, b_col, b_cosine = load_margins(p_row_lse, p_col_lse, p_cosines, scale, o, N)
    b_row = share * sigmoid(b_row, exp_of_size(b_row))
    b_col = share * sigmoid(b_col, exp_of_size(b_col))
    tl.store(p_grad_row_lse + o, b_row, mask=m)
    tl.store(p_grad_col_lse + o, b_col, mask=m)
    tl.store(p_of_cosines + o, -scale * (b_row + b_col), mask=m)
    tl.store(p_of_scale + o, -b_cosine * (b_row + b_col), mask=m)
    tl.store(p_ids + o, o.to(tl.int64), mask=m)


def paired_launch(kernel: Any, rows: Tensor, cols: Tensor, own: dict[str, Any]) -> Launch:
    """Over the pairs: a program holds 2,048 channels of a side at a time, 16 per thread."""
    m, d = rows.shape
    block_d = min(512, max(16, 1 << max(0, d - 1).bit_length()))
    block = 2048 // block_d
    known = {
        "p_rows": rows,
        "p_cols": cols,
        **strides(rows, "stride_m", "stride_md"),
        **strides(cols, "stride_n", "stride_nd"),
        "M": m,
        "D": d,
        "BLOCK": block,
        "BLOCK_D": block_d,
        "UPCAST": upcast(rows.dtype),
    }
    return Launch.of(kernel, cdiv(m, block), known, own, 4, 2)


def paired_forward_plan(
    rows: Tensor, cols: Tensor, float32_precision: str
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """The results of ``paired_forward``, not yet computed, and the launch that computes them."""
    cosines, stats = fake_paired_forward(rows, cols, float32_precision)
    own: dict[str, Any] = {"p_cosines": cosines, "MEAN": False}
    own |= dict(zip(("p_row_inverse", "p_col_inverse", "p_kept_cosines"), stats))
    own |= dict.fromkeys(("p_ids", "p_weights", "p_of_cosines", "p_scale", "p_bias"))
    return (cosines, stats), [paired_launch(paired_kernel, rows, cols, own)]


def paired_backward_plan(*args: Any) -> tuple[tuple[Tensor, ...], list[Launch]]:
    """The gradients of ``paired_backward``, not yet computed, and the launch that computes them."""
    grad_cosines, rows, cols, stats, need_rows, need_cols, _ = args
    grads = fake_paired_backward(*args)
    if not (need_rows or need_cols):
        return grads, []
    own = {
        "p_grad_cosines": grad_cosines,
        "p_stats": stats.contiguous(),
        "p_grad_rows": grads[0] if need_rows else None,
        "p_grad_cols": grads[1] if need_cols else None,
        **strides(grad_cosines, "stride_g"),
    }
    return grads, [paired_launch(paired_gradient_kernel, rows, cols, own)]


def paired_forward(*args: Any) -> tuple[Tensor, ...]:
    """cosines [M] and stats."""
    return run_plan(paired_forward_plan, args, args[0])


def paired_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of rows and cols; [0] for one that is not needed."""
    return run_plan(paired_backward_plan, args, args[1])

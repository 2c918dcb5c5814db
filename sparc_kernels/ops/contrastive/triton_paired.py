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


@triton.jit
def _inverse(b_norm):
    """1 / norm, clamped; NaN stays NaN."""
    return 1.0 / tl.where(b_norm <= MIN_NORM, MIN_NORM, b_norm)


@triton.jit(do_not_specialize=["M"])
def paired_kernel(
    p_rows, p_cols,  # [M, D]
    p_cosines,  # [M]
    p_stats,  # [3, M]
    stride_m, stride_md, stride_n, stride_nd,
    M,
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
    tl.store(p_stats + o, b_a, mask=m)
    tl.store(p_stats + M + o, b_b, mask=m)
    tl.store(p_stats + 2 * M + o, b_cosine, mask=m)


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


def _launch(kernel: Any, rows: Tensor, cols: Tensor, own: dict[str, Any]) -> Launch:
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
    return (cosines, stats), [_launch(paired_kernel, rows, cols, {"p_cosines": cosines, "p_stats": stats})]


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
    return grads, [_launch(paired_gradient_kernel, rows, cols, own)]


def paired_forward(*args: Any) -> tuple[Tensor, ...]:
    """cosines [M] and stats."""
    return run_plan(paired_forward_plan, args, args[0])


def paired_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of rows and cols; [0] for one that is not needed."""
    return run_plan(paired_backward_plan, args, args[1])

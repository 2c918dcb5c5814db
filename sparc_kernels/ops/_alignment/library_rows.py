# mypy: disable-error-code="no-untyped-def"
"""Passes between a library's products: over rows of similarities, each held whole, and over rows of channels.

A program takes a block of rows of one pair. Rows of similarities lie ``W`` numbers apart, of which the first P count:
a pass may read what stands behind them, and writes zeros or nothing there. Numbers per row and pair are those of
``tiled.py``.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._alignment.min_max import (
    grad_similarities,
    min_max_heights,
    row_extrema,
    sparse_weights,
    threshold_of,
)
from sparc_kernels.ops._alignment.tiled import (
    GRAD_FACTOR,
    GROUP_FACTOR,
    MIN,
    RANGE,
    SIGMA,
    TIES,
    TOKEN_FACTOR,
    WEIGHT_SUM,
    load_factor,
    store_scalar,
)
from sparc_kernels.ops._triton.tiles import load_mask, load_tile, share_of_mean, store_tile

# Batches differ in their longest caption: no reason to compile again. Steps from pair to pair are whole rows, whose
# alignment a kernel has to know to read 16 bytes at a time.
RAGGED = ["L", "stride_pb"]
RAGGED_ROWS = ["R", "stride_mb"]


@triton.jit
def block_of_rows(n_rows, BLOCK: tl.constexpr):
    """(pair as int64, rows [BLOCK]) of this program."""
    blocks = tl.cdiv(n_rows, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit(do_not_specialize=RAGGED)
def row_weights_kernel(
    p_similarities,  # [N, L, W] float32: S
    p_weights,  # [N, L, W] float32: U, or A with NORMALIZE; may be the same memory
    p_scalars,  # [N, ROW_SCALARS, L] float32, or None: not wanted
    p_row_min,  # [N, L] float32 contiguous, or None: not wanted; so the next two
    p_row_max,
    p_weight_sum,
    p_patch_mask,  # [N, P] bool or None
    p_threshold,  # [] float32 or None
    stride_s, stride_u,  # from pair to pair
    stride_pb, stride_pp,
    L, P, W,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    o_b, o_l = block_of_rows(L, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    sigma, _ = threshold_of(p_threshold, tl.sum(m_p.to(tl.int32), axis=0))
    b_s = load_tile(p_similarities + o_b * stride_s, o_l, o_p, o_l < L, W, W, 1, False)  # [BLOCK_L, BLOCK_P]
    b_min, b_max = row_extrema(b_s, m_p)
    b_height, b_range = min_max_heights(b_s, b_min, b_max, m_p)
    b_u = sparse_weights(b_height, b_range, sigma)
    b_weight_sum = tl.sum(b_u, axis=1)
    if NORMALIZE:  # NaN for an image without a valid patch
        m_none = b_weight_sum == 0.0
        b_u = b_u * tl.where(m_none, float("nan"), 1.0 / tl.where(m_none, 1.0, b_weight_sum))[:, None]
    tl.debug_barrier()  # all of S is read before any of it is overwritten
    store_tile(p_weights + o_b * stride_u, b_u, o_l, o_p, o_l < L, W, W, False)
    if p_scalars is not None:
        store_scalar(p_scalars, b_min, o_b, o_l, L, MIN)
        store_scalar(p_scalars, b_range, o_b, o_l, L, RANGE)
        store_scalar(p_scalars, b_min * 0.0 + sigma, o_b, o_l, L, SIGMA)
        store_scalar(p_scalars, tl.sum(tl.where(b_height == 0.0, 1.0, 0.0), axis=1), o_b, o_l, L, TIES)
        store_scalar(p_scalars, b_weight_sum, o_b, o_l, L, WEIGHT_SUM)
    if p_row_min is not None:
        tl.store(p_row_min + (o_b * L + o_l), b_min, mask=o_l < L)
        tl.store(p_row_max + (o_b * L + o_l), b_max, mask=o_l < L)
        tl.store(p_weight_sum + (o_b * L + o_l), b_weight_sum, mask=o_l < L)


@triton.jit(do_not_specialize=RAGGED)
def row_grad_similarities_kernel(
    p_similarities,  # [N, L, W] float32: S
    p_grad,  # [N, L, G], P of them or W: dZ S, or dA with NORMALIZE
    p_products,  # [N, L, W] float32, or None: C' V^T, which dU has times the row's factor
    p_grads,  # [N, L, W] float32: takes dS
    p_weights,  # [N, L, W] float32, or None: takes U times the row's factor, or A with NORMALIZE
    p_factors,  # [N, ROW_FACTORS, L] float32 or None
    p_patch_mask,  # [N, P] bool or None
    p_threshold,  # [] float32 or None
    stride_s, stride_x, stride_u, stride_c,  # from pair to pair: of S, dS, U and the products
    stride_gb, stride_gl, stride_gd,
    stride_pb, stride_pp,
    L, P, W, G,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    """What is read and what is written may be the same memory."""
    o_b, o_l = block_of_rows(L, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_l = o_l < L
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    sigma, _ = threshold_of(p_threshold, tl.sum(m_p.to(tl.int32), axis=0))
    b_s = load_tile(p_similarities + o_b * stride_s, o_l, o_p, m_l, W, W, 1, False)  # [BLOCK_L, BLOCK_P]
    b_min, b_max = row_extrema(b_s, m_p)
    b_height, b_range = min_max_heights(b_s, b_min, b_max, m_p)
    b_u = sparse_weights(b_height, b_range, sigma)
    b_grad = load_tile(p_grad + o_b * stride_gb, o_l, o_p, m_l, G, stride_gl, stride_gd, False)
    if NORMALIZE:
        b_weight_sum = tl.sum(b_u, axis=1)
        b_inverse = 1.0 / tl.where(b_weight_sum == 0.0, 1.0, b_weight_sum)
        b_u = b_u * b_inverse[:, None]
        b_grad = tl.where(m_p[None, :], b_grad, 0.0)  # what is asked of a masked patch is asked in vain
        b_grad = (b_grad - tl.sum(b_grad * b_u, axis=1)[:, None]) * b_inverse[:, None]
    else:
        b_factor = load_factor(p_factors, o_b, o_l, L, GROUP_FACTOR)[:, None]
        b_u = b_u * b_factor
        b_grad += b_factor * load_tile(p_products + o_b * stride_c, o_l, o_p, m_l, W, W, 1, False)
    b_ds = grad_similarities(b_grad, b_height, b_range, sigma)
    tl.debug_barrier()  # all is read before any of it is overwritten
    store_tile(p_grads + o_b * stride_x, b_ds, o_l, o_p, m_l, W, W, False)
    if p_weights is not None:
        store_tile(p_weights + o_b * stride_u, b_u, o_l, o_p, m_l, W, W, False)


@triton.jit(do_not_specialize=RAGGED_ROWS)
def copy_rows_kernel(
    p_rows,  # [N, R, D] float32
    p_mask,  # [N, R] bool or None: a masked row is copied as zeros, whatever stands there
    p_copy,  # [N, R, D] float32, its rows contiguous
    stride_rb, stride_rn, stride_rd, stride_mb, stride_mn, stride_yb,
    R,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    o_b, o_r = block_of_rows(R, BLOCK)
    m_r = load_mask(p_mask, o_b, o_r, R, stride_mb, stride_mn)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_rows = load_tile(p_rows + o_b * stride_rb, o_r, o_d, m_r, D, stride_rn, stride_rd, False)
        store_tile(p_copy + o_b * stride_yb, b_rows, o_r, o_d, o_r < R, D, D, False)


@triton.jit(do_not_specialize=RAGGED_ROWS)
def finish_grads_kernel(
    p_grads,  # [N, R, D] float32 contiguous: overwritten
    p_rows,  # [N, R, D] float32, its rows contiguous, or None: what the factors belong to
    p_factors,  # [N, ROW_FACTORS, R] float32, with rows
    p_mask,  # [N, R] bool or None: rows that have no gradient
    p_grad_mean,  # [N, D] contiguous, or None: gradient of the mean of the valid rows
    stride_rb, stride_mb, stride_mn,
    R,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,  # all R
):  # fmt: skip
    """What a product left to be done: the term along the row itself, and the share of the mean's gradient."""
    o_b, o_r = block_of_rows(R, BLOCK)
    m_r = load_mask(p_mask, o_b, o_r, R, stride_mb, stride_mn)
    n_valid = tl.sum(load_mask(p_mask, o_b, tl.arange(0, BLOCK_R), R, stride_mb, stride_mn).to(tl.int32), axis=0)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_grad = load_tile(p_grads + o_b * R * D, o_r, o_d, m_r, D, D, 1, False)  # [BLOCK, BLOCK_D]
        if p_rows is not None:
            b_rows = load_tile(p_rows + o_b * stride_rb, o_r, o_d, m_r, D, D, 1, False)
            b_grad -= load_factor(p_factors, o_b, o_r, R, TOKEN_FACTOR)[:, None] * b_rows
            b_grad = b_grad * load_factor(p_factors, o_b, o_r, R, GRAD_FACTOR)[:, None]
        if p_grad_mean is not None:
            b_grad += share_of_mean(p_grad_mean + o_b * D, n_valid, o_d, D)
        tl.debug_barrier()  # small blocks are read by more threads than write them
        store_tile(p_grads + o_b * R * D, tl.where(m_r[:, None], b_grad, 0.0), o_r, o_d, o_r < R, D, D, False)

# mypy: disable-error-code="no-untyped-def"
"""Passes over rows of similarities whose weights are a softmax, in the places of those with min-max weights.

What stands in the workspaces for H are exponentials E = exp(a (S - max)), -1 at masked patches. With range 1 and sigma
0 the kernels of ``tiled.py`` then take E for U: the weights but for a factor of their row.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._alignment.library_rows import RAGGED, block_of_rows
from sparc_kernels.ops._alignment.tiled import (
    GROUP_FACTOR,
    MIN,
    RANGE,
    SIGMA,
    WEIGHT_SUM,
    load_factor,
    load_weights,
    store_scalar,
)
from sparc_kernels.ops._triton.tiles import load_mask, load_tile, store_tile
from sparc_kernels.ops._triton.workspaces import load_workspace, locate, workspace_offsets


@triton.jit
def store_row_scalars(p_scalars, b_max, b_weight_sum, o_b, o_l, L):
    store_scalar(p_scalars, b_max, o_b, o_l, L, MIN)
    store_scalar(p_scalars, b_max * 0.0 + 1.0, o_b, o_l, L, RANGE)
    store_scalar(p_scalars, b_max * 0.0, o_b, o_l, L, SIGMA)
    store_scalar(p_scalars, b_weight_sum, o_b, o_l, L, WEIGHT_SUM)


@triton.jit
def exponentials(b_s, b_max, m_p, attention):
    """E [L, P], 0 at masked patches."""
    return tl.where(m_p[None, :], tl.exp(attention * (b_s - b_max[:, None])), 0.0)


@triton.jit
def grad_of_softmax(b_grad, b_e, b_mean, attention):
    """dS [L, P] from the derivative by E, and its mean [L] under the weights."""
    return attention * b_e * (b_grad - b_mean[:, None])


@triton.jit
def tiled_softmax_kernel(
    p_heights,  # [N, L, P] float32: S, overwritten with E
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_patch_mask,  # [N, P] bool or None
    p_attention,  # [] float32
    stride_pb, stride_pp,
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, _ = locate(TILES_L, 1)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    attention = tl.load(p_attention)
    n_patches = 0
    b_max = tl.full([BLOCK_L], -float("inf"), tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_s = load_workspace(p_heights, o_b, o_l, o_p, L, P)
        b_max = tl.maximum(b_max, tl.max(tl.where(m_p[None, :], b_s, -float("inf")), axis=1))
        n_patches += tl.sum(m_p.to(tl.int32), axis=0)
    b_max = tl.where(n_patches > 0, b_max, 0.0)
    b_weight_sum = tl.zeros([BLOCK_L], tl.float32)
    tl.debug_barrier()  # all of S is read before any of it is overwritten
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_e = exponentials(load_workspace(p_heights, o_b, o_l, o_p, L, P), b_max, m_p, attention)
        b_weight_sum += tl.sum(b_e, axis=1)
        o_out, m_out = workspace_offsets(o_b, o_l, o_p, L, P)
        tl.store(p_heights + o_out, tl.where(m_p[None, :], b_e, -1.0), mask=m_out)
    store_row_scalars(p_scalars, b_max, b_weight_sum, o_b, o_l, L)


@triton.jit
def tiled_grad_softmax_kernel(
    p_grads,  # [N, L, P] float32: dE, overwritten with dS
    p_heights,  # [N, L, P] float32: E
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_attention,  # [] float32
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, _ = locate(TILES_L, 1)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    attention = tl.load(p_attention)
    b_along = tl.zeros([BLOCK_L], tl.float32)
    b_sum = tl.zeros([BLOCK_L], tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        b_e = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P)
        b_along += tl.sum(b_e * load_workspace(p_grads, o_b, o_l, o_p, L, P), axis=1)
        b_sum += tl.sum(b_e, axis=1)
    b_mean = b_along / tl.where(b_sum == 0.0, 1.0, b_sum)
    tl.debug_barrier()  # all of dE is read before any of it is overwritten
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        b_e = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P)
        b_ds = grad_of_softmax(load_workspace(p_grads, o_b, o_l, o_p, L, P), b_e, b_mean, attention)
        o_out, m_out = workspace_offsets(o_b, o_l, o_p, L, P)
        tl.store(p_grads + o_out, b_ds, mask=m_out)


@triton.jit(do_not_specialize=RAGGED)
def row_softmax_kernel(
    p_similarities,  # [N, L, W] float32: S
    p_weights,  # [N, L, W] float32: E; may be the same memory
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_patch_mask,  # [N, P] bool or None
    p_attention,  # [] float32
    stride_s, stride_u,  # from pair to pair
    stride_pb, stride_pp,
    L, P, W,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    o_b, o_l = block_of_rows(L, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    b_s = load_tile(p_similarities + o_b * stride_s, o_l, o_p, o_l < L, W, W, 1, False)  # [BLOCK_L, BLOCK_P]
    b_max = tl.max(tl.where(m_p[None, :], b_s, -float("inf")), axis=1)
    b_max = tl.where(tl.sum(m_p.to(tl.int32), axis=0) > 0, b_max, 0.0)
    b_e = exponentials(b_s, b_max, m_p, tl.load(p_attention))
    tl.debug_barrier()  # all of S is read before any of it is overwritten
    store_tile(p_weights + o_b * stride_u, b_e, o_l, o_p, o_l < L, W, W, False)
    store_row_scalars(p_scalars, b_max, tl.sum(b_e, axis=1), o_b, o_l, L)


@triton.jit(do_not_specialize=RAGGED)
def row_grad_softmax_kernel(
    p_similarities,  # [N, L, W] float32: S
    p_grad,  # [N, L, W] float32: dZ S
    p_products,  # [N, L, W] float32: C' V^T, which dE has times the row's factor
    p_grads,  # [N, L, W] float32: takes dS
    p_weights,  # [N, L, W] float32: takes E times the row's factor
    p_factors,  # [N, ROW_FACTORS, L] float32
    p_patch_mask,  # [N, P] bool or None
    p_attention,  # [] float32
    stride_s, stride_x, stride_u, stride_c,  # from pair to pair: of S, dS, E and the products
    stride_gb, stride_gl, stride_gd,
    stride_pb, stride_pp,
    L, P, W,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What is read and what is written may be the same memory."""
    o_b, o_l = block_of_rows(L, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_l = o_l < L
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    attention = tl.load(p_attention)
    b_s = load_tile(p_similarities + o_b * stride_s, o_l, o_p, m_l, W, W, 1, False)  # [BLOCK_L, BLOCK_P]
    b_max = tl.max(tl.where(m_p[None, :], b_s, -float("inf")), axis=1)
    b_max = tl.where(tl.sum(m_p.to(tl.int32), axis=0) > 0, b_max, 0.0)
    b_e = exponentials(b_s, b_max, m_p, attention)
    b_factor = load_factor(p_factors, o_b, o_l, L, GROUP_FACTOR)[:, None]
    b_grad = load_tile(p_grad + o_b * stride_gb, o_l, o_p, m_l, W, stride_gl, stride_gd, False)
    b_grad += b_factor * load_tile(p_products + o_b * stride_c, o_l, o_p, m_l, W, W, 1, False)
    b_grad = tl.where(m_p[None, :], b_grad, 0.0)
    b_sum = tl.sum(b_e, axis=1)
    b_mean = tl.sum(b_e * b_grad, axis=1) / tl.where(b_sum == 0.0, 1.0, b_sum)
    b_ds = grad_of_softmax(b_grad, b_e, b_mean, attention)
    tl.debug_barrier()  # all is read before any of it is overwritten
    store_tile(p_grads + o_b * stride_x, b_ds, o_l, o_p, m_l, W, W, False)
    store_tile(p_weights + o_b * stride_u, b_e * b_factor, o_l, o_p, m_l, W, W, False)

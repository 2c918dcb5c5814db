# mypy: disable-error-code="no-untyped-def"
"""Kernels of the tiled path that every room may use: any number of tokens and patches, one matrix product each.

Workspaces of N pairs, contiguous float32: ``heights`` [N, L, P] (S, then H: see ``min_max_heights``), ``scalars``
[N, ROW_SCALARS, L], ``grads`` [N, L, P] (dU or dA, then dS or X), ``factors`` [N, ROW_FACTORS, L].
"""

import triton
import triton.language as tl

from sparc_kernels.ops._alignment.min_max import min_max_heights, sparse_weights, threshold_of
from sparc_kernels.ops._triton.tiles import load_mask, load_tile, share_of_mean, store_tile
from sparc_kernels.ops._triton.workspaces import (
    count_valid,
    load_amax,
    load_field,
    load_workspace,
    locate,
    store_field,
    workspace_offsets,
)

# What is known of each row of similarities: its minimum, range (0 if flat), sigma, number of minima, sum of U.
ROW_SCALARS = ("min", "range", "sigma", "ties", "weight_sum")
MIN = tl.constexpr(ROW_SCALARS.index("min"))
RANGE = tl.constexpr(ROW_SCALARS.index("range"))
SIGMA = tl.constexpr(ROW_SCALARS.index("sigma"))
TIES = tl.constexpr(ROW_SCALARS.index("ties"))
WEIGHT_SUM = tl.constexpr(ROW_SCALARS.index("weight_sum"))
N_SCALARS = tl.constexpr(len(ROW_SCALARS))

# By what a loss on cosines multiplies the row of C' in dV, the token in dT, and the row of dT.
ROW_FACTORS = ("group", "token", "grad")
GROUP_FACTOR = tl.constexpr(ROW_FACTORS.index("group"))
TOKEN_FACTOR = tl.constexpr(ROW_FACTORS.index("token"))
GRAD_FACTOR = tl.constexpr(ROW_FACTORS.index("grad"))
N_FACTORS = tl.constexpr(len(ROW_FACTORS))


@triton.jit
def load_scalar(p_scalars, o_b, o_l, L, FIELD: tl.constexpr):
    """[ROWS] of one of ``ROW_SCALARS``, 0 outside."""
    return load_field(p_scalars, o_b, o_l, L, FIELD, N_SCALARS)


@triton.jit
def store_scalar(p_scalars, b_scalar, o_b, o_l, L, FIELD: tl.constexpr):
    """[ROWS] into one of ``ROW_SCALARS``."""
    store_field(p_scalars, b_scalar, o_b, o_l, L, FIELD, N_SCALARS)


@triton.jit
def load_factor(p_factors, o_b, o_l, L, FIELD: tl.constexpr):
    """[ROWS] of one of ``ROW_FACTORS``, 0 outside."""
    return load_field(p_factors, o_b, o_l, L, FIELD, N_FACTORS)


@triton.jit
def store_factor(p_factors, b_factor, o_b, o_l, L, FIELD: tl.constexpr):
    """[ROWS] into one of ``ROW_FACTORS``."""
    store_field(p_factors, b_factor, o_b, o_l, L, FIELD, N_FACTORS)


@triton.jit
def load_heights(p_heights, o_b, o_l, o_p, L, P):
    """H [ROWS, COLS], that of a masked patch outside."""
    o_tile, m_tile = workspace_offsets(o_b, o_l, o_p, L, P)
    return tl.load(p_heights + o_tile, mask=m_tile, other=-1.0)


@triton.jit
def load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P):
    """U [ROWS, COLS] from the workspaces."""
    b_height = load_heights(p_heights, o_b, o_l, o_p, L, P)
    b_range = load_scalar(p_scalars, o_b, o_l, L, RANGE)
    return sparse_weights(b_height, b_range, load_scalar(p_scalars, o_b, o_l, L, SIGMA)[:, None])


@triton.jit
def tiled_min_max_kernel(
    p_heights,  # [N, L, P] float32: S, overwritten with H
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_row_min,  # [N, L] float32 contiguous, or None: not wanted; so the next two
    p_row_max,
    p_weight_sum,
    p_patch_mask,  # [N, P] bool or None
    p_threshold,  # [] float32 or None
    stride_pb, stride_pp,
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr,  # the dtype that products round U to
):  # fmt: skip
    o_b, tile_l, _ = locate(TILES_L, 1)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    n_patches = 0
    b_min = tl.full([BLOCK_L], float("inf"), tl.float32)
    b_max = tl.full([BLOCK_L], -float("inf"), tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_s = load_workspace(p_heights, o_b, o_l, o_p, L, P)
        b_min = tl.minimum(b_min, tl.min(tl.where(m_p[None, :], b_s, float("inf")), axis=1))
        b_max = tl.maximum(b_max, tl.max(tl.where(m_p[None, :], b_s, -float("inf")), axis=1))
        n_patches += tl.sum(m_p.to(tl.int32), axis=0)
    b_min = tl.where(n_patches > 0, b_min, 0.0)
    b_max = tl.where(n_patches > 0, b_max, 0.0)
    sigma, _ = threshold_of(p_threshold, n_patches)
    b_ties = tl.zeros([BLOCK_L], tl.float32)
    b_weight_sum = tl.zeros([BLOCK_L], tl.float32)
    b_range = b_min * 0.0
    tl.debug_barrier()  # all of S is read before any of it is overwritten
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_height, b_range = min_max_heights(load_workspace(p_heights, o_b, o_l, o_p, L, P), b_min, b_max, m_p)
        b_ties += tl.sum(tl.where(b_height == 0.0, 1.0, 0.0), axis=1)
        b_weight_sum += tl.sum(sparse_weights(b_height, b_range, sigma).to(OPERAND).to(tl.float32), axis=1)
        o_out, m_out = workspace_offsets(o_b, o_l, o_p, L, P)
        tl.store(p_heights + o_out, b_height, mask=m_out)
    store_scalar(p_scalars, b_min, o_b, o_l, L, MIN)
    store_scalar(p_scalars, b_range, o_b, o_l, L, RANGE)
    store_scalar(p_scalars, b_min * 0.0 + sigma, o_b, o_l, L, SIGMA)
    store_scalar(p_scalars, b_ties, o_b, o_l, L, TIES)
    store_scalar(p_scalars, b_weight_sum, o_b, o_l, L, WEIGHT_SUM)
    if p_row_min is not None:
        tl.store(p_row_min + (o_b * L + o_l), b_min, mask=o_l < L)
        tl.store(p_row_max + (o_b * L + o_l), b_max, mask=o_l < L)
        tl.store(p_weight_sum + (o_b * L + o_l), b_weight_sum, mask=o_l < L)


@triton.jit
def tiled_groups_kernel(
    p_heights,  # [N, L, P] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_patches,  # [N, P, D]
    p_patch_mask,  # [N, P] bool or None
    p_groups,  # [N, L, D] contiguous: C' = U V, or C with NORMALIZE
    stride_vb, stride_vp, stride_vd, stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    TILES_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SHRINK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_patches.dtype.element_ty
    o_b, tile_l, tile_d = locate(TILES_L, TILES_D)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    b_c = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_u = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P).to(OPERAND)  # [BLOCK_L, BLOCK_P]
        b_v = load_tile(p_patches + o_b * stride_vb, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)
        b_c = tl.dot(b_u, b_v, b_c, input_precision=PRECISION)
    if NORMALIZE:
        b_weight_sum = load_scalar(p_scalars, o_b, o_l, L, WEIGHT_SUM)  # 0 for an image without a valid patch
        b_c = (
            b_c
            * tl.where(b_weight_sum == 0.0, float("nan"), 1.0 / tl.where(b_weight_sum == 0.0, 1.0, b_weight_sum))[
                :, None
            ]
        )
    else:
        b_c = b_c * SHRINK
    store_tile(p_groups + o_b * L * D, b_c, o_l, o_d, o_l < L, D, D, UPCAST and NORMALIZE)


@triton.jit
def tiled_grad_similarities_kernel(
    p_grads,  # [N, L, P] float32: dU, or dA with NORMALIZE, overwritten with dS
    p_heights,  # [N, L, P] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_amax,  # [N, TILES_L] float32 or None: largest magnitude of each row tile
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, _ = locate(TILES_L, 1)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    b_range = load_scalar(p_scalars, o_b, o_l, L, RANGE)
    b_sigma = load_scalar(p_scalars, o_b, o_l, L, SIGMA)
    b_mean = tl.zeros([BLOCK_L], tl.float32)  # sum_p A dA
    b_factor = tl.where(b_range == 0.0, 0.0, 1.0 / tl.where(b_range == 0.0, 1.0, b_range))
    if NORMALIZE:
        b_inverse_sum = 1.0 / tl.maximum(load_scalar(p_scalars, o_b, o_l, L, WEIGHT_SUM), 1.0)
        b_factor = b_factor * b_inverse_sum
        for tile in range(TILES_P):
            o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
            b_u = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P)
            b_mean += tl.sum(b_u * load_workspace(p_grads, o_b, o_l, o_p, L, P), axis=1) * b_inverse_sum
    b_shared = tl.zeros([BLOCK_L], tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        b_height = load_heights(p_heights, o_b, o_l, o_p, L, P)
        b_grad = load_workspace(p_grads, o_b, o_l, o_p, L, P) - b_mean[:, None]
        b_shared += tl.sum(tl.where(b_height < b_sigma[:, None], 0.0, b_grad), axis=1)
    b_shared = b_shared / tl.maximum(load_scalar(p_scalars, o_b, o_l, L, TIES), 1.0)
    b_amax = tl.zeros([BLOCK_L], tl.float32)
    tl.debug_barrier()  # all of dU is read before any of it is overwritten
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        b_height = load_heights(p_heights, o_b, o_l, o_p, L, P)
        b_grad = load_workspace(p_grads, o_b, o_l, o_p, L, P) - b_mean[:, None]
        b_grad = tl.where(b_height < b_sigma[:, None], 0.0, b_grad)
        b_grad = (b_grad - tl.where(b_height == 0.0, b_shared[:, None], 0.0)) * b_factor[:, None]
        b_amax = tl.maximum(b_amax, tl.max(tl.abs(b_grad), axis=1))
        o_out, m_out = workspace_offsets(o_b, o_l, o_p, L, P)
        tl.store(p_grads + o_out, b_grad, mask=m_out)
    if p_amax is not None:
        amax = tl.max(b_amax, axis=0)
        tl.store(p_amax + o_b * TILES_L + tile_l, tl.where(amax > 0.0, amax, 1.0))


@triton.jit
def tiled_grad_tokens_kernel(
    p_grads,  # [N, L, P] float32: X
    p_amax,  # [N, N_AMAX] float32 or None
    p_patches,  # [N, P, D]
    p_tokens,  # [N, L, D]
    p_token_mask,  # [N, L] bool or None
    p_patch_mask,  # [N, P] bool or None
    p_factors,  # [N, ROW_FACTORS, L] float32 or None
    p_grad_mean_tokens,  # [N, D] contiguous, or None: gradient of the mean of the valid tokens
    p_grad_tokens,  # [N, L, D] contiguous
    stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_lb, stride_ll, stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    TILES_D: tl.constexpr,
    N_AMAX: tl.constexpr,
    BLOCK_AMAX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SHRINK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_patches.dtype.element_ty
    o_b, tile_l, tile_d = locate(TILES_L, TILES_D)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    amax = load_amax(p_amax, o_b, N_AMAX, BLOCK_AMAX)
    b_gt = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_x = (load_workspace(p_grads, o_b, o_l, o_p, L, P) * (1.0 / amax)).to(OPERAND)  # [BLOCK_L, BLOCK_P]
        b_v = load_tile(p_patches + o_b * stride_vb, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)
        b_gt = tl.dot(b_x, b_v, b_gt, input_precision=PRECISION)
    b_gt = b_gt * (SHRINK * amax)
    m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
    if p_factors is not None:
        b_t = load_tile(p_tokens + o_b * stride_tb, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)
        b_gt -= load_factor(p_factors, o_b, o_l, L, TOKEN_FACTOR)[:, None] * b_t.to(tl.float32)
        b_gt = b_gt * load_factor(p_factors, o_b, o_l, L, GRAD_FACTOR)[:, None]
        if p_grad_mean_tokens is not None:
            n_tokens = count_valid(p_token_mask, o_b, L, stride_lb, stride_ll, TILES_L, BLOCK_L)
            b_gt += share_of_mean(p_grad_mean_tokens + o_b * D, n_tokens, o_d, D)
        b_gt = tl.where(m_l[:, None], b_gt, 0.0)
    store_tile(p_grad_tokens + o_b * L * D, b_gt, o_l, o_d, o_l < L, D, D, UPCAST)


@triton.jit
def tiled_grad_patches_kernel(
    p_grads,  # [N, L, P] float32: X
    p_amax,  # [N, N_AMAX] float32 or None
    p_heights,  # [N, L, P] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_tokens,  # [N, L, D]
    p_groups,  # [N, L, D] or None: C' (with factors), or the gradient of C
    p_token_mask,  # [N, L] bool or None
    p_patch_mask,  # [N, P] bool or None
    p_factors,  # [N, ROW_FACTORS, L] float32 or None
    p_pair_factor,  # [N] float32 or None
    p_grad_mean_patches,  # [N, D] contiguous, or None: gradient of the mean of the valid patches
    p_grad_patches,  # [N, P, D] contiguous
    stride_tb, stride_tl, stride_td, stride_cb, stride_cl, stride_cd, stride_lb, stride_ll, stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    TILES_D: tl.constexpr,
    N_AMAX: tl.constexpr,
    BLOCK_AMAX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_tokens.dtype.element_ty
    o_b, tile_p, tile_d = locate(TILES_P, TILES_D)
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    amax = load_amax(p_amax, o_b, N_AMAX, BLOCK_AMAX)
    n_tokens = 0
    b_gv = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for tile in range(TILES_L):
        o_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
        n_tokens += tl.sum(m_l.to(tl.int32), axis=0)
        b_x = (load_workspace(p_grads, o_b, o_l, o_p, L, P) * (1.0 / amax)).to(OPERAND)  # [BLOCK_L, BLOCK_P]
        b_t = load_tile(p_tokens + o_b * stride_tb, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)
        b_gv = tl.dot(tl.trans(b_x), b_t, b_gv, input_precision=PRECISION)
    b_gv = b_gv * amax
    if p_groups is not None:
        for tile in range(TILES_L):
            o_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
            m_l = o_l < L
            b_u = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P)  # [BLOCK_L, BLOCK_P]
            b_c = load_tile(p_groups + o_b * stride_cb, o_l, o_d, m_l, D, stride_cl, stride_cd, UPCAST)
            if p_factors is not None:
                b_c = b_c * load_factor(p_factors, o_b, o_l, L, GROUP_FACTOR)[:, None]
            else:
                b_u = b_u / tl.maximum(load_scalar(p_scalars, o_b, o_l, L, WEIGHT_SUM), 1.0)[:, None]
            b_gv = tl.dot(tl.trans(b_u.to(OPERAND)), b_c.to(OPERAND), b_gv, input_precision=PRECISION)
    if p_pair_factor is not None:
        b_gv = b_gv * tl.load(p_pair_factor + o_b)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    b_gv = tl.where(n_tokens > 0, b_gv, 0.0)
    if p_grad_mean_patches is not None:
        n_patches = count_valid(p_patch_mask, o_b, P, stride_pb, stride_pp, TILES_P, BLOCK_P)
        b_gv += share_of_mean(p_grad_mean_patches + o_b * D, n_patches, o_d, D)
    b_gv = tl.where(m_p[:, None], b_gv, 0.0)
    store_tile(p_grad_patches + o_b * P * D, b_gv, o_p, o_d, o_p < P, D, D, UPCAST)

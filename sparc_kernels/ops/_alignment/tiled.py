# mypy: disable-error-code="no-untyped-def"
"""Kernels of the tiled path that both rooms use: any number of tokens and patches, one matrix product each.

Workspaces of N pairs, contiguous float32: ``heights`` [N, L, P] (S, then H: see ``min_max_heights``), ``rows``
[N, 5, L] (minimum, range, sigma, number of minima, sum of U), ``grads`` [N, L, P] (dU or dA, then dS or X). Grid axis 0
holds pair, row tile, column tile. Numbers of tiles are constexprs: loops over them then need no bound from the device.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import (
    alignment,
    load_mask,
    load_tile,
    min_max_heights,
    share_of_mean,
    store_mean,
    store_tile,
    threshold_of,
)

ROW_MIN = tl.constexpr(0)
ROW_RANGE = tl.constexpr(1)
ROW_SIGMA = tl.constexpr(2)
ROW_TIES = tl.constexpr(3)
ROW_MASS = tl.constexpr(4)


@triton.jit
def locate(TILES_A: tl.constexpr, TILES_B: tl.constexpr):
    """(pair as int64, row tile, column tile) of this program."""
    pid = tl.program_id(0)
    return (pid // (TILES_A * TILES_B)).to(tl.int64), (pid // TILES_B) % TILES_A, pid % TILES_B


@triton.jit
def square_offsets(o_b, o_rows, o_cols, n_rows, n_cols):
    """Offsets and mask [ROWS, COLS] in a workspace [N, n_rows, n_cols]."""
    o_tile = (o_b * n_rows + o_rows)[:, None] * n_cols + o_cols[None, :]
    return o_tile, (o_rows < n_rows)[:, None] & (o_cols < n_cols)[None, :]


@triton.jit
def load_square(p_square, o_b, o_rows, o_cols, n_rows, n_cols):
    """[ROWS, COLS] of a workspace [N, n_rows, n_cols], 0 outside."""
    o_tile, m_tile = square_offsets(o_b, o_rows, o_cols, n_rows, n_cols)
    return tl.load(p_square + o_tile, mask=m_tile, other=0.0)


@triton.jit
def load_heights(p_heights, o_b, o_l, o_p, L, P):
    """H [ROWS, COLS], that of a masked patch outside."""
    o_tile, m_tile = square_offsets(o_b, o_l, o_p, L, P)
    return tl.load(p_heights + o_tile, mask=m_tile, other=-1.0)


@triton.jit
def load_row(p_rows, o_b, o_l, L, FIELD: tl.constexpr, FIELDS: tl.constexpr):
    """[ROWS] of one field of a workspace [N, FIELDS, L], 0 outside."""
    return tl.load(p_rows + (o_b * FIELDS + FIELD) * L + o_l, mask=o_l < L, other=0.0)


@triton.jit
def store_row(p_rows, b_row, o_b, o_l, L, FIELD: tl.constexpr, FIELDS: tl.constexpr):
    """[ROWS] into one field of a workspace [N, FIELDS, L]."""
    tl.store(p_rows + (o_b * FIELDS + FIELD) * L + o_l, b_row, mask=o_l < L)


@triton.jit
def load_alignment(p_heights, p_rows, o_b, o_l, o_p, L, P):
    """U [ROWS, COLS] from the workspaces."""
    b_height = load_heights(p_heights, o_b, o_l, o_p, L, P)
    b_range = load_row(p_rows, o_b, o_l, L, ROW_RANGE, 5)
    return alignment(b_height, b_range, load_row(p_rows, o_b, o_l, L, ROW_SIGMA, 5)[:, None])


@triton.jit
def unit_of(p_tops, o_b, TOPS: tl.constexpr, BLOCK_TOPS: tl.constexpr):
    """The unit of ``grads`` in float16: the largest of the magnitudes [N, TOPS] that its tiles reported; else 1."""
    if p_tops is None:
        return 1.0
    else:
        o_top = tl.arange(0, BLOCK_TOPS)
        return tl.max(tl.load(p_tops + o_b * TOPS + o_top, mask=o_top < TOPS, other=0.0), axis=0)


@triton.jit
def count_valid(p_mask, o_b, n_rows, stride_batch, stride_row, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """How many of a pair's rows are valid."""
    count = 0
    for tile in range(TILES):
        o_rows = tile * BLOCK + tl.arange(0, BLOCK)
        count += tl.sum(load_mask(p_mask, o_b, o_rows, n_rows, stride_batch, stride_row).to(tl.int32), axis=0)
    return count


@triton.jit
def tiled_mean_kernel(
    p_rows,  # [B, N, D]
    p_mask,  # [B, N] bool or None
    p_mean,  # [B, D] contiguous
    stride_rb, stride_rn, stride_rd, stride_mb, stride_mn,
    N,
    D: tl.constexpr,
    TILES_N: tl.constexpr,
    TILES_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_d, _ = locate(TILES_D, 1)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    count = 0
    b_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for tile in range(TILES_N):
        o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = load_mask(p_mask, o_b, o_n, N, stride_mb, stride_mn)
        count += tl.sum(m_n.to(tl.int32), axis=0)
        b_sum += load_tile(p_rows + o_b * stride_rb, o_n, o_d, m_n, D, stride_rn, stride_rd, UPCAST).to(tl.float32)
    store_mean(p_mean + o_b * D, b_sum, count, o_d, D, UPCAST)


@triton.jit
def tiled_similarities_kernel(
    p_left,  # [N, L, D] tokens, or gradients of groups
    p_patches,  # [N, P, D]
    p_left_mask,  # [N, L] bool or None
    p_patch_mask,  # [N, P] bool or None
    p_square,  # [N, L, P] float32: left @ patches^T
    stride_ab, stride_al, stride_ad, stride_vb, stride_vp, stride_vd, stride_lb, stride_ll, stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, tile_p = locate(TILES_L, TILES_P)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_l = load_mask(p_left_mask, o_b, o_l, L, stride_lb, stride_ll)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    p_a = p_left + o_b * stride_ab
    p_v = p_patches + o_b * stride_vb
    b_s = tl.zeros([BLOCK_L, BLOCK_P], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_a = load_tile(p_a, o_l, o_d, m_l, D, stride_al, stride_ad, UPCAST)  # [BLOCK_L, BLOCK_D]
        b_v = load_tile(p_v, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)  # [BLOCK_P, BLOCK_D]
        b_s = tl.dot(b_a, tl.trans(b_v), b_s, input_precision=PRECISION)
    o_out, m_out = square_offsets(o_b, o_l, o_p, L, P)
    tl.store(p_square + o_out, b_s, mask=m_out)


@triton.jit
def tiled_rows_kernel(
    p_heights,  # [N, L, P] float32: S, overwritten with H
    p_rows,  # [N, 5, L] float32
    p_stats,  # [3, B, L] float32 or None: minimum, maximum, sum of U
    p_patch_mask,  # [N, P] bool or None
    p_threshold,  # [] float32 or None
    stride_pb, stride_pp, stride_stat,
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
        b_s = load_square(p_heights, o_b, o_l, o_p, L, P)
        b_min = tl.minimum(b_min, tl.min(tl.where(m_p[None, :], b_s, float("inf")), axis=1))
        b_max = tl.maximum(b_max, tl.max(tl.where(m_p[None, :], b_s, -float("inf")), axis=1))
        n_patches += tl.sum(m_p.to(tl.int32), axis=0)
    b_min = tl.where(n_patches > 0, b_min, 0.0)
    b_max = tl.where(n_patches > 0, b_max, 0.0)
    sigma, _ = threshold_of(p_threshold, n_patches)
    b_ties = tl.zeros([BLOCK_L], tl.float32)
    b_mass = tl.zeros([BLOCK_L], tl.float32)
    b_range = b_min * 0.0
    tl.debug_barrier()  # all of S is read before any of it is overwritten
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_height, b_range = min_max_heights(load_square(p_heights, o_b, o_l, o_p, L, P), b_min, b_max, m_p)
        b_ties += tl.sum(tl.where(b_height == 0.0, 1.0, 0.0), axis=1)
        b_mass += tl.sum(alignment(b_height, b_range, sigma).to(OPERAND).to(tl.float32), axis=1)
        o_out, m_out = square_offsets(o_b, o_l, o_p, L, P)
        tl.store(p_heights + o_out, b_height, mask=m_out)
    store_row(p_rows, b_min, o_b, o_l, L, ROW_MIN, 5)
    store_row(p_rows, b_range, o_b, o_l, L, ROW_RANGE, 5)
    store_row(p_rows, b_min * 0.0 + sigma, o_b, o_l, L, ROW_SIGMA, 5)
    store_row(p_rows, b_ties, o_b, o_l, L, ROW_TIES, 5)
    store_row(p_rows, b_mass, o_b, o_l, L, ROW_MASS, 5)
    if p_stats is not None:
        o_stat = o_b * L + o_l
        tl.store(p_stats + o_stat, b_min, mask=o_l < L)
        tl.store(p_stats + (o_stat + stride_stat), b_max, mask=o_l < L)
        tl.store(p_stats + (o_stat + 2 * stride_stat), b_mass, mask=o_l < L)


@triton.jit
def tiled_groups_kernel(
    p_heights,  # [N, L, P] float32
    p_rows,  # [N, 5, L] float32
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
        b_u = load_alignment(p_heights, p_rows, o_b, o_l, o_p, L, P).to(OPERAND)  # [BLOCK_L, BLOCK_P]
        b_v = load_tile(p_patches + o_b * stride_vb, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)
        b_c = tl.dot(b_u, b_v, b_c, input_precision=PRECISION)
    if NORMALIZE:
        b_mass = load_row(p_rows, o_b, o_l, L, ROW_MASS, 5)  # 0 for an image without a valid patch
        b_c = b_c * tl.where(b_mass == 0.0, float("nan"), 1.0 / tl.where(b_mass == 0.0, 1.0, b_mass))[:, None]
    else:
        b_c = b_c * SHRINK
    store_tile(p_groups + o_b * L * D, b_c, o_l, o_d, o_l < L, D, D, UPCAST and NORMALIZE)


@triton.jit
def tiled_grad_rows_kernel(
    p_grads,  # [N, L, P] float32: dU, or dA with NORMALIZE, overwritten with dS
    p_heights,  # [N, L, P] float32
    p_rows,  # [N, 5, L] float32
    p_tops,  # [N, TILES_L] float32 or None: largest magnitude of each row tile
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, _ = locate(TILES_L, 1)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    b_range = load_row(p_rows, o_b, o_l, L, ROW_RANGE, 5)
    b_sigma = load_row(p_rows, o_b, o_l, L, ROW_SIGMA, 5)
    b_mean = tl.zeros([BLOCK_L], tl.float32)  # sum_p A dA
    b_factor = tl.where(b_range == 0.0, 0.0, 1.0 / tl.where(b_range == 0.0, 1.0, b_range))
    if NORMALIZE:
        b_inverse_mass = 1.0 / tl.maximum(load_row(p_rows, o_b, o_l, L, ROW_MASS, 5), 1.0)
        b_factor = b_factor * b_inverse_mass
        for tile in range(TILES_P):
            o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
            b_u = load_alignment(p_heights, p_rows, o_b, o_l, o_p, L, P)
            b_mean += tl.sum(b_u * load_square(p_grads, o_b, o_l, o_p, L, P), axis=1) * b_inverse_mass
    b_shared = tl.zeros([BLOCK_L], tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        b_height = load_heights(p_heights, o_b, o_l, o_p, L, P)
        b_grad = load_square(p_grads, o_b, o_l, o_p, L, P) - b_mean[:, None]
        b_shared += tl.sum(tl.where(b_height < b_sigma[:, None], 0.0, b_grad), axis=1)
    b_shared = b_shared / tl.maximum(load_row(p_rows, o_b, o_l, L, ROW_TIES, 5), 1.0)
    b_top = tl.zeros([BLOCK_L], tl.float32)
    tl.debug_barrier()  # all of dU is read before any of it is overwritten
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        b_height = load_heights(p_heights, o_b, o_l, o_p, L, P)
        b_grad = load_square(p_grads, o_b, o_l, o_p, L, P) - b_mean[:, None]
        b_grad = tl.where(b_height < b_sigma[:, None], 0.0, b_grad)
        b_grad = (b_grad - tl.where(b_height == 0.0, b_shared[:, None], 0.0)) * b_factor[:, None]
        b_top = tl.maximum(b_top, tl.max(tl.abs(b_grad), axis=1))
        o_out, m_out = square_offsets(o_b, o_l, o_p, L, P)
        tl.store(p_grads + o_out, b_grad, mask=m_out)
    if p_tops is not None:
        top = tl.max(b_top, axis=0)
        tl.store(p_tops + o_b * TILES_L + tile_l, tl.where(top > 0.0, top, 1.0))


@triton.jit
def tiled_grad_tokens_kernel(
    p_grads,  # [N, L, P] float32: X
    p_tops,  # [N, TOPS] float32 or None
    p_patches,  # [N, P, D]
    p_tokens,  # [N, L, D]
    p_token_mask,  # [N, L] bool or None
    p_patch_mask,  # [N, P] bool or None
    p_factors,  # [N, 3, L] float32 or None: beta, the factor of the row
    p_grad_mean,  # [N, D] contiguous, or None: gradient of the mean of the valid tokens
    p_grad_tokens,  # [N, L, D] contiguous
    stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_lb, stride_ll, stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    TILES_D: tl.constexpr,
    TOPS: tl.constexpr,
    BLOCK_TOPS: tl.constexpr,
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
    unit = unit_of(p_tops, o_b, TOPS, BLOCK_TOPS)
    b_gt = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for tile in range(TILES_P):
        o_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_x = (load_square(p_grads, o_b, o_l, o_p, L, P) * (1.0 / unit)).to(OPERAND)  # [BLOCK_L, BLOCK_P]
        b_v = load_tile(p_patches + o_b * stride_vb, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)
        b_gt = tl.dot(b_x, b_v, b_gt, input_precision=PRECISION)
    b_gt = b_gt * (SHRINK * unit)
    m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
    if p_factors is not None:
        b_t = load_tile(p_tokens + o_b * stride_tb, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)
        b_gt -= load_row(p_factors, o_b, o_l, L, 1, 3)[:, None] * b_t.to(tl.float32)
        b_gt = b_gt * load_row(p_factors, o_b, o_l, L, 2, 3)[:, None]
        if p_grad_mean is not None:
            n_tokens = count_valid(p_token_mask, o_b, L, stride_lb, stride_ll, TILES_L, BLOCK_L)
            b_gt += share_of_mean(p_grad_mean + o_b * D, n_tokens, o_d, D)
        b_gt = tl.where(m_l[:, None], b_gt, 0.0)
    store_tile(p_grad_tokens + o_b * L * D, b_gt, o_l, o_d, o_l < L, D, D, UPCAST)


@triton.jit
def tiled_grad_patches_kernel(
    p_grads,  # [N, L, P] float32: X
    p_tops,  # [N, TOPS] float32 or None
    p_heights,  # [N, L, P] float32
    p_rows,  # [N, 5, L] float32
    p_tokens,  # [N, L, D]
    p_groups,  # [N, L, D] or None: C' (with factors), or the gradient of C
    p_token_mask,  # [N, L] bool or None
    p_patch_mask,  # [N, P] bool or None
    p_factors,  # [N, 3, L] float32 or None: -alpha
    p_pair_factor,  # [N] float32 or None
    p_grad_mean,  # [N, D] contiguous, or None: gradient of the mean of the valid patches
    p_grad_patches,  # [N, P, D] contiguous
    stride_tb, stride_tl, stride_td, stride_cb, stride_cl, stride_cd, stride_lb, stride_ll, stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    TILES_D: tl.constexpr,
    TOPS: tl.constexpr,
    BLOCK_TOPS: tl.constexpr,
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
    unit = unit_of(p_tops, o_b, TOPS, BLOCK_TOPS)
    n_tokens = 0
    b_gv = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for tile in range(TILES_L):
        o_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
        n_tokens += tl.sum(m_l.to(tl.int32), axis=0)
        b_x = (load_square(p_grads, o_b, o_l, o_p, L, P) * (1.0 / unit)).to(OPERAND)  # [BLOCK_L, BLOCK_P]
        b_t = load_tile(p_tokens + o_b * stride_tb, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)
        b_gv = tl.dot(tl.trans(b_x), b_t, b_gv, input_precision=PRECISION)
    b_gv = b_gv * unit
    if p_groups is not None:
        for tile in range(TILES_L):
            o_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
            m_l = o_l < L
            b_u = load_alignment(p_heights, p_rows, o_b, o_l, o_p, L, P)  # [BLOCK_L, BLOCK_P]
            b_c = load_tile(p_groups + o_b * stride_cb, o_l, o_d, m_l, D, stride_cl, stride_cd, UPCAST)
            if p_factors is not None:
                b_c = b_c * load_row(p_factors, o_b, o_l, L, 0, 3)[:, None]
            else:
                b_u = b_u / tl.maximum(load_row(p_rows, o_b, o_l, L, ROW_MASS, 5), 1.0)[:, None]
            b_gv = tl.dot(tl.trans(b_u.to(OPERAND)), b_c.to(OPERAND), b_gv, input_precision=PRECISION)
    if p_pair_factor is not None:
        b_gv = b_gv * tl.load(p_pair_factor + o_b)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    b_gv = tl.where(n_tokens > 0, b_gv, 0.0)
    if p_grad_mean is not None:
        n_patches = count_valid(p_patch_mask, o_b, P, stride_pb, stride_pp, TILES_P, BLOCK_P)
        b_gv += share_of_mean(p_grad_mean + o_b * D, n_patches, o_d, D)
    b_gv = tl.where(m_p[:, None], b_gv, 0.0)
    store_tile(p_grad_patches + o_b * P * D, b_gv, o_p, o_d, o_p < P, D, D, UPCAST)

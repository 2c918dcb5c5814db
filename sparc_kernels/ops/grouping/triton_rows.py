# mypy: disable-error-code="no-untyped-def"
"""The row path of ``grouping``: a program holds the similarities of some tokens of one pair with all its patches.

Products of size L x P x D: forward 1 (weights) or 2 (embeddings), backward 3 (weights) or 5 (embeddings: S, dC V^T,
A^T dC, dS^T T, dS V).
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
from sparc_kernels.ops._triton.tiles import largest_magnitude, load_mask, load_tile, rows_product, store_tile
from sparc_kernels.ops._triton.workspaces import locate_stat
from sparc_kernels.ops.grouping.schema import STATS

ROW_MIN = tl.constexpr(STATS.index("row_min"))
ROW_MAX = tl.constexpr(STATS.index("row_max"))
WEIGHT_SUM = tl.constexpr(STATS.index("weight_sum"))

# Batches differ in their longest caption: no reason to compile again while the tiles stay the same. P does not vary so,
# and where it is a multiple of 16, rows of weights are stored 16 bytes at a time.
RAGGED = ["L", "stride_pb", "stride_stat"]


@triton.jit(do_not_specialize=RAGGED)
def rows_forward_kernel(
    p_patches,  # [B, P, D]
    p_tokens,  # [B, L, D]
    p_patch_mask,  # [B, P] bool or None
    p_threshold,  # [] float32 or None
    p_out,  # [B, L, D] groups, or [B, L, P] weights; contiguous
    p_stats,  # [STATS, B, L] float32, contiguous
    stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_pb, stride_pp,
    stride_stat,  # B * L
    L, P,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_patches.dtype.element_ty
    o_b = (tl.program_id(0) // TILES_L).to(tl.int64)
    o_l = (tl.program_id(0) % TILES_L) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_l = o_l < L
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    sigma, poison = threshold_of(p_threshold, tl.sum(m_p.to(tl.int32), axis=0))
    p_v = p_patches + o_b * stride_vb
    b_s = rows_product(
        p_tokens + o_b * stride_tb, p_v, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd,
        D, BLOCK_D, PRECISION, UPCAST
    )  # fmt: skip
    b_min, b_max = row_extrema(b_s, m_p)
    b_height, b_range = min_max_heights(b_s, b_min, b_max, m_p)
    b_u = sparse_weights(b_height, b_range, sigma)
    if not WEIGHTS:
        b_u = b_u.to(OPERAND).to(tl.float32)  # the sum is that of what the product takes
    b_weight_sum = tl.sum(b_u, axis=1)
    b_inverse = 1.0 / tl.where(b_weight_sum == 0.0, 1.0, b_weight_sum) + poison
    if WEIGHTS:
        store_tile(p_out + o_b * L * P, b_u * b_inverse[:, None], o_l, o_p, m_l, P, P, UPCAST)
    else:
        b_a = b_u.to(OPERAND)  # [BLOCK_L, BLOCK_P]
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_v = load_tile(p_v, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)  # [BLOCK_P, BLOCK_D]
            b_c = tl.dot(b_a, b_v, input_precision=PRECISION) * b_inverse[:, None]  # [BLOCK_L, BLOCK_D]
            store_tile(p_out + o_b * L * D, b_c, o_l, o_d, m_l, D, D, UPCAST)
    tl.store(locate_stat(p_stats, o_b, o_l, stride_stat, L, ROW_MIN), b_min, mask=m_l)
    tl.store(locate_stat(p_stats, o_b, o_l, stride_stat, L, ROW_MAX), b_max, mask=m_l)
    tl.store(locate_stat(p_stats, o_b, o_l, stride_stat, L, WEIGHT_SUM), b_weight_sum, mask=m_l)


@triton.jit(do_not_specialize=RAGGED)
def rows_backward_kernel(
    p_grad,  # [B, L, D] of the groups, or [B, L, P] of the weights
    p_patches,  # [B, P, D]
    p_tokens,  # [B, L, D]
    p_patch_mask,  # [B, P] bool or None
    p_threshold,  # [] float32 or None
    p_grad_patches,  # [B, P, D], contiguous, or None: not wanted
    p_grad_tokens,  # [B, L, D], contiguous, or None: not wanted
    stride_gb, stride_gl, stride_gd, stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td,
    stride_pb, stride_pp,
    L, P,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_patches.dtype.element_ty
    IS_HALF: tl.constexpr = OPERAND == tl.float16  # noqa: SIM300
    o_b = tl.program_id(0).to(tl.int64)
    o_l = tl.arange(0, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_l = o_l < L
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    sigma, poison = threshold_of(p_threshold, tl.sum(m_p.to(tl.int32), axis=0))
    p_v = p_patches + o_b * stride_vb
    p_t = p_tokens + o_b * stride_tb
    p_g = p_grad + o_b * stride_gb
    b_s = rows_product(
        p_t, p_v, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd, D, BLOCK_D, PRECISION, UPCAST
    )  # fmt: skip
    b_min, b_max = row_extrema(b_s, m_p)
    b_height, b_range = min_max_heights(b_s, b_min, b_max, m_p)
    if WEIGHTS:
        b_da = load_tile(p_g, o_l, o_p, m_l, P, stride_gl, stride_gd, UPCAST).to(tl.float32)
    else:
        b_da = rows_product(
            p_g, p_v, o_l, o_p, m_l, m_p, stride_gl, stride_gd, stride_vp, stride_vd, D, BLOCK_D, PRECISION, UPCAST
        )  # fmt: skip
    b_u = sparse_weights(b_height, b_range, sigma)
    b_weight_sum = tl.sum(b_u, axis=1)
    b_inverse = 1.0 / tl.where(b_weight_sum == 0.0, 1.0, b_weight_sum)
    b_a = b_u * b_inverse[:, None]  # A [BLOCK_L, BLOCK_P]
    b_da = tl.where(m_p[None, :], b_da, 0.0)  # what is asked of a masked patch is asked in vain
    b_du = (b_da - tl.sum(b_da * b_a, axis=1)[:, None]) * b_inverse[:, None]
    b_ds = grad_similarities(b_du, b_height, b_range, sigma)
    amax = largest_magnitude(b_ds) if IS_HALF else 1.0
    b_e = (b_ds * (1.0 / amax)).to(OPERAND)
    b_a = b_a.to(OPERAND)
    if p_grad_tokens is not None:
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_v = load_tile(p_v, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)  # [BLOCK_P, BLOCK_D]
            b_gt = tl.dot(b_e, b_v, input_precision=PRECISION) * amax + poison  # [BLOCK_L, BLOCK_D]
            store_tile(p_grad_tokens + o_b * L * D, b_gt, o_l, o_d, m_l, D, D, UPCAST)
    if p_grad_patches is not None:
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_t = load_tile(p_t, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)  # [BLOCK_L, BLOCK_D]
            b_gv = tl.dot(tl.trans(b_e), b_t, input_precision=PRECISION) * amax  # [BLOCK_P, BLOCK_D]
            if not WEIGHTS:
                b_g = load_tile(p_g, o_l, o_d, m_l, D, stride_gl, stride_gd, UPCAST)  # [BLOCK_L, BLOCK_D]
                b_gv = tl.dot(tl.trans(b_a), b_g, b_gv, input_precision=PRECISION)
            b_gv = tl.where(m_p[:, None], b_gv, 0.0)
            store_tile(p_grad_patches + o_b * P * D, b_gv, o_p, o_d, o_p < P, D, D, UPCAST)

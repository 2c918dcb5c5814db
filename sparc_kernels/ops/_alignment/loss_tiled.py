# mypy: disable-error-code="no-untyped-def"
"""Kernels of the tiled path that only the loss needs: logits, softmaxes and their gradients, for any number of tokens.

Workspaces of N pairs, float32: ``groups`` [N, L, D] (C'), ``z`` and ``dz`` [N, L, L]; the others are those of
``ops/_alignment/tiled.py``.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._alignment.loss_logits import (
    COLUMN_LSE,
    GROUP_NORM,
    ROW_LSE,
    ROW_MAX,
    ROW_MIN,
    SCALE_DERIVATIVE,
    TOKEN_NORM,
    grad_logits,
)
from sparc_kernels.ops._alignment.tiled import (
    GRAD_FACTOR,
    GROUP_FACTOR,
    MIN,
    RANGE,
    TOKEN_FACTOR,
    WEIGHT_SUM,
    load_factor,
    load_heights,
    load_scalar,
    load_weights,
    store_factor,
)
from sparc_kernels.ops._triton.tiles import (
    MIN_NORM,
    clamped_inverse_norm,
    largest_magnitude,
    load_mask,
    load_tile,
    split_dot,
    split_dot_right,
)
from sparc_kernels.ops._triton.workspaces import load_stat, load_workspace, locate, store_stat, workspace_offsets


@triton.jit
def tiled_logits_kernel(
    p_groups,  # [N, L, D] float32
    p_tokens,  # [N, L, D]
    p_token_mask,  # [N, L] bool or None
    p_z,  # [N, L, L] float32: Z = C' T^T
    p_stats,  # [STATS, B, L] float32 or None: takes |C'| and |t|
    stride_tb, stride_tl, stride_td, stride_lb, stride_ll, stride_stat,
    L,
    D: tl.constexpr,
    TILES_L: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, tile_j = locate(TILES_L, TILES_L)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_j = tile_j * BLOCK_L + tl.arange(0, BLOCK_L)
    m_j = load_mask(p_token_mask, o_b, o_j, L, stride_lb, stride_ll)
    b_z = tl.zeros([BLOCK_L, BLOCK_L], tl.float32)
    b_group_square = tl.zeros([BLOCK_L], tl.float32)
    b_token_square = tl.zeros([BLOCK_L], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_c = load_tile(p_groups + o_b * L * D, o_l, o_d, o_l < L, D, D, 1, False)  # [BLOCK_L, BLOCK_D]
        b_t = load_tile(p_tokens + o_b * stride_tb, o_j, o_d, m_j, D, stride_tl, stride_td, UPCAST)
        b_z = split_dot(b_c, tl.trans(b_t), b_z, PRECISION)
        b_group_square += tl.sum(b_c * b_c, axis=1)
        b_token_square += tl.sum(b_t.to(tl.float32) * b_t.to(tl.float32), axis=1)
    o_out, m_out = workspace_offsets(o_b, o_l, o_j, L, L)
    tl.store(p_z + o_out, b_z, mask=m_out)
    if p_stats is not None:
        m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
        b_group_norm = tl.maximum(tl.sqrt(b_group_square), MIN_NORM)
        b_token_norm = tl.maximum(tl.sqrt(b_token_square), MIN_NORM)
        if tile_j == 0:
            store_stat(p_stats, b_group_norm, o_b, o_l, m_l, stride_stat, L, GROUP_NORM)
        if tile_l == 0:
            store_stat(p_stats, b_token_norm, o_b, o_j, m_j, stride_stat, L, TOKEN_NORM)


@triton.jit
def logits_tile(p_z, p_stats, o_b, o_l, o_j, m_l, m_j, stride_stat, L, scale):
    """Y [ROWS, COLS], -inf where one of the tokens is padding, and the cosines, 0 there."""
    b_r, _ = clamped_inverse_norm(load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, GROUP_NORM, 1.0))
    b_q, _ = clamped_inverse_norm(load_stat(p_stats, o_b, o_j, m_j, stride_stat, L, TOKEN_NORM, 1.0))
    b_cosine = load_workspace(p_z, o_b, o_l, o_j, L, L) * (b_r[:, None] * b_q[None, :])
    m_pairs = m_l[:, None] & m_j[None, :]
    return tl.where(m_pairs, scale * b_cosine, -float("inf")), tl.where(m_pairs, b_cosine, 0.0)


@triton.jit
def add_softmax(b_top, b_sum, b_along, b_logits, b_values, AXIS: tl.constexpr):
    """Running maximum, sum of exponentials and of exponentials times values along one axis, with one more tile."""
    b_new = tl.maximum(b_top, tl.max(b_logits, axis=AXIS))
    b_safe = tl.where(b_new == -float("inf"), 0.0, b_new)
    b_shrink = tl.exp(b_top - b_safe)
    b_weight = tl.exp(b_logits - tl.expand_dims(b_safe, AXIS))
    b_sum = b_sum * b_shrink + tl.sum(b_weight, axis=AXIS)
    return b_new, b_sum, b_along * b_shrink + tl.sum(b_weight * b_values, axis=AXIS)


@triton.jit
def tiled_loss_kernel(
    p_z,  # [N, L, L] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_token_mask,  # [N, L] bool or None
    p_scale,  # []
    p_loss,  # [N, L] float32 contiguous
    p_stats,  # [STATS, B, L] float32: |C'| and |t| are there; takes the rest
    stride_lb, stride_ll, stride_stat,
    L,
    TILES_L: tl.constexpr,
    BLOCK_L: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, _ = locate(TILES_L, 1)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
    scale = tl.load(p_scale)
    b_row_top = tl.full([BLOCK_L], -float("inf"), tl.float32)
    b_column_top = tl.full([BLOCK_L], -float("inf"), tl.float32)
    b_row_sum = tl.zeros([BLOCK_L], tl.float32)
    b_column_sum = tl.zeros([BLOCK_L], tl.float32)
    b_row_along = tl.zeros([BLOCK_L], tl.float32)
    b_column_along = tl.zeros([BLOCK_L], tl.float32)
    b_target = tl.zeros([BLOCK_L], tl.float32)
    b_target_cosine = tl.zeros([BLOCK_L], tl.float32)
    n_tokens = 0
    for tile in range(TILES_L):
        o_j = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        m_j = load_mask(p_token_mask, o_b, o_j, L, stride_lb, stride_ll)
        n_tokens += tl.sum(m_j.to(tl.int32), axis=0)
        b_y, b_cosine = logits_tile(p_z, p_stats, o_b, o_l, o_j, m_l, m_j, stride_stat, L, scale)
        b_row_top, b_row_sum, b_row_along = add_softmax(b_row_top, b_row_sum, b_row_along, b_y, b_cosine, 1)
        m_diagonal = o_l[:, None] == o_j[None, :]
        b_target += tl.sum(tl.where(m_diagonal, b_y, 0.0), axis=1)
        b_target_cosine += tl.sum(tl.where(m_diagonal, b_cosine, 0.0), axis=1)
        b_y, b_cosine = logits_tile(p_z, p_stats, o_b, o_j, o_l, m_j, m_l, stride_stat, L, scale)
        b_column_top, b_column_sum, b_column_along = add_softmax(
            b_column_top, b_column_sum, b_column_along, b_y, b_cosine, 0
        )
    b_row_sum = tl.where(m_l, b_row_sum, 1.0)
    b_column_sum = tl.where(m_l, b_column_sum, 1.0)
    b_row = tl.where(m_l, b_row_top + tl.log(b_row_sum), 0.0)
    b_column = tl.where(m_l, b_column_top + tl.log(b_column_sum), 0.0)
    b_lost = tl.where(load_scalar(p_scalars, o_b, o_l, L, WEIGHT_SUM) == 0.0, float("nan"), 0.0)
    b_loss = 0.5 * (b_row - b_target) + 0.5 * (b_column - b_target) + b_lost
    b_by_scale = 0.5 * (b_row_along / b_row_sum - b_target_cosine)
    b_by_scale += 0.5 * (b_column_along / b_column_sum - b_target_cosine)
    b_by_scale = tl.where(n_tokens > 1, b_by_scale, 0.0) + b_lost
    b_min = load_scalar(p_scalars, o_b, o_l, L, MIN)
    b_max = b_min + load_scalar(p_scalars, o_b, o_l, L, RANGE)
    tl.store(p_loss + (o_b * L + o_l), tl.where(m_l, b_loss, 0.0), mask=o_l < L)
    store_stat(p_stats, b_min, o_b, o_l, m_l, stride_stat, L, ROW_MIN)
    store_stat(p_stats, b_max, o_b, o_l, m_l, stride_stat, L, ROW_MAX)
    store_stat(p_stats, b_row, o_b, o_l, m_l, stride_stat, L, ROW_LSE)
    store_stat(p_stats, b_column, o_b, o_l, m_l, stride_stat, L, COLUMN_LSE)
    store_stat(p_stats, b_by_scale, o_b, o_l, m_l, stride_stat, L, SCALE_DERIVATIVE)


@triton.jit
def grad_logits_tile(
    p_z, p_stats, p_grad_loss, o_b, o_l, o_j, m_l, m_j, stride_gb, stride_gl, stride_stat, L, scale,
    IS_HALF: tl.constexpr,
):  # fmt: skip
    """Z and dZ of one tile (``grad_logits``)."""
    b_z = load_workspace(p_z, o_b, o_l, o_j, L, L)
    b_w_row = tl.load(p_grad_loss + o_b * stride_gb + o_l.to(tl.int64) * stride_gl, mask=m_l, other=0.0)
    b_w_column = tl.load(p_grad_loss + o_b * stride_gb + o_j.to(tl.int64) * stride_gl, mask=m_j, other=0.0)
    b_dz = grad_logits(
        b_z,
        b_w_row,
        b_w_column,
        load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, GROUP_NORM, 1.0),
        load_stat(p_stats, o_b, o_j, m_j, stride_stat, L, TOKEN_NORM, 1.0),
        load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, ROW_LSE, 1.0),
        load_stat(p_stats, o_b, o_j, m_j, stride_stat, L, COLUMN_LSE, 1.0),
        scale,
        o_l[:, None] == o_j[None, :],
        m_l[:, None] & m_j[None, :],
        IS_HALF,
    )
    return b_z, b_dz


@triton.jit
def tiled_grad_logits_kernel(
    p_z,  # [N, L, L] float32
    p_dz,  # [N, L, L] float32: dZ / amax, rounded to OPERAND
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_stats,  # [STATS, B, L] float32
    p_grad_loss,  # [N, L] float32
    p_token_mask,  # [N, L] bool or None
    p_scale,  # []
    p_factors,  # [N, ROW_FACTORS, L] float32
    p_pair_factor,  # [N] float32: what dV lacks
    stride_gb, stride_gl, stride_lb, stride_ll, stride_stat,
    L,
    TILES_L: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SHRINK: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """One program per pair: its L x L numbers are few beside its other products."""
    IS_HALF: tl.constexpr = tl.float16 == OPERAND
    o_b = tl.program_id(0).to(tl.int64)
    scale = tl.load(p_scale)
    amax = 1.0
    if IS_HALF:
        amax = 0.0
        for tile_l in range(TILES_L):
            o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
            m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
            for tile_j in range(TILES_L):
                o_j = tile_j * BLOCK_L + tl.arange(0, BLOCK_L)
                m_j = load_mask(p_token_mask, o_b, o_j, L, stride_lb, stride_ll)
                _, b_dz = grad_logits_tile(
                    p_z, p_stats, p_grad_loss, o_b, o_l, o_j, m_l, m_j, stride_gb, stride_gl, stride_stat, L, scale,
                    IS_HALF
                )  # fmt: skip
                amax = tl.maximum(amax, tl.max(tl.abs(b_dz)))
        amax = tl.where(amax > 0.0, amax, 1.0)
    for tile_l in range(TILES_L):
        o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
        m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
        b_alpha = tl.zeros([BLOCK_L], tl.float32)
        b_beta = tl.zeros([BLOCK_L], tl.float32)
        for tile_j in range(TILES_L):
            o_j = tile_j * BLOCK_L + tl.arange(0, BLOCK_L)
            m_j = load_mask(p_token_mask, o_b, o_j, L, stride_lb, stride_ll)
            b_z, b_dz = grad_logits_tile(
                p_z, p_stats, p_grad_loss, o_b, o_l, o_j, m_l, m_j, stride_gb, stride_gl, stride_stat, L, scale, IS_HALF
            )  # fmt: skip
            b_a = (b_dz * (1.0 / amax)).to(OPERAND).to(tl.float32)
            b_alpha += tl.sum(b_a * b_z, axis=1)
            o_out, m_out = workspace_offsets(o_b, o_l, o_j, L, L)
            tl.store(p_dz + o_out, b_a, mask=m_out)
            b_z, b_dz = grad_logits_tile(
                p_z, p_stats, p_grad_loss, o_b, o_j, o_l, m_j, m_l, stride_gb, stride_gl, stride_stat, L, scale, IS_HALF
            )  # fmt: skip
            b_beta += tl.sum((b_dz * (1.0 / amax)).to(OPERAND).to(tl.float32) * b_z, axis=0)
        _, b_r2 = clamped_inverse_norm(load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, GROUP_NORM, 1.0))
        b_token_norm = load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, TOKEN_NORM, 1.0)
        b_q, b_q2 = clamped_inverse_norm(b_token_norm)
        b_restore = tl.where(IS_HALF & (b_token_norm <= MIN_NORM), b_q, 1.0)
        b_lost = tl.where(load_scalar(p_scalars, o_b, o_l, L, WEIGHT_SUM) == 0.0, float("nan"), 0.0)
        store_factor(p_factors, -b_alpha * b_r2, o_b, o_l, L, GROUP_FACTOR)
        store_factor(p_factors, b_beta * b_q2, o_b, o_l, L, TOKEN_FACTOR)
        store_factor(p_factors, b_restore * amax + b_lost, o_b, o_l, L, GRAD_FACTOR)
    tl.store(p_pair_factor + o_b, amax * SHRINK)


@triton.jit
def tiled_grad_weights_kernel(
    p_groups,  # [N, L, D] float32
    p_dz,  # [N, L, L] float32
    p_heights,  # [N, L, P] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_factors,  # [N, ROW_FACTORS, L] float32
    p_patches,  # [N, P, D]
    p_patch_mask,  # [N, P] bool or None
    p_attention,  # [] float32, or None: weights are min-max similarities, no softmax
    p_grads,  # [N, L, P] float32: dU
    stride_vb, stride_vp, stride_vd, stride_pb, stride_pp,
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
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_patches.dtype.element_ty
    IS_HALF: tl.constexpr = tl.float16 == OPERAND
    o_b, tile_l, tile_p = locate(TILES_L, TILES_P)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    b_du = tl.zeros([BLOCK_L, BLOCK_P], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_c = load_tile(p_groups + o_b * L * D, o_l, o_d, o_l < L, D, D, 1, False).to(OPERAND)
        b_v = load_tile(p_patches + o_b * stride_vb, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)
        b_du = tl.dot(b_c, tl.trans(b_v), b_du, input_precision=PRECISION)
    b_du = b_du * load_factor(p_factors, o_b, o_l, L, GROUP_FACTOR)[:, None]
    for tile in range(TILES_L):
        o_j = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        b_a = load_workspace(p_dz, o_b, o_l, o_j, L, L).to(OPERAND)  # [BLOCK_L, BLOCK_L]
        b_height = load_heights(p_heights, o_b, o_j, o_p, L, P)
        b_s = load_scalar(p_scalars, o_b, o_j, L, MIN)[:, None]
        if p_attention is not None:  # of E, with 0 where it is 0: the gradient there is 0 whatever S
            b_s += tl.log(tl.where(b_height > 0.0, b_height, 1.0)) / tl.load(p_attention)
            b_s = tl.where(b_height > 0.0, b_s, 0.0)  # [BLOCK_L, BLOCK_P]
        else:
            b_s = b_s + load_scalar(p_scalars, o_b, o_j, L, RANGE)[:, None] * b_height  # [BLOCK_L, BLOCK_P]
        reach = largest_magnitude(b_s) if IS_HALF else 1.0  # S may leave the range of float16
        b_du = split_dot_right(b_a, b_s * (1.0 / reach), b_du * (1.0 / reach), PRECISION) * reach
    o_out, m_out = workspace_offsets(o_b, o_l, o_p, L, P)
    tl.store(p_grads + o_out, b_du, mask=m_out)


@triton.jit
def tiled_grad_products_kernel(
    p_dz,  # [N, L, L] float32
    p_heights,  # [N, L, P] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_grads,  # [N, L, P] float32: dS, overwritten with X = dZ^T U + dS
    p_amax,  # [N, TILES_L * TILES_P] float32 or None
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    o_b, tile_j, tile_p = locate(TILES_L, TILES_P)
    o_j = tile_j * BLOCK_L + tl.arange(0, BLOCK_L)
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_out, m_out = workspace_offsets(o_b, o_j, o_p, L, P)
    b_x = tl.load(p_grads + o_out, mask=m_out, other=0.0)
    for tile in range(TILES_L):
        o_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        b_a = load_workspace(p_dz, o_b, o_l, o_j, L, L).to(OPERAND)
        b_u = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P).to(OPERAND)
        b_x = tl.dot(tl.trans(b_a), b_u, b_x, input_precision=PRECISION)
    tl.store(p_grads + o_out, b_x, mask=m_out)
    if p_amax is not None:
        tl.store(p_amax + tl.program_id(0), largest_magnitude(b_x))

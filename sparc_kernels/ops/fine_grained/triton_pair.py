# mypy: disable-error-code="no-untyped-def"
"""The pair path: one program computes the fine-grained loss, or its gradients, of one image-text pair.

S [L, P], as heights H, stays in registers; V and T are streamed in chunks of channels, once from DRAM and then from L2.
Products of size L x P x D: forward 2 (S, C'), backward 7 (S, C' twice, C' V^T, V^T X, X^T T, U^T C' with
X = dZ^T U + dS), or 6 where C' can be kept. Beside them two or four of size L x L x P.

Z is U S^T with S = m + (M - m) H, H in two halves of the operands' dtype: it then carries the rounding of U alone, as
C' does, and once for all channels. At scale 100 in bfloat16 the logits are off by at most 0.037 so, as with C' T^T and
C' in two halves (emulated), and by 0.10 to 0.37 in plain bfloat16.

C' is made transposed, [D, L] = V^T U^T, because its operands can then stay in shared memory where wgmma reads them. The
loop of S sums nothing beside its product: Triton 3.6 then has copies overwrite tiles under a wgmma in flight
(``tests/pipeline_races.py``). |t|^2 is summed in the second loop, whose product is waited for.
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
from sparc_kernels.ops._alignment.min_max import (
    grad_similarities,
    min_max_heights,
    row_extrema,
    sparse_weights,
    threshold_of,
)
from sparc_kernels.ops._triton.tiles import (
    MIN_NORM,
    clamped_inverse_norm,
    largest_magnitude,
    load_mask,
    load_tile,
    masked_logsumexp,
    share_of_mean,
    store_mean,
    store_tile,
)
from sparc_kernels.ops._triton.workspaces import load_stat, store_stat

# Batches differ in their longest caption: no reason to compile again while the tiles stay the same.
RAGGED = ["L", "P", "stride_lb", "stride_pb", "stride_gb", "stride_stat"]


@triton.jit
def pair_logits(b_height, b_u, PRECISION: tl.constexpr):
    """[L, L] from H [L, P] and U^T [P, L]; H, which is at most 1, in two halves where U has half precision."""
    b_z = tl.zeros([b_height.shape[0], b_u.shape[1]], tl.float32)
    b_half = b_height.to(b_u.dtype)
    b_low = (b_height - b_half.to(tl.float32)).to(b_u.dtype)
    # a loop, not two lines: the compiler leaves a left operand in shared memory, where wgmma can read it, only if it
    # comes from a load or is carried by a loop
    for _ in range(1 if b_u.dtype == tl.float32 else 2):
        b_z = tl.dot(b_half, b_u, b_z, input_precision=PRECISION)
        b_half = b_low
    return b_z


@triton.jit
def load_patches(
    p_v, d_v, first, o_p, o_chunk, m_p, stride_vp, stride_vd,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """[BLOCK_P, BLOCK_D]: patches from row ``first`` on by their tensor descriptor; without one, those of a mask."""
    if d_v is not None:
        b_v = d_v.load([first, o_chunk])
        return b_v.to(tl.float32) if UPCAST else b_v
    return load_tile(p_v, o_p, o_chunk + tl.arange(0, BLOCK_D), m_p, D, stride_vp, stride_vd, UPCAST)


@triton.jit
def similarities(
    p_t, p_v, d_v, first, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """[BLOCK_L, BLOCK_P] float32: tokens times patches."""
    b_s = tl.zeros([o_l.shape[0], o_p.shape[0]], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        b_t = load_tile(p_t, o_l, o_chunk + tl.arange(0, BLOCK_D), m_l, D, stride_tl, stride_td, UPCAST)
        b_v = load_patches(p_v, d_v, first, o_p, o_chunk, m_p, stride_vp, stride_vd, D, BLOCK_D, UPCAST)
        b_s = tl.dot(b_t, tl.trans(b_v), b_s, input_precision=PRECISION)
    return b_s


@triton.jit(do_not_specialize=RAGGED)
def pair_forward_kernel(
    p_patches,  # [B, P, D]
    p_tokens,  # [B, L, D]
    p_token_mask,  # [B, L] bool or None
    p_patch_mask,  # [B, P] bool or None
    p_scale,  # []
    p_threshold,  # [] float32 or None
    p_loss,  # [B, L] float32, contiguous
    p_stats,  # [STATS, B, L] float32, contiguous
    p_mean_patches,  # [B, D], contiguous, or None: not wanted
    p_mean_tokens,  # [B, D], contiguous, or None: not wanted
    stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_lb, stride_ll, stride_pb, stride_pp,
    stride_stat,  # B * L
    L, P,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    IS_HALF: tl.constexpr = p_patches.dtype.element_ty == tl.float16
    SHRINK: tl.constexpr = 1.0 / BLOCK_P if IS_HALF else 1.0
    o_b = tl.program_id(0).to(tl.int64)
    o_l = tl.arange(0, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
    n_tokens = tl.sum(m_l.to(tl.int32), axis=0)
    # an empty caption reads nothing, unless its image is pooled
    m_p = load_mask(
        p_patch_mask, o_b, o_p, P if p_mean_patches is not None else tl.minimum(n_tokens, 1) * P, stride_pb, stride_pp
    )
    n_patches = tl.sum(m_p.to(tl.int32), axis=0)
    sigma, poison = threshold_of(p_threshold, n_patches)
    p_v = p_patches + o_b * stride_vb
    p_t = p_tokens + o_b * stride_tb

    b_s = similarities(
        p_t, p_v, None, 0, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd,
        D, BLOCK_D, PRECISION, UPCAST,
    )  # fmt: skip
    b_min, b_max = row_extrema(b_s, m_p)
    b_height, b_range = min_max_heights(b_s, b_min, b_max, m_p)
    store_stat(p_stats, b_min, o_b, o_l, m_l, stride_stat, L, ROW_MIN)
    store_stat(p_stats, b_max, o_b, o_l, m_l, stride_stat, L, ROW_MAX)
    b_u = sparse_weights(b_height, b_range, sigma)
    b_u = b_u.to(tl.float32 if UPCAST else p_patches.dtype.element_ty)  # [BLOCK_L, BLOCK_P]
    b_z = pair_logits(b_height, tl.trans(b_u), PRECISION)  # Z^T but for the factors of its rows
    b_z = (b_z * b_range[:, None] + b_min[:, None] * tl.sum(b_u.to(tl.float32), axis=1)[None, :]) * SHRINK

    b_group_squares = tl.zeros([BLOCK_D, BLOCK_L], tl.float32)
    b_token_squares = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_v = load_tile(p_v, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)  # [BLOCK_P, BLOCK_D]
        b_c = tl.dot(tl.trans(b_v), tl.trans(b_u), input_precision=PRECISION) * SHRINK  # C'^T [BLOCK_D, BLOCK_L]
        b_group_squares += b_c * b_c
        b_t = load_tile(p_t, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)  # [BLOCK_L, BLOCK_D]
        b_token_squares += b_t.to(tl.float32) * b_t.to(tl.float32)
        if p_mean_patches is not None:
            store_mean(p_mean_patches + o_b * D, b_v, n_patches, o_d, D, UPCAST)
        if p_mean_tokens is not None:
            store_mean(p_mean_tokens + o_b * D, b_t, n_tokens, o_d, D, UPCAST)

    b_group_square = tl.sum(b_group_squares, axis=0)
    b_square = tl.sum(b_token_squares, axis=1)
    b_group_norm = tl.maximum(tl.sqrt(b_group_square), MIN_NORM)
    b_token_norm = tl.maximum(tl.sqrt(b_square), MIN_NORM)
    b_r, _ = clamped_inverse_norm(b_group_norm)
    b_q, _ = clamped_inverse_norm(b_token_norm)
    b_cosine = b_z * (b_q[:, None] * b_r[None, :])  # of token j, along axis 0, with group l, along axis 1
    b_y = tl.load(p_scale) * b_cosine
    m_y = m_l[:, None] & m_l[None, :]
    b_row = masked_logsumexp(b_y, m_y, 0)
    b_column = masked_logsumexp(b_y, m_y, 1)
    m_diagonal = o_l[:, None] == o_l[None, :]
    # the diagonal of Y itself: a product of scale and cosine would be contracted with what follows, and its rounding
    # stand in losses that are 0
    b_target = tl.sum(tl.where(m_diagonal, b_y, 0.0), axis=1)
    b_loss = 0.5 * (b_row - b_target) + 0.5 * (b_column - b_target) + poison
    b_target = tl.sum(tl.where(m_diagonal, b_cosine, 0.0), axis=1)
    b_along_row = tl.sum(tl.where(m_y, tl.exp(b_y - b_row[None, :]) * b_cosine, 0.0), axis=0)
    b_along_column = tl.sum(tl.where(m_y, tl.exp(b_y - b_column[:, None]) * b_cosine, 0.0), axis=1)
    b_by_scale = 0.5 * (b_along_row - b_target) + 0.5 * (b_along_column - b_target)
    b_by_scale = tl.where(n_tokens > 1, b_by_scale, 0.0) + poison

    tl.store(p_loss + (o_b * L + o_l), tl.where(m_l, b_loss, 0.0), mask=o_l < L)
    store_stat(p_stats, b_group_norm, o_b, o_l, m_l, stride_stat, L, GROUP_NORM)
    store_stat(p_stats, b_token_norm, o_b, o_l, m_l, stride_stat, L, TOKEN_NORM)
    store_stat(p_stats, b_row, o_b, o_l, m_l, stride_stat, L, ROW_LSE)
    store_stat(p_stats, b_column, o_b, o_l, m_l, stride_stat, L, COLUMN_LSE)
    store_stat(p_stats, b_by_scale, o_b, o_l, m_l, stride_stat, L, SCALE_DERIVATIVE)


@triton.jit(do_not_specialize=RAGGED)
def pair_backward_kernel(
    p_grad_loss,  # [B, L] float32
    p_grad_mean_patches,  # [B, D], contiguous, or None
    p_grad_mean_tokens,  # [B, D], contiguous, or None
    p_patches,  # [B, P, D]
    p_tokens,  # [B, L, D]
    p_token_mask,  # [B, L] bool or None
    p_patch_mask,  # [B, P] bool or None
    p_scale,  # []
    p_stats,  # [STATS, B, L] float32, contiguous
    p_threshold,  # [] float32 or None
    p_grad_patches,  # [B, P, D], contiguous, or None: not wanted
    p_grad_tokens,  # [B, L, D], contiguous, or None: not wanted
    stride_gb, stride_gl,
    stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_lb, stride_ll, stride_pb, stride_pp,
    stride_stat,  # B * L
    L, P,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,  # patches have a tensor descriptor, and no mask
):  # fmt: skip
    IS_HALF: tl.constexpr = p_patches.dtype.element_ty == tl.float16
    SHRINK: tl.constexpr = 1.0 / BLOCK_P if IS_HALF else 1.0
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_patches.dtype.element_ty
    o_b = tl.program_id(0).to(tl.int64)
    o_l = tl.arange(0, BLOCK_L)
    o_p = tl.arange(0, BLOCK_P)
    m_l = load_mask(p_token_mask, o_b, o_l, L, stride_lb, stride_ll)
    n_tokens = tl.sum(m_l.to(tl.int32), axis=0)
    # an empty caption reads nothing, unless its image is pooled
    n_read = P if p_grad_mean_patches is not None else tl.minimum(n_tokens, 1) * P
    m_p = load_mask(p_patch_mask, o_b, o_p, n_read, stride_pb, stride_pp)
    n_patches = tl.sum(m_p.to(tl.int32), axis=0)
    sigma, poison = threshold_of(p_threshold, n_patches)
    p_v = p_patches + o_b * stride_vb
    p_t = p_tokens + o_b * stride_tb
    d_v = tl.make_tensor_descriptor(p_v, [P, D], [stride_vp, 1], [BLOCK_P, BLOCK_D]) if DESCRIBED else None
    first = tl.where(n_patches > 0, 0, P)  # of an image that is not read: rows outside, which are 0
    # C' is made once where its place is there until then: in the tokens' gradient, which has its shape and dtype
    KEEPS: tl.constexpr = DESCRIBED and not UPCAST and p_grad_tokens is not None and p_grad_patches is not None
    p_kept = p_grad_tokens + o_b * L * D if KEEPS else None

    b_s = similarities(
        p_t, p_v, d_v, first, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd,
        D, BLOCK_D, PRECISION, UPCAST,
    )  # fmt: skip
    b_min, b_max = row_extrema(b_s, m_p)
    b_height, b_range = min_max_heights(b_s, b_min, b_max, m_p)
    b_u = sparse_weights(b_height, b_range, sigma).to(OPERAND)  # [BLOCK_L, BLOCK_P]
    b_z = pair_logits(b_height, tl.trans(b_u), PRECISION)  # Z^T but for the factors of its rows
    b_z = (b_z * b_range[:, None] + b_min[:, None] * tl.sum(b_u.to(tl.float32), axis=1)[None, :]) * SHRINK
    b_z = tl.trans(b_z)

    b_w = tl.load(p_grad_loss + o_b * stride_gb + o_l.to(tl.int64) * stride_gl, mask=m_l, other=0.0)
    b_group_norm = load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, GROUP_NORM, 1.0)
    b_token_norm = load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, TOKEN_NORM, 1.0)
    b_row = load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, ROW_LSE, 0.0)
    b_column = load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, COLUMN_LSE, 0.0)
    b_dz = grad_logits(
        b_z, b_w, b_w, b_group_norm, b_token_norm, b_row, b_column, tl.load(p_scale),
        o_l[:, None] == o_l[None, :], m_l[:, None] & m_l[None, :], IS_HALF
    )  # fmt: skip
    amax = largest_magnitude(b_dz) if IS_HALF else 1.0
    b_a = (b_dz * (1.0 / amax)).to(OPERAND)  # [BLOCK_L, BLOCK_L]
    _, b_alpha = clamped_inverse_norm(b_group_norm)
    b_q, b_beta = clamped_inverse_norm(b_token_norm)
    b_restore = tl.where(IS_HALF & (b_token_norm <= MIN_NORM), b_q, 1.0)
    # from the rounded dZ: what the products below leave along C' and t, these take away
    b_alpha = b_alpha * tl.sum(b_a.to(tl.float32) * b_z, axis=1)
    b_beta = b_beta * tl.sum(b_a.to(tl.float32) * b_z, axis=0)

    b_du = tl.zeros([BLOCK_L, BLOCK_P], tl.float32)  # C' V^T
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_v = load_patches(p_v, d_v, first, o_p, o_chunk, m_p, stride_vp, stride_vd, D, BLOCK_D, UPCAST)
        b_c = tl.dot(tl.trans(b_v), tl.trans(b_u), input_precision=PRECISION) * SHRINK  # C'^T [BLOCK_D, BLOCK_L]
        if KEEPS:
            m_kept = (o_d < D)[:, None] & (o_l < L)[None, :]
            tl.store(p_kept + o_d[:, None] + o_l[None, :] * D, (b_c * -b_alpha[None, :]).to(OPERAND), mask=m_kept)
        b_du = tl.dot(tl.trans(b_c.to(OPERAND)), tl.trans(b_v), b_du, input_precision=PRECISION)
    if KEEPS:
        tl.debug_barrier()  # what one thread has stored, another one loads below
    b_s = b_min[:, None] + b_range[:, None] * b_height
    reach = largest_magnitude(b_s) if IS_HALF else 1.0  # S may leave the range of float16
    b_s = b_s * (1.0 / reach)
    b_half = b_s.to(OPERAND)
    b_low = (b_s - b_half.to(tl.float32)).to(OPERAND)
    b_du = b_du * (-b_alpha * (1.0 / reach))[:, None]
    for _ in range(1 if b_a.dtype == tl.float32 else 2):
        b_du = tl.dot(b_a, b_half, b_du, input_precision=PRECISION)
        b_half = b_low
    b_du = b_du * reach
    b_ds = grad_similarities(b_du, b_height, b_range, sigma)

    # X^T [BLOCK_P, BLOCK_L], X = dZ^T U + dS: both dV and dT take it
    b_ut = tl.trans(b_u)
    b_x = tl.dot(b_ut, b_a, tl.trans(b_ds), input_precision=PRECISION).to(OPERAND)
    # Float32 in two passes: a gradient then has the same bits whether or not the other one is wanted.
    PASSES: tl.constexpr = 2 if b_x.dtype == tl.float32 else 1
    for turn in tl.static_range(PASSES):
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_v = load_patches(p_v, d_v, first, o_p, o_chunk, m_p, stride_vp, stride_vd, D, BLOCK_D, UPCAST)
            b_t = load_tile(p_t, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)
            b_kept = load_tile(p_kept, o_l, o_d, m_l, D, D, 1, UPCAST) if KEEPS else None  # -diag(alpha) C'
            if p_grad_tokens is not None and (PASSES == 1 or turn == 0):
                b_gt = tl.trans(tl.dot(tl.trans(b_v), b_x, input_precision=PRECISION))  # [BLOCK_L, BLOCK_D]
                b_gt = b_gt * SHRINK - b_beta[:, None] * b_t.to(tl.float32)
                b_gt = b_gt * (b_restore * amax)[:, None] + poison
                if p_grad_mean_tokens is not None:
                    b_gt += share_of_mean(p_grad_mean_tokens + o_b * D, n_tokens, o_d, D)
                b_gt = tl.where(m_l[:, None], b_gt, 0.0)
                store_tile(p_grad_tokens + o_b * L * D, b_gt, o_l, o_d, o_l < L, D, D, UPCAST)
            if p_grad_patches is not None and turn == PASSES - 1:
                b_gv = tl.dot(b_x, b_t, input_precision=PRECISION)  # [BLOCK_P, BLOCK_D]
                if KEEPS:
                    b_gv = tl.dot(b_ut, b_kept, b_gv, input_precision=PRECISION)
                else:
                    b_c = tl.dot(tl.trans(b_v), b_ut, input_precision=PRECISION)  # C'^T [BLOCK_D, BLOCK_L]
                    b_c = (b_c * (-b_alpha * SHRINK)[None, :]).to(OPERAND)
                    b_gv = tl.dot(b_ut, tl.trans(b_c), b_gv, input_precision=PRECISION)
                b_gv = b_gv * (SHRINK * amax)
                if p_grad_mean_patches is not None:
                    b_gv = tl.where(n_tokens > 0, b_gv, 0.0)
                    b_gv += share_of_mean(p_grad_mean_patches + o_b * D, n_patches, o_d, D)
                if p_patch_mask is not None:
                    b_gv = tl.where(m_p[:, None], b_gv, 0.0)
                store_tile(p_grad_patches + o_b * P * D, b_gv, o_p, o_d, o_p < P, D, D, UPCAST)

# mypy: disable-error-code="no-untyped-def"
"""The tiled path of ``optimal_transport``: similarities of some pairs lie in a workspace [N, L, P] of float32."""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import load_mask, load_tile, store_tile
from sparc_kernels.ops._triton.workspaces import count_valid, load_workspace, locate, workspace_offsets
from sparc_kernels.ops.optimal_transport.triton_iterations import NOTHING, inverse_norms, steepness


@triton.jit
def inverse_norms_kernel(
    p_rows,  # [N, R, D]
    p_mask,  # [N, R] bool or None
    p_inverse,  # [N, R] float32, contiguous
    stride_rb, stride_rr, stride_rd, stride_mb, stride_mr,
    R,
    D: tl.constexpr,
    TILES_R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile, _ = locate(TILES_R, 1)
    o_r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = load_mask(p_mask, o_b, o_r, R, stride_mb, stride_mr)
    b_inverse, _ = inverse_norms(p_rows + o_b * stride_rb, o_r, m_r, stride_rr, stride_rd, D, BLOCK_D, UPCAST)
    tl.store(p_inverse + o_b * R + o_r, b_inverse, mask=o_r < R)


@triton.jit
def tiled_iterations_kernel(
    p_products,  # [N, L, P] float32: raw products, 0 where not valid; overwritten with S
    p_text_inverse,  # [N, L] float32
    p_image_inverse,  # [N, P] float32
    p_image_mask,  # [N, P] bool or None
    p_text_mask,  # [N, L] bool or None
    p_beta,  # [] float32
    p_before,  # [N, L] float32: f of the step before
    p_costs,  # [N, L] float32, contiguous, as what follows
    p_potentials,  # [N, L + P] float32
    p_plan,  # [N, L, P] float32, or None: not wanted
    stride_pb, stride_pp, stride_lb, stride_ll,
    L, P,
    ITERATIONS: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PROXIMAL: tl.constexpr,
):  # fmt: skip
    o_b = tl.program_id(0).to(tl.int64)
    p_f = p_potentials + o_b * (L + P)
    p_g = p_f + L
    p_e = p_before + o_b * L
    n_l = count_valid(p_text_mask, o_b, L, stride_lb, stride_ll, TILES_L, BLOCK_L)
    n_p = count_valid(p_image_mask, o_b, P, stride_pb, stride_pp, TILES_P, BLOCK_P)
    log_l = tl.log(tl.maximum(n_l, 1).to(tl.float32))
    log_p = tl.log(tl.maximum(n_p, 1).to(tl.float32))
    for tile_l in range(TILES_L):
        o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
        m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
        b_b = tl.load(p_text_inverse + o_b * L + o_l, mask=m_l, other=0.0)
        tl.store(p_f + o_l, tl.where(m_l, 0.0, NOTHING), mask=o_l < L)
        tl.store(p_e + o_l, tl.where(m_l, 0.0, NOTHING), mask=o_l < L)
        for tile_p in range(TILES_P):
            o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
            b_a = tl.load(p_image_inverse + o_b * P + o_p, mask=o_p < P, other=0.0)
            o_tile, m_tile = workspace_offsets(o_b, o_l, o_p, L, P)
            b_s = tl.load(p_products + o_tile, mask=m_tile, other=0.0) * b_b[:, None] * b_a[None, :]
            tl.store(p_products + o_tile, b_s, mask=m_tile)
    tl.debug_barrier()
    for step in range(1, ITERATIONS + 1):
        t = steepness(p_beta, step, PROXIMAL)
        for tile_p in range(TILES_P):
            o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
            m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
            b_top = tl.full([BLOCK_P], 2.0 * NOTHING, tl.float32)
            b_sum = tl.zeros([BLOCK_P], tl.float32)
            for tile_l in range(TILES_L):
                o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
                b_f = tl.load(p_f + o_l, mask=o_l < L, other=NOTHING)
                if PROXIMAL:
                    b_f = b_f + (b_f - tl.load(p_e + o_l, mask=o_l < L, other=NOTHING))
                b_x = load_workspace(p_products, o_b, o_l, o_p, L, P) * t + b_f[:, None]
                b_most = tl.maximum(b_top, tl.max(b_x, axis=0))
                b_sum = b_sum * tl.exp(b_top - b_most) + tl.sum(tl.exp(b_x - b_most[None, :]), axis=0)
                b_top = b_most
            tl.store(p_g + o_p, tl.where(m_p, -log_p - b_top - tl.log(b_sum), NOTHING), mask=o_p < P)
        tl.debug_barrier()  # all of g is there before it is read, all of f was read before it is overwritten
        for tile_l in range(TILES_L):
            o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
            m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
            b_top = tl.full([BLOCK_L], 2.0 * NOTHING, tl.float32)
            b_sum = tl.zeros([BLOCK_L], tl.float32)
            for tile_p in range(TILES_P):
                o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
                b_g = tl.load(p_g + o_p, mask=o_p < P, other=NOTHING)
                b_x = load_workspace(p_products, o_b, o_l, o_p, L, P) * t + b_g[None, :]
                b_most = tl.maximum(b_top, tl.max(b_x, axis=1))
                b_sum = b_sum * tl.exp(b_top - b_most) + tl.sum(tl.exp(b_x - b_most[:, None]), axis=1)
                b_top = b_most
            tl.store(p_e + o_l, tl.load(p_f + o_l, mask=o_l < L, other=NOTHING), mask=o_l < L)
            tl.store(p_f + o_l, tl.where(m_l, -log_l - b_top - tl.log(b_sum), NOTHING), mask=o_l < L)
        tl.debug_barrier()
    t = steepness(p_beta, ITERATIONS, PROXIMAL)
    some = (n_l > 0) & (n_p > 0)
    for tile_l in range(TILES_L):
        o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
        m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
        b_f = tl.load(p_f + o_l, mask=m_l, other=0.0)
        b_costs = tl.zeros([BLOCK_L], tl.float32)
        for tile_p in range(TILES_P):
            o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
            m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
            b_g = tl.load(p_g + o_p, mask=m_p, other=0.0)
            b_s = load_workspace(p_products, o_b, o_l, o_p, L, P)
            b_plan = tl.exp((b_s * t + b_g[None, :]) + b_f[:, None])
            b_plan = tl.where(m_l[:, None] & m_p[None, :], b_plan, 0.0)
            b_costs += tl.sum((1.0 - b_s) * b_plan, axis=1)
            if p_plan is not None:
                o_tile, m_tile = workspace_offsets(o_b, o_l, o_p, L, P)
                tl.store(p_plan + o_tile, b_plan, mask=m_tile)
        tl.store(p_costs + o_b * L + o_l, b_costs, mask=o_l < L)
    tl.debug_barrier()
    for tile_l in range(TILES_L):
        o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
        m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
        tl.store(p_f + o_l, tl.where(m_l & some, tl.load(p_f + o_l, mask=o_l < L, other=0.0), 0.0), mask=o_l < L)
    for tile_p in range(TILES_P):
        o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
        m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
        tl.store(p_g + o_p, tl.where(m_p & some, tl.load(p_g + o_p, mask=o_p < P, other=0.0), 0.0), mask=o_p < P)


@triton.jit
def tiled_weights_kernel(
    p_products,  # [N, L, P] float32: raw products
    p_weights,  # [N, L, P] float32: Y = -grad_costs plan a b
    p_shares,  # [N, R] float32: the sums of Y times the raw products along the rows, times the inverse norms' squares
    p_inverse,  # [N, R] float32: inverse norms of the rows, which are those of the texts, or of the images
    p_text_inverse,  # [N, L] float32
    p_image_inverse,  # [N, P] float32
    p_image_mask,  # [N, P] bool or None
    p_text_mask,  # [N, L] bool or None
    p_beta,  # [] float32
    p_grad_costs,  # [N, L] float32
    p_potentials,  # [N, L + P] float32, contiguous
    stride_gb, stride_gl, stride_pb, stride_pp, stride_lb, stride_ll,
    L, P,
    ITERATIONS: tl.constexpr,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PROXIMAL: tl.constexpr,
    TEXTS: tl.constexpr,  # whose rows are summed; Y is written with those of the texts
):  # fmt: skip
    o_b, tile, _ = locate(TILES_L if TEXTS else TILES_P, 1)
    t = steepness(p_beta, ITERATIONS, PROXIMAL)
    p_pair = p_potentials + o_b * (L + P)
    b_share = tl.zeros([BLOCK_L if TEXTS else BLOCK_P], tl.float32)
    for other in range(TILES_P if TEXTS else TILES_L):
        o_l = (tile if TEXTS else other) * BLOCK_L + tl.arange(0, BLOCK_L)
        o_p = (other if TEXTS else tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
        m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
        b_b = tl.load(p_text_inverse + o_b * L + o_l, mask=m_l, other=0.0)
        b_a = tl.load(p_image_inverse + o_b * P + o_p, mask=m_p, other=0.0)
        b_f = tl.load(p_pair + o_l, mask=m_l, other=0.0)
        b_g = tl.load(p_pair + L + o_p, mask=m_p, other=0.0)
        b_up = tl.load(p_grad_costs + o_b * stride_gb + o_l * stride_gl, mask=m_l, other=0.0)
        b_ab = b_b[:, None] * b_a[None, :]
        b_s = load_workspace(p_products, o_b, o_l, o_p, L, P) * b_ab
        b_w = tl.exp((b_s * t + b_g[None, :]) + b_f[:, None]) * -b_up[:, None]
        b_w = tl.where(m_l[:, None] & m_p[None, :], b_w, 0.0)
        b_share += tl.sum(b_w * b_s, axis=1 if TEXTS else 0)
        if TEXTS:
            o_tile, m_tile = workspace_offsets(o_b, o_l, o_p, L, P)
            tl.store(p_weights + o_tile, b_w * b_ab, mask=m_tile)
    o_r = tile * (BLOCK_L if TEXTS else BLOCK_P) + tl.arange(0, BLOCK_L if TEXTS else BLOCK_P)
    m_r = o_r < (L if TEXTS else P)
    b_inverse = tl.load(p_inverse + o_b * (L if TEXTS else P) + o_r, mask=m_r, other=0.0)
    b_share = tl.where(b_inverse < 1e12, b_share * b_inverse * b_inverse, 0.0)  # a clamped norm has no gradient
    tl.store(p_shares + o_b * (L if TEXTS else P) + o_r, b_share, mask=m_r)


@triton.jit
def tiled_gradient_kernel(
    p_weights,  # [N, L, P] float32: Y, or its transpose
    p_shares,  # [N, R] float32
    p_rows,  # [N, R, D]: those whose gradient it is
    p_others,  # [N, K, D]
    p_row_mask,  # [N, R] bool or None
    p_other_mask,  # [N, K] bool or None
    p_grad,  # [N, R, D], contiguous
    stride_wb, stride_wr, stride_wk, stride_rb, stride_rr, stride_rd, stride_kb, stride_kk, stride_kd,
    stride_mb, stride_mr, stride_nb, stride_nk,
    R, K,
    D: tl.constexpr,
    TILES_R: tl.constexpr,
    TILES_K: tl.constexpr,
    TILES_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_rows.dtype.element_ty
    IS_HALF: tl.constexpr = OPERAND == tl.float16  # noqa: SIM300
    o_b, tile_r, tile_d = locate(TILES_R, TILES_D)
    o_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_r = load_mask(p_row_mask, o_b, o_r, R, stride_mb, stride_mr)
    p_w = p_weights + o_b * stride_wb
    amax = 1.0
    if IS_HALF:  # range is scarce: the operand is scaled by its largest entry
        b_most = tl.zeros([BLOCK_R], tl.float32)
        for tile in range(TILES_K):
            o_k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            b_y = load_tile(p_w, o_r, o_k, o_r < R, K, stride_wr, stride_wk, False)
            b_most = tl.maximum(b_most, tl.max(tl.abs(b_y), axis=1))
        amax = tl.max(b_most, axis=0)
        amax = tl.where(amax > 0.0, amax, 1.0)
    b_grad = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for tile in range(TILES_K):
        o_k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        m_k = load_mask(p_other_mask, o_b, o_k, K, stride_nb, stride_nk)
        b_y = load_tile(p_w, o_r, o_k, o_r < R, K, stride_wr, stride_wk, False)
        b_x = load_tile(p_others + o_b * stride_kb, o_k, o_d, m_k, D, stride_kk, stride_kd, UPCAST)
        b_grad = tl.dot((b_y * (1.0 / amax)).to(OPERAND), b_x, b_grad, input_precision=PRECISION)
    b_rows = load_tile(p_rows + o_b * stride_rb, o_r, o_d, m_r, D, stride_rr, stride_rd, UPCAST).to(tl.float32)
    b_share = tl.load(p_shares + o_b * R + o_r, mask=m_r, other=0.0)
    b_grad = tl.where(m_r[:, None], b_grad * amax - b_share[:, None] * b_rows, 0.0)
    store_tile(p_grad + o_b * R * D, b_grad, o_r, o_d, o_r < R, D, D, UPCAST)

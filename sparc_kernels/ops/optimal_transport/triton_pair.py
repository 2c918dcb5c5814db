# mypy: disable-error-code="no-untyped-def"
"""The pair path of ``optimal_transport``: a program holds the similarities of a pair. Products of L x P x D: forward 1,
backward 1 and one for each gradient."""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import largest_magnitude, load_mask, load_tile, rows_product, store_tile
from sparc_kernels.ops.optimal_transport.triton_iterations import inverse_norms, iterate, plan_of, steepness


@triton.jit
def offsets_in_pair(o_l, o_p, L, P):
    """Offsets and mask [L, P] in a contiguous matrix of a pair that one program holds, for which 32 bits do."""
    return o_l[:, None] * P + o_p[None, :], (o_l < L)[:, None] & (o_p < P)[None, :]


@triton.jit
def store_results(
    p_costs, p_potentials, p_plan, b_s, b_f, b_g, t, o_b, o_l, o_p, m_l, m_p, L, P
):  # fmt: skip
    """Costs [L], potentials [L + P] and, where wanted, the plan [L, P] of a pair."""
    b_plan = plan_of(b_s, b_f, b_g, t, m_l, m_p)
    tl.store(p_costs + o_b * L + o_l, tl.sum((1.0 - b_s) * b_plan, axis=1), mask=o_l < L)
    valid = (tl.sum(m_l.to(tl.int32), axis=0) > 0) & (tl.sum(m_p.to(tl.int32), axis=0) > 0)
    p_pair = p_potentials + o_b * (L + P)
    tl.store(p_pair + o_l, tl.where(m_l & valid, b_f, 0.0), mask=o_l < L)
    tl.store(p_pair + L + o_p, tl.where(m_p & valid, b_g, 0.0), mask=o_p < P)
    if p_plan is not None:
        o_tile, m_tile = offsets_in_pair(o_l, o_p, L, P)
        tl.store(p_plan + o_b * L * P + o_tile, b_plan, mask=m_tile)


@triton.jit
def cosines(
    p_t, p_v, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """[L, P] of a pair; and of its tokens and its patches what ``inverse_norms`` gives."""
    b_b, b_b2 = inverse_norms(p_t, o_l, m_l, stride_tl, stride_td, D, BLOCK_D, UPCAST)
    b_a, b_a2 = inverse_norms(p_v, o_p, m_p, stride_vp, stride_vd, D, BLOCK_D, UPCAST)
    b_s = rows_product(
        p_t, p_v, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd, D, BLOCK_D, PRECISION, UPCAST
    )  # fmt: skip
    return b_s * b_b[:, None] * b_a[None, :], b_b, b_b2, b_a, b_a2


@triton.jit
def pair_forward_kernel(
    p_images,  # [B, P, D]
    p_texts,  # [B, L, D]
    p_image_mask,  # [B, P] bool or None
    p_text_mask,  # [B, L] bool or None
    p_beta,  # [] float32
    p_costs,  # [B, L] float32, contiguous, as what follows
    p_potentials,  # [B, L + P] float32
    p_plan,  # [B, L, P] float32, or None: not wanted
    stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_pb, stride_pp, stride_lb, stride_ll,
    L, P,
    ITERATIONS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PROXIMAL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b = tl.program_id(0).to(tl.int64)
    o_l, o_p = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_P)
    m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
    m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
    p_t, p_v = p_texts + o_b * stride_tb, p_images + o_b * stride_vb
    b_s, _, _, _, _ = cosines(
        p_t, p_v, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd, D, BLOCK_D, PRECISION, UPCAST
    )  # fmt: skip
    b_f, b_g = iterate(b_s, m_l, m_p, p_beta, ITERATIONS, PROXIMAL)
    t = steepness(p_beta, ITERATIONS, PROXIMAL)
    store_results(p_costs, p_potentials, p_plan, b_s, b_f, b_g, t, o_b, o_l, o_p, m_l, m_p, L, P)


@triton.jit
def held_kernel(
    p_products,  # [N, L, P] float32: raw products, 0 where not valid
    p_text_inverse,  # [N, L] float32
    p_image_inverse,  # [N, P] float32
    p_image_mask,  # [N, P] bool or None
    p_text_mask,  # [N, L] bool or None
    p_beta,  # [] float32
    p_costs,  # [N, L] float32, contiguous, as what follows
    p_potentials,  # [N, L + P] float32
    p_plan,  # [N, L, P] float32, or None: not wanted
    stride_pb, stride_pp, stride_lb, stride_ll,
    L, P,
    ITERATIONS: tl.constexpr,
    HELD_L: tl.constexpr,
    HELD_P: tl.constexpr,
    PROXIMAL: tl.constexpr,
):  # fmt: skip
    o_b = tl.program_id(0).to(tl.int64)
    o_l, o_p = tl.arange(0, HELD_L), tl.arange(0, HELD_P)
    m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
    m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
    b_b = tl.load(p_text_inverse + o_b * L + o_l, mask=m_l, other=0.0)
    b_a = tl.load(p_image_inverse + o_b * P + o_p, mask=m_p, other=0.0)
    o_tile, m_tile = offsets_in_pair(o_l, o_p, L, P)
    b_s = tl.load(p_products + o_b * L * P + o_tile, mask=m_tile, other=0.0) * b_b[:, None] * b_a[None, :]
    b_f, b_g = iterate(b_s, m_l, m_p, p_beta, ITERATIONS, PROXIMAL)
    t = steepness(p_beta, ITERATIONS, PROXIMAL)
    store_results(p_costs, p_potentials, p_plan, b_s, b_f, b_g, t, o_b, o_l, o_p, m_l, m_p, L, P)


@triton.jit
def pair_backward_kernel(
    p_grad_costs,  # [B, L] float32
    p_images,  # [B, P, D]
    p_texts,  # [B, L, D]
    p_image_mask,  # [B, P] bool or None
    p_text_mask,  # [B, L] bool or None
    p_beta,  # [] float32
    p_potentials,  # [B, L + P] float32, contiguous
    p_grad_images,  # [B, P, D], contiguous, or None: not wanted
    p_grad_texts,  # [B, L, D], contiguous, or None: not wanted
    stride_gb, stride_gl, stride_vb, stride_vp, stride_vd, stride_tb, stride_tl, stride_td, stride_pb, stride_pp,
    stride_lb, stride_ll,
    L, P,
    ITERATIONS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PROXIMAL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    OPERAND: tl.constexpr = tl.float32 if UPCAST else p_images.dtype.element_ty
    IS_HALF: tl.constexpr = OPERAND == tl.float16  # noqa: SIM300
    o_b = tl.program_id(0).to(tl.int64)
    o_l, o_p = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_P)
    m_l = load_mask(p_text_mask, o_b, o_l, L, stride_lb, stride_ll)
    m_p = load_mask(p_image_mask, o_b, o_p, P, stride_pb, stride_pp)
    p_t, p_v = p_texts + o_b * stride_tb, p_images + o_b * stride_vb
    b_s, b_b, b_b2, b_a, b_a2 = cosines(
        p_t, p_v, o_l, o_p, m_l, m_p, stride_tl, stride_td, stride_vp, stride_vd, D, BLOCK_D, PRECISION, UPCAST
    )  # fmt: skip
    p_pair = p_potentials + o_b * (L + P)
    b_f = tl.load(p_pair + o_l, mask=m_l, other=0.0)
    b_g = tl.load(p_pair + L + o_p, mask=m_p, other=0.0)
    b_up = tl.load(p_grad_costs + o_b * stride_gb + o_l * stride_gl, mask=m_l, other=0.0)
    b_w = plan_of(b_s, b_f, b_g, steepness(p_beta, ITERATIONS, PROXIMAL), m_l, m_p) * -b_up[:, None]
    b_text_share = tl.sum(b_w * b_s, axis=1) * b_b2
    b_image_share = tl.sum(b_w * b_s, axis=0) * b_a2
    b_y = b_w * (b_b[:, None] * b_a[None, :])
    amax = largest_magnitude(b_y) if IS_HALF else 1.0
    b_y = (b_y * (1.0 / amax)).to(OPERAND)
    if p_grad_texts is not None:
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_v = load_tile(p_v, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST)  # [BLOCK_P, BLOCK_D]
            b_t = load_tile(p_t, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST).to(tl.float32)
            b_grad = tl.dot(b_y, b_v, input_precision=PRECISION) * amax - b_text_share[:, None] * b_t
            store_tile(p_grad_texts + o_b * L * D, tl.where(m_l[:, None], b_grad, 0.0), o_l, o_d, o_l < L, D, D, UPCAST)
    if p_grad_images is not None:
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_t = load_tile(p_t, o_l, o_d, m_l, D, stride_tl, stride_td, UPCAST)  # [BLOCK_L, BLOCK_D]
            b_v = load_tile(p_v, o_p, o_d, m_p, D, stride_vp, stride_vd, UPCAST).to(tl.float32)
            b_grad = tl.dot(tl.trans(b_y), b_t, input_precision=PRECISION) * amax - b_image_share[:, None] * b_v
            b_grad = tl.where(m_p[:, None], b_grad, 0.0)
            store_tile(p_grad_images + o_b * P * D, b_grad, o_p, o_d, o_p < P, D, D, UPCAST)

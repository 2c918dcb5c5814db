# mypy: disable-error-code="no-untyped-def"
"""Device functions of weights, cosines and their gradients (``MATH.md``), and kernels over products of a library.

S, E and H as in ``MATH.md``, of rows: the valid tokens of all captions, one behind the other. Where copies of the
inputs are scaled (``copy_rows_kernel``) S is that of the copies, and ``scale`` makes up for it.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import MIN_NORM, store_tile

LOG2E = tl.constexpr(1.4426950408889634)
LARGEST_HALF = tl.constexpr(65504.0)


@triton.jit
def length_factor(b_sum, b_top, SIGMOID: tl.constexpr, SINK: tl.constexpr):
    """z [ROWS] from the sum of E and the largest logit, to the base 2."""
    if SIGMOID:
        return tl.full(b_top.shape, 1.0, tl.float32)
    elif SINK:
        return b_sum + tl.exp2(tl.minimum(-b_top, 120.0))  # finite: E times it is not read, its inverse is
    else:
        return b_sum


@triton.jit
def cosine_of(b_n, b_q, b_z, b_gamma):
    """r [ROWS], i, and whether the context counts as zero."""
    b_z = tl.where(b_z == 0.0, 1.0, b_z)  # no valid patch
    b_least = (b_gamma * b_n) * (b_gamma * b_n)  # of q, by Cauchy and Schwarz: rounding may say less
    b_norm = tl.sqrt(tl.where(b_q < b_least, b_least, b_q)) / b_z
    m_clamped = b_norm <= MIN_NORM
    b_i = 1.0 / (tl.where(m_clamped, MIN_NORM, b_norm) * b_z)
    return b_gamma * b_n * b_i, b_i, m_clamped


@triton.jit
def load_upstream(
    p_grad_scores, p_levels, p_owners, p_starts, p_power, o_i, o_row, m_row, b_r, pooling_scale, J
):  # fmt: skip
    """k [ROWS], 0 at rows of nobody."""
    b_owner = tl.load(p_owners + o_row, mask=m_row, other=0)
    b_k = tl.load(p_grad_scores + o_i * J + b_owner, mask=m_row, other=0.0)
    if p_levels is None:
        b_first = tl.load(p_starts + b_owner, mask=m_row, other=0)
        b_end = tl.load(p_starts + b_owner + 1, mask=m_row, other=1)
        b_k /= (b_end - b_first).to(tl.float32)
    else:
        b_level = tl.load(p_levels + o_i * J + b_owner, mask=m_row, other=0.0)
        b_k *= pooling_scale * tl.exp2((pooling_scale * b_r - b_level) * LOG2E)
        b_k = tl.where(m_row, b_k, 0.0)
    if p_power is not None:
        b_k *= tl.load(p_power)
    return b_k


@triton.jit
def row_gradient(b_k, b_n, b_z, b_r, b_i, b_gamma, m_clamped):
    """dn, 2 dq, and what is taken off dE where the context counts as zero, [ROWS] each."""
    b_dn = b_k * b_gamma * b_i
    b_shift = tl.where(m_clamped & (b_z > 0.0), b_dn * b_n / tl.where(b_z == 0.0, 1.0, b_z), 0.0)
    return b_dn, tl.where(m_clamped, 0.0, -b_k * b_r * b_i * b_i), b_shift


@triton.jit
def similarity_gradient(b_e, b_de, b_dn, b_shift, scale, SIGMOID: tl.constexpr):
    """dS [ROWS, PATCHES] of weights that do not depend on other words."""
    if SIGMOID:
        return b_e * (b_dn[:, None] + scale * (1.0 - b_e) * b_de)
    else:
        return b_e * (b_dn[:, None] + scale * (b_de - b_shift[:, None]))


@triton.jit
def bounded(b_x, p_power):
    """Within what float16 holds, where there is a power in front; NaN stays."""
    if p_power is not None:
        b_x = tl.where(b_x > LARGEST_HALF, LARGEST_HALF, tl.where(b_x < -LARGEST_HALF, -LARGEST_HALF, b_x))
    return b_x


@triton.jit
def load_logits(
    p_products, p_word_levels, o_product, o_row, o_column, m, b_owner, scale, unit, stride_l, WORDS: tl.constexpr
):  # fmt: skip
    """S and B [ROWS, PATCHES], and the logits of the weights to the base 2, -inf where not ``m``."""
    b_s = tl.load(p_products + o_product, mask=m, other=0.0)
    if WORDS:
        o_level = b_owner.to(tl.int64)[:, None] * stride_l + o_column[None, :]
        b_level = tl.load(p_word_levels + o_level, mask=m, other=0.0)
        b_b = tl.exp2((b_s * unit - b_level) * LOG2E)
        return b_s, b_b, tl.where(m, b_b * (scale * LOG2E), -float("inf"))
    else:
        return b_s, b_s, tl.where(m, b_s * (scale * LOG2E), -float("inf"))


@triton.jit
def exponentials(b_exponent, SIGMOID: tl.constexpr):
    """E from logits less the largest one of the row, or of a sigmoid, to the base 2; of -inf it is 0."""
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp2(-b_exponent))
    else:
        return tl.exp2(b_exponent)


@triton.jit
def load_valid_patches(p_image_mask, o_i, o_p, stride_vi, stride_vp, P):
    """[PATCHES]"""
    m_p = o_p < P
    if p_image_mask is not None:
        m_p = m_p & (tl.load(p_image_mask + o_i * stride_vi + o_p * stride_vp, mask=m_p, other=0) != 0)
    return m_p


BLOCKS = ["I", "J", "N", "IMAGES", "FIRST", "FIRST_ROW", "LAST_ROW", "scale", "pooling_scale"]


@triton.jit(do_not_specialize=BLOCKS)
def weights_kernel(
    p_products,  # [rows, IMAGES * PADDED]: S, stride_w from row to row, as are all of these
    p_word_levels,  # [J, IMAGES * PADDED]: log sum exp over words of S, or None: not words_softmax
    p_owners,  # [N] int32
    p_starts,  # [J + 1] int32
    p_image_mask,  # [I, P] bool or None
    p_scales,  # [2, I] or None: ``scale`` and the unit of S of each image
    p_weights,  # [rows, IMAGES * PADDED]: E
    p_row_sums,  # [3, IMAGES, N]: n, z, the largest logit
    stride_vi, stride_vp, stride_w, stride_l,
    scale,
    I, J, N, IMAGES, FIRST, FIRST_ROW, LAST_ROW,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    SIGMOID: tl.constexpr,
    SINK: tl.constexpr,
    WORDS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """E of rows FIRST_ROW to LAST_ROW, as an operand of a product."""
    image = tl.program_id(0) % IMAGES
    o_row = FIRST_ROW + tl.program_id(0) // IMAGES * BLOCK_R + tl.arange(0, BLOCK_R)
    o_i = (FIRST + image).to(tl.int64)
    m_row = o_row < tl.minimum(tl.load(p_starts + J), LAST_ROW)
    unit = 1.0
    if p_scales is not None:
        scale, unit = tl.load(p_scales + o_i), tl.load(p_scales + I + o_i)
    b_owner = tl.load(p_owners + o_row, mask=m_row, other=0)
    o_local = (o_row - FIRST_ROW).to(tl.int64)
    b_top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    if not SIGMOID:
        for first in range(0, PADDED, BLOCK_P):
            o_p = first + tl.arange(0, BLOCK_P)
            m_p = load_valid_patches(p_image_mask, o_i, o_p, stride_vi, stride_vp, P)
            o_column = image * PADDED + o_p
            o_product = o_local[:, None] * stride_w + o_column[None, :]
            _, _, b_logit = load_logits(
                p_products, p_word_levels, o_product, o_row, o_column, m_row[:, None] & m_p[None, :], b_owner, scale,
                unit, stride_l, WORDS
            )  # fmt: skip
            b_top = tl.maximum(b_top, tl.max(b_logit, axis=1))
    b_top = tl.where(b_top == -float("inf"), 0.0, b_top)
    b_n, b_z = tl.zeros([BLOCK_R], tl.float32), tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, PADDED, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        m_p = load_valid_patches(p_image_mask, o_i, o_p, stride_vi, stride_vp, P)
        o_column = image * PADDED + o_p
        o_product = o_local[:, None] * stride_w + o_column[None, :]
        b_s, _, b_logit = load_logits(
            p_products, p_word_levels, o_product, o_row, o_column, m_row[:, None] & m_p[None, :], b_owner, scale,
            unit, stride_l, WORDS
        )  # fmt: skip
        b_e = exponentials(b_logit - b_top[:, None], SIGMOID)
        b_n += tl.sum(b_e * b_s, axis=1)
        b_z += tl.sum(b_e, axis=1)
        store_tile(p_weights + image * PADDED, b_e, o_local, o_p, m_row, PADDED, stride_w, UPCAST)
    p_own = p_row_sums + image.to(tl.int64) * N + o_row
    tl.store(p_own, b_n, mask=m_row)
    tl.store(p_own + IMAGES.to(tl.int64) * N, length_factor(b_z, b_top, SIGMOID, SINK), mask=m_row)
    tl.store(p_own + 2 * IMAGES.to(tl.int64) * N, b_top, mask=m_row)


@triton.jit
def quadratic_form(
    p_weights, p_forms, o_local, m_row, image, stride_w, PADDED: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """q [ROWS] from E and H."""
    b_q = tl.zeros([o_local.shape[0]], tl.float32)
    for first in range(0, PADDED, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        m = m_row[:, None] & (o_p < PADDED)[None, :]
        o = o_local[:, None] * stride_w + (image * PADDED + o_p)[None, :]
        b_e = tl.load(p_weights + o, mask=m, other=0.0).to(tl.float32)
        b_q += tl.sum(b_e * tl.load(p_forms + o, mask=m, other=0.0), axis=1)
    return b_q


@triton.jit(do_not_specialize=BLOCKS)
def cosines_kernel(
    p_weights,  # [rows, IMAGES * PADDED]: E
    p_forms,  # [rows, IMAGES * PADDED]: H
    p_row_sums,  # [3, IMAGES, N]
    p_gamma,  # [N]
    p_starts,  # [J + 1] int32
    p_cosines,  # [IMAGES, N]
    stride_w,
    J, N, IMAGES, FIRST_ROW, LAST_ROW,
    PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) % IMAGES
    o_row = FIRST_ROW + tl.program_id(0) // IMAGES * BLOCK_R + tl.arange(0, BLOCK_R)
    m_row = o_row < tl.minimum(tl.load(p_starts + J), LAST_ROW)
    o_local = (o_row - FIRST_ROW).to(tl.int64)
    b_q = quadratic_form(p_weights, p_forms, o_local, m_row, image, stride_w, PADDED, BLOCK_P)
    o_sum = image.to(tl.int64) * N + o_row
    b_n = tl.load(p_row_sums + o_sum, mask=m_row, other=0.0)
    b_z = tl.load(p_row_sums + IMAGES.to(tl.int64) * N + o_sum, mask=m_row, other=1.0)
    b_r, _, _ = cosine_of(b_n, b_q, b_z, tl.load(p_gamma + o_row, mask=m_row, other=0.0))
    tl.store(p_cosines + o_sum, b_r, mask=m_row)


@triton.jit(do_not_specialize=BLOCKS)
def gradient_kernel(
    p_products,  # [rows, IMAGES * PADDED]: S
    p_forms,  # the same: H; of words_softmax B dB is left there
    p_weights,  # the same: E, and E / sqrt q is left there
    p_word_levels,  # [J, IMAGES * PADDED] or None
    p_row_sums,  # [3, IMAGES, N]; of words_softmax dn is left in place of n
    p_gamma,  # [N]
    p_owners,  # [N] int32
    p_starts,  # [J + 1] int32
    p_image_mask,  # [I, P] bool or None
    p_scales,  # [2, I] or None
    p_grad_scores,  # [I, J]
    p_levels,  # [I, J] or None: mean
    p_power,  # [2] or None
    p_similarity_grad,  # [rows, IMAGES * PADDED]: dS; of words_softmax dn E
    p_weights_grad,  # the same: 2 dq q E / sqrt q, or None
    p_radial,  # [IMAGES, N]: k r; or None
    stride_vi, stride_vp, stride_w, stride_l,
    scale, pooling_scale,
    I, J, N, IMAGES, FIRST, FIRST_ROW, LAST_ROW,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    SIGMOID: tl.constexpr,
    WORDS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """What the products of the backward pass take; 0 behind the last valid token."""
    image = tl.program_id(0) % IMAGES
    o_row = FIRST_ROW + tl.program_id(0) // IMAGES * BLOCK_R + tl.arange(0, BLOCK_R)
    o_i = (FIRST + image).to(tl.int64)
    m_out = o_row < LAST_ROW
    m_row = m_out & (o_row < tl.load(p_starts + J))
    unit = 1.0
    if p_scales is not None:
        scale, unit = tl.load(p_scales + o_i), tl.load(p_scales + I + o_i)
    o_local = (o_row - FIRST_ROW).to(tl.int64)
    b_q = quadratic_form(p_weights, p_forms, o_local, m_row, image, stride_w, PADDED, BLOCK_P)
    o_sum = image.to(tl.int64) * N + o_row
    b_n = tl.load(p_row_sums + o_sum, mask=m_row, other=0.0)
    b_z = tl.load(p_row_sums + IMAGES.to(tl.int64) * N + o_sum, mask=m_row, other=1.0)
    b_top = tl.load(p_row_sums + 2 * IMAGES.to(tl.int64) * N + o_sum, mask=m_row, other=0.0)
    b_gamma = tl.load(p_gamma + o_row, mask=m_row, other=0.0)
    b_r, b_i, m_clamped = cosine_of(b_n, b_q, b_z, b_gamma)
    b_k = load_upstream(p_grad_scores, p_levels, p_owners, p_starts, p_power, o_i, o_row, m_row, b_r, pooling_scale, J)
    b_dn, b_twice_dq, b_shift = row_gradient(b_k, b_n, b_z, b_r, b_i, b_gamma, m_clamped)
    if p_radial is not None:
        tl.store(p_radial + o_sum, b_k * b_r, mask=m_row)
    b_owner = tl.load(p_owners + o_row, mask=m_row, other=0)
    p_s, p_a, p_b = p_similarity_grad + image * PADDED, p_weights + image * PADDED, p_weights_grad
    for first in range(0, PADDED, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        m_p = load_valid_patches(p_image_mask, o_i, o_p, stride_vi, stride_vp, P)
        o_column = image * PADDED + o_p
        m = m_row[:, None] & m_p[None, :]
        o_product = o_local[:, None] * stride_w + o_column[None, :]
        b_s, b_b, b_logit = load_logits(
            p_products, p_word_levels, o_product, o_row, o_column, m, b_owner, scale, unit, stride_l, WORDS
        )
        b_e = exponentials(b_logit - b_top[:, None], SIGMOID)
        b_de = b_dn[:, None] * b_s + b_twice_dq[:, None] * tl.load(p_forms + o_product, mask=m, other=0.0)
        if WORDS:
            b_db = scale * b_e * (b_de - b_shift[:, None])
            tl.store(p_forms + o_product, b_b * b_db, mask=m)
            b_ds = b_dn[:, None] * b_e
        else:
            b_ds = similarity_gradient(b_e, b_de, b_dn, b_shift, scale, SIGMOID)
        store_tile(p_s, bounded(b_ds, p_power), o_local, o_p, m_out, PADDED, stride_w, UPCAST)
        if p_weights_grad is not None:
            b_a = b_e * b_i[:, None]
            store_tile(p_a, b_a, o_local, o_p, m_out, PADDED, stride_w, UPCAST)
            b_a = bounded(b_a * tl.where(m_clamped, 0.0, -b_k * b_r)[:, None], p_power)
            store_tile(p_b + image * PADDED, b_a, o_local, o_p, m_out, PADDED, stride_w, UPCAST)


@triton.jit(do_not_specialize=["J", "N", "IMAGES", "FIRST", "I"])
def word_levels_kernel(
    p_products,  # [N, IMAGES * PADDED]: S, stride_w from row to row
    p_starts,  # [J + 1] int32
    p_scales,  # [2, I] or None
    p_word_levels,  # [J, IMAGES * PADDED]
    stride_w, stride_l,
    I, J, FIRST, IMAGES,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Log sum exp of S over a caption's words, for each patch."""
    o_j, o_column, m, first, end, unit = caption_columns(p_starts, p_scales, I, FIRST, IMAGES, PADDED, BLOCK)
    b_top = tl.full([BLOCK], -float("inf"), tl.float32)
    row = first
    while row < end:
        b_top = tl.maximum(
            b_top, tl.load(p_products + tl.cast(row, tl.int64) * stride_w + o_column, mask=m, other=0.0) * unit
        )
        row += 1
    b_sum = tl.zeros([BLOCK], tl.float32)
    row = first
    while row < end:
        b_s = tl.load(p_products + tl.cast(row, tl.int64) * stride_w + o_column, mask=m, other=0.0) * unit
        b_sum += tl.exp2((b_s - b_top) * LOG2E)
        row += 1
    tl.store(p_word_levels + o_j.to(tl.int64) * stride_l + o_column, b_top + tl.log(b_sum), mask=m & (first < end))


@triton.jit
def caption_columns(p_starts, p_scales, I, FIRST, IMAGES, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """(caption, columns, which are there, first row, end, the unit of S) of this program."""
    blocks = tl.cdiv(IMAGES * PADDED, BLOCK)
    o_j = tl.program_id(0) // blocks
    o_column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    m = o_column < IMAGES * PADDED
    unit = tl.full([BLOCK], 1.0, tl.float32)
    if p_scales is not None:
        unit = tl.load(p_scales + I + FIRST + o_column // PADDED, mask=m, other=1.0)
    return o_j, o_column, m, tl.load(p_starts + o_j), tl.load(p_starts + o_j + 1), unit


@triton.jit(do_not_specialize=["J", "N", "IMAGES", "FIRST", "I"])
def word_gradient_kernel(
    p_products,  # [N, IMAGES * PADDED]: S
    p_forms,  # the same: B dB
    p_word_levels,  # [J, IMAGES * PADDED]
    p_starts,  # [J + 1] int32
    p_image_mask,  # [I, P] bool or None
    p_scales,  # [2, I] or None
    p_power,  # [2] or None
    p_similarity_grad,  # [N, IMAGES * PADDED]: dn E, to which the rest is added
    stride_vi, stride_vp, stride_w, stride_l,
    I, J, FIRST, IMAGES,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """B (dB - sum over words of B dB) of a caption's words."""
    o_j, o_column, m, first, end, unit = caption_columns(p_starts, p_scales, I, FIRST, IMAGES, PADDED, BLOCK)
    o_p = o_column % PADDED
    m = m & (o_p < P)
    if p_image_mask is not None:
        p_valid = p_image_mask + (FIRST + o_column // PADDED).to(tl.int64) * stride_vi + o_p * stride_vp
        m = m & (tl.load(p_valid, mask=m, other=0) != 0)
    b_sum = tl.zeros([BLOCK], tl.float32)
    row = first
    while row < end:
        b_sum += tl.load(p_forms + tl.cast(row, tl.int64) * stride_w + o_column, mask=m, other=0.0)
        row += 1
    b_level = tl.load(p_word_levels + o_j.to(tl.int64) * stride_l + o_column, mask=m & (first < end), other=0.0)
    o_one = tl.arange(0, 1)
    row = first
    while row < end:
        o_row = tl.cast(row, tl.int64) * stride_w
        b_b = tl.exp2((tl.load(p_products + o_row + o_column, mask=m, other=0.0) * unit - b_level) * LOG2E)
        b_ds = tl.load(p_similarity_grad + o_row + o_column, mask=m, other=0.0).to(tl.float32)
        b_ds += unit * (tl.load(p_forms + o_row + o_column, mask=m, other=0.0) - b_b * b_sum)
        b_ds = tl.where(m, bounded(b_ds, p_power), 0.0)
        store_tile(p_similarity_grad + o_row, b_ds[None, :], o_one, o_column, o_one < 1, IMAGES * PADDED, 0, UPCAST)
        row += 1

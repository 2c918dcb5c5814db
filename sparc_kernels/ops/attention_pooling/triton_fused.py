# mypy: disable-error-code="no-untyped-def"
"""Half precision, images of up to 256 patches: similarities, weights and cosines of a tile stay in registers.

A program owns an image and some tiles of tokens. Its Gram matrix stays in shared memory over the tiles, so that only
the two sides of the similarities are read again: what a multiprocessor can ask of the L2 cache is the narrowest place.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import columns_of, rows_product, store_tile
from sparc_kernels.ops.attention_pooling.triton_weights import (
    LOG2E,
    bounded,
    cosine_of,
    exponentials,
    length_factor,
    load_upstream,
    load_valid_patches,
    row_gradient,
    similarity_gradient,
)

RAGGED = ["I", "J", "N", "IMAGES", "FIRST", "RUNS"]


@triton.jit
def load_gram(
    p_gram, image, IMAGES, first, PADDED: tl.constexpr, BLOCK_P: tl.constexpr, WIDTH: tl.constexpr,
    UPCAST: tl.constexpr, DESCRIBED: tl.constexpr
):  # fmt: skip
    """[BLOCK_P, WIDTH] of an image's columns from ``first`` on, 0 outside."""
    if DESCRIBED:
        gram = tl.make_tensor_descriptor(
            p_gram, [IMAGES, PADDED, PADDED], [PADDED * PADDED, PADDED, 1], [1, BLOCK_P, WIDTH]
        )
        b_gram = tl.reshape(gram.load([image, 0, first]), (BLOCK_P, WIDTH))
    else:
        o_p, o_col = tl.arange(0, BLOCK_P), first + tl.arange(0, WIDTH)
        o_gram = image.to(tl.int64) * PADDED * PADDED + o_p[:, None] * PADDED + o_col[None, :]
        b_gram = tl.load(p_gram + o_gram, mask=(o_p < PADDED)[:, None] & (o_col < PADDED)[None, :], other=0.0)
    if UPCAST:
        b_gram = b_gram.to(tl.float32)
    return b_gram


@triton.jit
def sides(
    p_images, p_texts, I, N, PADDED: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr, DESCRIBED: tl.constexpr
):  # fmt: skip
    """Patches and tokens as ``products`` takes them: pointers or tensor descriptors."""
    if DESCRIBED:
        return (
            tl.make_tensor_descriptor(p_images, [I, PADDED, D], [PADDED * D, D, 1], [1, BLOCK_P, BLOCK_D]),
            tl.make_tensor_descriptor(p_texts, [N, D], [D, 1], [BLOCK_R, BLOCK_D]),
        )
    else:
        return p_images, p_texts


@triton.jit
def products(
    images, texts, o_i, first, count,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """S [BLOCK_R, BLOCK_P], 0 at patches that are not valid."""
    if DESCRIBED:
        b_s = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
        for o_d in range(0, D, BLOCK_D):
            b_texts = texts.load([first, o_d])
            b_images = tl.reshape(images.load([o_i.to(tl.int32), 0, o_d]), (BLOCK_P, BLOCK_D))
            if UPCAST:
                b_texts, b_images = b_texts.to(tl.float32), b_images.to(tl.float32)
            b_s = tl.dot(b_texts, tl.trans(b_images), b_s)
        return b_s
    else:
        o_row, o_p = first + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
        return rows_product(
            texts, images + o_i * PADDED * D, o_row, o_p, o_row < count, o_p < PADDED, D, 1, D, 1, D, BLOCK_D, "ieee",
            UPCAST
        )  # fmt: skip


@triton.jit
def tile_weights(
    images, texts, o_i, first, count, m_p, scale,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SIGMOID: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """S and E [ROWS, BLOCK_P], and the largest logit of each row."""
    b_s = products(images, texts, o_i, first, count, PADDED, D, BLOCK_R, BLOCK_P, BLOCK_D, UPCAST, DESCRIBED)
    # no logits beside S: the maximum is that of S, and a multiply-add goes into the exponential
    b_top = tl.zeros([BLOCK_R], tl.float32)
    if not SIGMOID:
        b_top = tl.max(tl.where(m_p[None, :], b_s, -float("inf")), axis=1) * (scale * LOG2E)
        b_top = tl.where(b_top == -float("inf"), 0.0, b_top)  # an image without a valid patch
    b_exponent = tl.where(m_p[None, :], b_s * (scale * LOG2E) - b_top[:, None], -float("inf"))
    b_e = exponentials(b_exponent, SIGMOID)
    return b_s, b_e, b_top


@triton.jit(do_not_specialize=RAGGED)
def fused_cosines_kernel(
    p_images,  # [I, PADDED, D]: as in ``copy_rows_kernel``, 0 at patches that are not valid
    p_texts,  # [N, D]: valid tokens first
    p_gram,  # [IMAGES, PADDED, PADDED]
    p_gamma,  # [N]
    p_starts,  # [J + 1] int32: the last one is the number of valid tokens
    p_image_mask,  # [I, P] bool or None
    p_scales,  # [I] or None: ``scale`` of each image
    p_cosines,  # [IMAGES, N]
    stride_vi, stride_vp,
    scale,
    I, J, N, IMAGES, FIRST, RUNS,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SIGMOID: tl.constexpr,
    SINK: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,  # rows lie at multiples of 16 bytes
    PARTS: tl.constexpr,  # of the Gram matrix's columns, one after the other: registers
):  # fmt: skip
    run, image = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS
    o_i = (FIRST + image).to(tl.int64)
    count = tl.load(p_starts + J)
    if p_scales is not None:
        scale = tl.load(p_scales + o_i)
    m_p = load_valid_patches(p_image_mask, o_i, tl.arange(0, BLOCK_P), stride_vi, stride_vp, P)
    images, texts = sides(p_images, p_texts, I, N, PADDED, D, BLOCK_R, BLOCK_P, BLOCK_D, DESCRIBED)
    WIDTH: tl.constexpr = BLOCK_P // PARTS
    grams = ()
    for part in tl.static_range(PARTS):
        b_gram = load_gram(p_gram, image, IMAGES, part * WIDTH, PADDED, BLOCK_P, WIDTH, UPCAST, DESCRIBED)
        grams = grams + (b_gram,)
    tile = run
    while tile * BLOCK_R < count:
        o_row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        m_row = o_row < count
        b_s, b_e, b_top = tile_weights(
            images, texts, o_i, tile * BLOCK_R, count, m_p, scale, PADDED, D, BLOCK_R, BLOCK_P, BLOCK_D, SIGMOID, UPCAST,
            DESCRIBED
        )  # fmt: skip
        b_z = length_factor(tl.sum(b_e, axis=1), b_top, SIGMOID, SINK)
        b_n = tl.sum(b_e * b_s, axis=1)
        b_half = b_e.to(grams[0].dtype)
        parts = columns_of(b_half, PARTS)
        b_q = tl.zeros([BLOCK_R], tl.float32)
        for part in tl.static_range(PARTS):
            b_q += tl.sum(tl.dot(b_half, grams[part]) * parts[part].to(tl.float32), axis=1)
        b_gamma = tl.load(p_gamma + o_row, mask=m_row, other=0.0)
        b_r, _, _ = cosine_of(b_n, b_q, b_z, b_gamma)
        tl.store(p_cosines + image.to(tl.int64) * N + o_row, b_r, mask=m_row)
        tile += RUNS


@triton.jit(do_not_specialize=[*RAGGED, "FIRST_ROW", "LAST_ROW"])  # stride_w says how wide rows can be written
def fused_gradient_kernel(
    p_images,  # [I, PADDED, D]
    p_texts,  # [N, D]
    p_gram,  # [IMAGES, PADDED, PADDED]
    p_gamma,  # [N]
    p_owners,  # [N] int32: captions of valid tokens
    p_starts,  # [J + 1] int32
    p_image_mask,  # [I, P] bool or None
    p_scales,  # [I] or None
    p_grad_scores,  # [I, J]
    p_levels,  # [I, J] or None: mean
    p_power,  # [2] or None: a power of two in front of the results
    p_similarity_grad,  # [rows, IMAGES * PADDED], stride_w from row to row: dS
    p_weights,  # the same: E / sqrt q, or None: not wanted
    p_weights_grad,  # the same: 2 dq q E / sqrt q, or None
    p_radial,  # [IMAGES, N]: k r; or None
    stride_vi, stride_vp, stride_w,
    scale, pooling_scale,
    I, J, N, IMAGES, FIRST, RUNS, FIRST_ROW, LAST_ROW,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SIGMOID: tl.constexpr,
    SINK: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,  # rows lie at multiples of 16 bytes
):  # fmt: skip
    """What the products of the backward pass take, of rows FIRST_ROW to LAST_ROW; 0 behind the last valid token."""
    run, image = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS
    o_i = (FIRST + image).to(tl.int64)
    count = tl.load(p_starts + J)
    if p_scales is not None:
        scale = tl.load(p_scales + o_i)
    m_p = load_valid_patches(p_image_mask, o_i, tl.arange(0, BLOCK_P), stride_vi, stride_vp, P)
    images, texts = sides(p_images, p_texts, I, N, PADDED, D, BLOCK_R, BLOCK_P, BLOCK_D, DESCRIBED)
    b_gram = load_gram(p_gram, image, IMAGES, 0, PADDED, BLOCK_P, BLOCK_P, UPCAST, DESCRIBED)
    o_p = tl.arange(0, BLOCK_P)
    o_out = image * PADDED
    first = FIRST_ROW + run * BLOCK_R
    while first < LAST_ROW:
        o_row = first + tl.arange(0, BLOCK_R)
        m_row, m_out = o_row < count, o_row < LAST_ROW
        b_s, b_e, b_top = tile_weights(
            images, texts, o_i, first, count, m_p, scale, PADDED, D, BLOCK_R, BLOCK_P, BLOCK_D, SIGMOID, UPCAST,
            DESCRIBED
        )  # fmt: skip
        b_z = length_factor(tl.sum(b_e, axis=1), b_top, SIGMOID, SINK)
        b_half = b_e.to(b_gram.dtype)
        b_e = b_half.to(tl.float32)
        b_n = tl.sum(b_e * b_s, axis=1)
        b_h = tl.dot(b_half, b_gram)
        b_q = tl.sum(b_h * b_e, axis=1)
        b_gamma = tl.load(p_gamma + o_row, mask=m_row, other=0.0)
        b_r, b_i, m_clamped = cosine_of(b_n, b_q, b_z, b_gamma)
        b_k = load_upstream(p_grad_scores, p_levels, p_owners, p_starts, p_power, o_i, o_row, m_row, b_r, pooling_scale, J)
        if p_radial is not None:
            tl.store(p_radial + image.to(tl.int64) * N + o_row, b_k * b_r, mask=m_row)
        b_dn, b_twice_dq, b_shift = row_gradient(b_k, b_n, b_z, b_r, b_i, b_gamma, m_clamped)
        b_de = b_dn[:, None] * b_s + b_twice_dq[:, None] * b_h
        b_ds = similarity_gradient(b_e, b_de, b_dn, b_shift, scale, SIGMOID)
        o_local = o_row - FIRST_ROW
        store_tile(p_similarity_grad + o_out, bounded(b_ds, p_power), o_local, o_p, m_out, PADDED, stride_w, UPCAST)
        if p_weights is not None:
            b_a = tl.where(m_row[:, None], b_e * b_i[:, None], 0.0)
            store_tile(p_weights + o_out, b_a, o_local, o_p, m_out, PADDED, stride_w, UPCAST)
            b_a *= tl.where(m_clamped, 0.0, -b_k * b_r)[:, None]
            store_tile(p_weights_grad + o_out, bounded(b_a, p_power), o_local, o_p, m_out, PADDED, stride_w, UPCAST)
        first += RUNS * BLOCK_R

# mypy: disable-error-code="no-untyped-def, assignment"
"""Half precision, images of up to 256 patches: similarities, weights and cosines of a tile stay in registers.

A program owns an image and some tiles of tokens. Its Gram matrix stays in shared memory over the tiles, so that only
the two sides of the similarities are read again: what a multiprocessor can ask of the L2 cache is the narrowest place.
Patches come in up to three pieces, since the sides of a tile are powers of two: 196 of them take 128 + 64 + 16 columns
of products and registers, not 256. W_0, W_1 and W_2 are their widths, the last ones perhaps 0.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import rows_product
from sparc_kernels.ops.attention_pooling.triton_weights import (
    LOG2E,
    cosine_of,
    exponentials,
    length_factor,
    load_valid_patches,
)

RAGGED = ["I", "J", "N", "IMAGES", "FIRST", "RUNS"]


@triton.jit
def piece(part: tl.constexpr, W_0: tl.constexpr, W_1: tl.constexpr, W_2: tl.constexpr):
    """[WIDTH] patches of a piece."""
    if part == 0:
        return tl.arange(0, W_0)
    elif part == 1:
        return W_0 + tl.arange(0, W_1)
    else:
        return W_0 + W_1 + tl.arange(0, W_2)


@triton.jit
def valid_pieces(
    p_image_mask, o_i, stride_vi, stride_vp, P: tl.constexpr, W_0: tl.constexpr, W_1: tl.constexpr, W_2: tl.constexpr,
    PIECES: tl.constexpr
):  # fmt: skip
    """Whether patches are valid, piece by piece."""
    valid = ()
    for part in tl.static_range(PIECES):
        o_p = piece(part, W_0, W_1, W_2)
        valid += (load_valid_patches(p_image_mask, o_i, o_p, stride_vi, stride_vp, P),)
    return valid


@triton.jit
def load_gram(
    p_gram, image, PADDED: tl.constexpr, W_0: tl.constexpr, W_1: tl.constexpr, W_2: tl.constexpr,
    PIECES: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """G in pieces of rows times pieces of columns, one row of pieces after the other; 0 outside."""
    grams = ()
    for above in tl.static_range(PIECES):
        for beside in tl.static_range(PIECES):
            o_row, o_col = piece(above, W_0, W_1, W_2), piece(beside, W_0, W_1, W_2)
            o_gram = image.to(tl.int64) * PADDED * PADDED + o_row[:, None] * PADDED + o_col[None, :]
            b_gram = tl.load(p_gram + o_gram, mask=(o_row < PADDED)[:, None] & (o_col < PADDED)[None, :], other=0.0)
            if UPCAST:
                b_gram = b_gram.to(tl.float32)
            grams += (b_gram,)
    return grams


@triton.jit
def described(
    p_images, p_texts, I, N, PADDED: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    W_0: tl.constexpr, W_1: tl.constexpr, W_2: tl.constexpr, DESCRIBED: tl.constexpr
):  # fmt: skip
    """Tokens, and patches by pieces, as ``products`` takes them: tensor descriptors, or pointers."""
    if DESCRIBED:
        texts = tl.make_tensor_descriptor(p_texts, [N, D], [D, 1], [BLOCK_R, BLOCK_D])
        first = tl.make_tensor_descriptor(p_images, [I, PADDED, D], [PADDED * D, D, 1], [1, W_0, BLOCK_D])
        if W_1 == 0:
            return texts, (first,)
        else:
            second = tl.make_tensor_descriptor(p_images, [I, PADDED, D], [PADDED * D, D, 1], [1, W_1, BLOCK_D])
            if W_2 == 0:
                return texts, (first, second)
            else:
                third = tl.make_tensor_descriptor(p_images, [I, PADDED, D], [PADDED * D, D, 1], [1, W_2, BLOCK_D])
                return texts, (first, second, third)
    else:
        return p_texts, (p_images,)


@triton.jit
def add_channels(
    b_texts, images, image, first, o_d, b_s, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr
):
    """A piece's products with those of some more channels, by tensor descriptors; patches outside of an image are 0."""
    b_images = tl.reshape(images.load([image, first, o_d]), (WIDTH, BLOCK_D))
    if UPCAST:
        b_images = b_images.to(tl.float32)
    return tl.dot(b_texts, tl.trans(b_images), b_s)


@triton.jit
def no_products(BLOCK_R: tl.constexpr, W_0: tl.constexpr, W_1: tl.constexpr, W_2: tl.constexpr):
    """Three zero tiles for ``products`` to add to; those of pieces that are not there are small."""
    WIDTH_1: tl.constexpr = W_1 if W_1 > 0 else 16
    WIDTH_2: tl.constexpr = W_2 if W_2 > 0 else 16
    b_0 = tl.zeros([BLOCK_R, W_0], tl.float32)
    b_1 = tl.zeros([BLOCK_R, WIDTH_1], tl.float32)
    b_2 = tl.zeros([BLOCK_R, WIDTH_2], tl.float32)
    return b_0, b_1, b_2


@triton.jit
def products(
    sums, texts, images, o_i, first, count,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    W_0: tl.constexpr,
    W_1: tl.constexpr,
    W_2: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """``sums`` with S [BLOCK_R, WIDTH] of each piece, which is 0 at patches that are not valid."""
    b_0, b_1, b_2 = sums
    if DESCRIBED:
        image = o_i.to(tl.int32)
        for o_d in range(0, D, BLOCK_D):
            b_texts = texts.load([first, o_d])
            if UPCAST:
                b_texts = b_texts.to(tl.float32)
            b_0 = add_channels(b_texts, images[0], image, 0, o_d, b_0, W_0, BLOCK_D, UPCAST)
            if W_1 > 0:
                b_1 = add_channels(b_texts, images[1], image, W_0, o_d, b_1, W_1, BLOCK_D, UPCAST)
            if W_2 > 0:
                b_2 = add_channels(b_texts, images[2], image, W_0 + W_1, o_d, b_2, W_2, BLOCK_D, UPCAST)
    else:
        b_0 += by_pointers(
            texts, images[0], o_i, first, count, piece(0, W_0, W_1, W_2), PADDED, D, BLOCK_R, BLOCK_D, UPCAST
        )
        if W_1 > 0:
            b_1 += by_pointers(
                texts, images[0], o_i, first, count, piece(1, W_0, W_1, W_2), PADDED, D, BLOCK_R, BLOCK_D, UPCAST
            )
        if W_2 > 0:
            b_2 += by_pointers(
                texts, images[0], o_i, first, count, piece(2, W_0, W_1, W_2), PADDED, D, BLOCK_R, BLOCK_D, UPCAST
            )
    return b_0, b_1, b_2


@triton.jit
def by_pointers(
    p_texts, p_images, o_i, first, count, o_p, PADDED: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """S of a piece, whatever the rows' alignment."""
    o_row = first + tl.arange(0, BLOCK_R)
    return rows_product(
        p_texts, p_images + o_i * PADDED * D, o_row, o_p, o_row < count, o_p < PADDED, D, 1, D, 1, D, BLOCK_D, "ieee",
        UPCAST
    )  # fmt: skip


@triton.jit
def rounded(b_x, dtype: tl.constexpr, ROUND: tl.constexpr):
    """In ``dtype``; by an instruction for two numbers, where there is one. The compiler takes one for each, of the pipe
    that exponentials are made in, if a number is wanted alone later, too."""
    if ROUND is None:
        return b_x.to(dtype)
    elif dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(ROUND, "=r,r,r", [b_x], tl.bfloat16, True, 2)
    else:
        return tl.inline_asm_elementwise(ROUND, "=r,r,r", [b_x], tl.float16, True, 2)


@triton.jit
def tile_weights(
    similarities, valid, scale, dtype: tl.constexpr, PIECES: tl.constexpr, SIGMOID: tl.constexpr, SINK: tl.constexpr,
    ROUND: tl.constexpr
):  # fmt: skip
    """E of each piece as an operand, n and z [BLOCK_R]."""
    # no logits beside S: the maximum is that of S, and a multiply-add goes into the exponential
    b_top = tl.zeros([similarities[0].shape[0]], tl.float32)
    if not SIGMOID:
        b_top -= float("inf")
        for part in tl.static_range(PIECES):
            b_s = tl.where(valid[part][None, :], similarities[part], -float("inf"))
            b_top = tl.maximum(b_top, tl.max(b_s, axis=1))
        b_top = tl.where(b_top == -float("inf"), 0.0, b_top * (scale * LOG2E))  # an image without a valid patch
    b_n, b_z = tl.zeros_like(b_top), tl.zeros_like(b_top)
    weights = ()
    for part in tl.static_range(PIECES):
        b_exponent = similarities[part] * (scale * LOG2E) - b_top[:, None]
        b_e = exponentials(tl.where(valid[part][None, :], b_exponent, -float("inf")), SIGMOID)
        b_z += tl.sum(b_e, axis=1)
        b_n += tl.sum(b_e * similarities[part], axis=1)
        weights += (rounded(b_e, dtype, ROUND),)
    return weights, b_n, length_factor(b_z, b_top, SIGMOID, SINK)


@triton.jit
def form(weights, grams, beside: tl.constexpr, PIECES: tl.constexpr):
    """H [BLOCK_R, WIDTH] of a piece."""
    b_h = tl.dot(weights[0], grams[beside])
    for above in tl.static_range(1, PIECES):
        b_h = tl.dot(weights[above], grams[above * PIECES + beside], b_h)
    return b_h


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
    W_0: tl.constexpr,
    W_1: tl.constexpr,
    W_2: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SIGMOID: tl.constexpr,
    SINK: tl.constexpr,
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,  # rows lie at multiples of 16 bytes
    ROUND: tl.constexpr,  # assembly that rounds two numbers, or None
):  # fmt: skip
    run, image = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS
    o_i = (FIRST + image).to(tl.int64)
    count = tl.load(p_starts + J)
    if p_scales is not None:
        scale = tl.load(p_scales + o_i)
    PIECES: tl.constexpr = 1 + (W_1 > 0) + (W_2 > 0)
    valid = valid_pieces(p_image_mask, o_i, stride_vi, stride_vp, P, W_0, W_1, W_2, PIECES)
    texts, images = described(p_images, p_texts, I, N, PADDED, D, BLOCK_R, BLOCK_D, W_0, W_1, W_2, DESCRIBED)
    grams = load_gram(p_gram, image, PADDED, W_0, W_1, W_2, PIECES, UPCAST)
    tile = run
    while tile * BLOCK_R < count:
        o_row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        m_row = o_row < count
        similarities = products(
            no_products(BLOCK_R, W_0, W_1, W_2), texts, images, o_i, tile * BLOCK_R, count, PADDED, D, BLOCK_R, BLOCK_D,
            W_0, W_1, W_2, UPCAST, DESCRIBED
        )  # fmt: skip
        weights, b_n, b_z = tile_weights(similarities, valid, scale, grams[0].dtype, PIECES, SIGMOID, SINK, ROUND)
        b_q = tl.zeros([BLOCK_R], tl.float32)
        for part in tl.static_range(PIECES):
            b_q += tl.sum(form(weights, grams, part, PIECES) * weights[part].to(tl.float32), axis=1)
        b_gamma = tl.load(p_gamma + o_row, mask=m_row, other=0.0)
        b_r, _, _ = cosine_of(b_n, b_q, b_z, b_gamma)
        tl.store(p_cosines + image.to(tl.int64) * N + o_row, b_r, mask=m_row)
        tile += RUNS

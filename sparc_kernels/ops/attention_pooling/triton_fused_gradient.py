# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward pass of half precision, images of up to 256 patches: what its products take, in registers of a tile.

S, E and H of a tile do not fit side by side where an image has more than 128 patches. The weights need S, and the row
numbers H; then S is computed once more, on top of H times a number of its row: dE = dn (S + rho H), rho = 2 dq / dn.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton import tiles
from sparc_kernels.ops._triton.tiles import store_tile
from sparc_kernels.ops.attention_pooling.triton_fused import (
    RAGGED,
    described,
    form,
    load_gram,
    no_products,
    piece,
    products,
    rounded,
    tile_weights,
    valid_pieces,
)
from sparc_kernels.ops.attention_pooling.triton_weights import bounded, cosine_of, load_upstream, row_gradient

half = tiles.rounded


@triton.jit
def described_results(
    p_result, rows, IMAGES, stride_w, PADDED: tl.constexpr, BLOCK_R: tl.constexpr, W_0: tl.constexpr,
    W_1: tl.constexpr, W_2: tl.constexpr, DESCRIBED: tl.constexpr
):  # fmt: skip
    """A matrix [rows, images, patches] by pieces of patches, as ``put`` takes it: tensor descriptors, or pointers."""
    if DESCRIBED:
        first = tl.make_tensor_descriptor(p_result, [rows, IMAGES, PADDED], [stride_w, PADDED, 1], [BLOCK_R, 1, W_0])
        if W_1 == 0:
            return (first,)
        else:
            second = tl.make_tensor_descriptor(
                p_result, [rows, IMAGES, PADDED], [stride_w, PADDED, 1], [BLOCK_R, 1, W_1]
            )
            if W_2 == 0:
                return first, second
            else:
                third = tl.make_tensor_descriptor(
                    p_result, [rows, IMAGES, PADDED], [stride_w, PADDED, 1], [BLOCK_R, 1, W_2]
                )
                return first, second, third
    else:
        return (p_result,)


@triton.jit
def put(
    results, b_x, row, rows, image, stride_w, part: tl.constexpr, dtype: tl.constexpr, PADDED: tl.constexpr,
    W_0: tl.constexpr, W_1: tl.constexpr, W_2: tl.constexpr, UPCAST: tl.constexpr, DESCRIBED: tl.constexpr,
    ROUND: tl.constexpr
):  # fmt: skip
    """A piece of rows ``row`` and following of a result, as far as they are less than ``rows``.

    Copies by tensor descriptors need no address in a thread, of which all pieces' together spill.
    """
    o_p = piece(part, W_0, W_1, W_2)
    if DESCRIBED:
        first: tl.constexpr = 0 if part == 0 else W_0 if part == 1 else W_0 + W_1
        if b_x.dtype == tl.float32:
            b_x = half(b_x, True).to(dtype) if UPCAST else rounded(b_x, dtype, ROUND)
        results[part].store([row, image, first], tl.reshape(b_x, (b_x.shape[0], 1, b_x.shape[1])))
    else:
        o_row = row + tl.arange(0, b_x.shape[0])
        p_own = results[0] + image * PADDED
        store_tile(p_own, b_x.to(tl.float32), o_row, o_p, o_row < rows, PADDED, stride_w, UPCAST)


@triton.jit
def on_top(forms, similarities, b_rho, BLOCK_R: tl.constexpr, PIECES: tl.constexpr, AGAIN: tl.constexpr):
    """rho H, with S unless it is computed again, as ``products`` takes it."""
    found = ()
    for part in tl.static_range(3):
        if part >= PIECES:
            b_x = tl.zeros([BLOCK_R, 16], tl.float32)
        else:
            b_x = forms[part] * b_rho[:, None]
            if not AGAIN:
                b_x += similarities[part]
        found += (b_x,)
    return found


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
    p_power,  # [2] or None: a power of two in front of the results; float16
    p_similarity_grad,  # [rows, IMAGES * PADDED], stride_w from row to row: dS
    p_weights,  # the same: E, of float16 over sqrt q; or None: not wanted
    p_weights_grad,  # the same: 2 dq E, of float16 times sqrt q; or None
    p_radial,  # [IMAGES, N]: k r; or None
    stride_vi, stride_vp, stride_w,
    scale, pooling_scale,
    I, J, N, IMAGES, FIRST, RUNS, FIRST_ROW, LAST_ROW,
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
    AGAIN: tl.constexpr,  # S is computed again
    FILL: tl.constexpr,  # 0 behind the last valid token, which a library's products read
    UPCAST: tl.constexpr,
    DESCRIBED: tl.constexpr,  # rows lie at multiples of 16 bytes
    ROUND: tl.constexpr,  # assembly that rounds two numbers, or None
):  # fmt: skip
    """What the products of the backward pass take, of rows FIRST_ROW to LAST_ROW up to the last valid token."""
    run, image = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS
    o_i = (FIRST + image).to(tl.int64)
    count, rows = tl.load(p_starts + J), LAST_ROW - FIRST_ROW
    if p_scales is not None:
        scale = tl.load(p_scales + o_i)
    PIECES: tl.constexpr = 1 + (W_1 > 0) + (W_2 > 0)
    dtype: tl.constexpr = p_similarity_grad.dtype.element_ty
    valid = valid_pieces(p_image_mask, o_i, stride_vi, stride_vp, P, W_0, W_1, W_2, PIECES)
    texts, images = described(p_images, p_texts, I, N, PADDED, D, BLOCK_R, BLOCK_D, W_0, W_1, W_2, DESCRIBED)
    grams = load_gram(p_gram, image, PADDED, W_0, W_1, W_2, PIECES, UPCAST)
    out = described_results(p_similarity_grad, rows, IMAGES, stride_w, PADDED, BLOCK_R, W_0, W_1, W_2, DESCRIBED)
    if p_weights is not None:
        left = described_results(p_weights, rows, IMAGES, stride_w, PADDED, BLOCK_R, W_0, W_1, W_2, DESCRIBED)
        right = described_results(p_weights_grad, rows, IMAGES, stride_w, PADDED, BLOCK_R, W_0, W_1, W_2, DESCRIBED)
    first = FIRST_ROW + run * BLOCK_R
    while first < tl.minimum(count, LAST_ROW):
        row = first - FIRST_ROW
        o_row = first + tl.arange(0, BLOCK_R)
        m_row = o_row < count
        none = no_products(BLOCK_R, W_0, W_1, W_2)
        similarities = products(
            none, texts, images, o_i, first, count, PADDED, D, BLOCK_R, BLOCK_D, W_0, W_1, W_2, UPCAST, DESCRIBED
        )
        weights, b_n, b_z = tile_weights(similarities, valid, scale, grams[0].dtype, PIECES, SIGMOID, SINK, ROUND)
        if p_weights is not None and p_power is None:
            for part in tl.static_range(PIECES):
                put(
                    left, weights[part], row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST,
                    DESCRIBED, ROUND
                )  # fmt: skip
        b_q = tl.zeros([BLOCK_R], tl.float32)
        forms = ()
        for part in tl.static_range(PIECES):
            b_h = form(weights, grams, part, PIECES)
            b_q += tl.sum(b_h * weights[part].to(tl.float32), axis=1)
            forms += (b_h,)
        b_gamma = tl.load(p_gamma + o_row, mask=m_row, other=1.0)
        b_r, b_i, m_clamped = cosine_of(b_n, b_q, b_z, b_gamma)
        b_k = load_upstream(
            p_grad_scores, p_levels, p_owners, p_starts, p_power, o_i, o_row, m_row, b_r, pooling_scale, J
        )
        if p_radial is not None:
            tl.store(p_radial + image.to(tl.int64) * N + o_row, b_k * b_r, mask=m_row)
        b_dn, b_twice_dq, b_shift = row_gradient(b_k, b_n, b_z, b_r, b_i, b_gamma, m_clamped)
        b_w = tl.where(m_clamped, 0.0, -b_k * b_r) * b_i
        if p_power is None:
            b_w = b_twice_dq
        b_constant, b_slope = b_dn, scale * b_dn
        if not SIGMOID:
            b_constant -= scale * b_shift
        sums = on_top(
            forms, similarities, tl.where(m_clamped, 0.0, -b_r * b_i / b_gamma), BLOCK_R, PIECES, AGAIN
        )  # 2 dq / dn, without k, which may be 0
        if AGAIN:
            sums = products(
                sums, texts, images, o_i, first, count, PADDED, D, BLOCK_R, BLOCK_D, W_0, W_1, W_2, UPCAST, DESCRIBED
            )
        for part in tl.static_range(PIECES):
            b_e = weights[part].to(tl.float32)
            b_de = b_slope[:, None] * sums[part]
            if SIGMOID:
                b_de *= 1.0 - b_e
            b_ds = bounded(b_e * (b_constant[:, None] + b_de), p_power)
            if p_weights is not None:
                b_a = b_e
                if p_power is not None:
                    b_a = b_e * b_i[:, None]
                    put(
                        left, b_a, row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST, DESCRIBED,
                        ROUND
                    )  # fmt: skip
                b_a = bounded(b_e * b_w[:, None], p_power)
                put(
                    right, b_a, row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST, DESCRIBED, ROUND
                )
            put(out, b_ds, row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST, DESCRIBED, ROUND)
        first += RUNS * BLOCK_R
    if FILL:
        while first < LAST_ROW:
            row = first - FIRST_ROW
            for part in tl.static_range(PIECES):
                b_none = tl.zeros([BLOCK_R, W_0 if part == 0 else W_1 if part == 1 else W_2], tl.float32)
                put(
                    out, b_none, row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST, DESCRIBED,
                    ROUND
                )  # fmt: skip
                if p_weights is not None:
                    put(
                        left, b_none, row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST,
                        DESCRIBED, ROUND
                    )  # fmt: skip
                    put(
                        right, b_none, row, rows, image, stride_w, part, dtype, PADDED, W_0, W_1, W_2, UPCAST,
                        DESCRIBED, ROUND
                    )  # fmt: skip
            first += RUNS * BLOCK_R

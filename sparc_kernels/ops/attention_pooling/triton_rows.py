# mypy: disable-error-code="no-untyped-def"
"""Kernels along tokens, captions and scores: which tokens are valid, copies of them, pooled cosines, ends of gradients.

Copies hold unit vectors, or raw vectors over a power of two: the valid tokens of all captions one behind the other, in
their order, then zeros; the patches of an image in their places, zeros where one is not valid. So padding and holes of
captions cost the fused kernels nothing, and products of a library may run over all rows.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._captions.triton_rows import count_and_place, load_caption
from sparc_kernels.ops._triton.tiles import MIN_NORM, load_tile, store_tile
from sparc_kernels.ops.attention_pooling.triton_weights import LOG2E


@triton.jit(do_not_specialize=["J", "L", "N"])
def caption_counts_kernel(
    p_mask,  # [J, L] bool or None
    p_offsets,  # [J + 1] int64 or None
    p_counts,  # [J] int32
    stride_mj, stride_ml,
    J, L, N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Valid tokens of each caption. Packed, L is the longest caption."""
    o_j = tl.program_id(0)
    count = L
    if p_mask is not None:
        count, _ = count_and_place(p_mask, None, o_j.to(tl.int64), L, 0, stride_mj, stride_ml, BLOCK)
    elif p_offsets is not None:
        _, count = load_caption(None, p_offsets, o_j, J, L, N)
    tl.store(p_counts + o_j, count)


@triton.jit(do_not_specialize=["J"])
def starts_kernel(
    p_counts,  # [J] int32
    p_starts,  # [J + 1] int32: sums of the counts before
    J,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program."""
    total, first = 0, 0
    while first < J:
        o_j = first + tl.arange(0, BLOCK)
        b_count = tl.load(p_counts + o_j, mask=o_j < J, other=0)
        tl.store(p_starts + o_j, total + tl.cumsum(b_count, axis=0) - b_count, mask=o_j < J)
        total += tl.sum(b_count, axis=0)
        first += BLOCK
    tl.store(p_starts + J, total)


@triton.jit(do_not_specialize=["J", "L", "N"])
def caption_rows_kernel(
    p_mask,  # [J, L] bool or None
    p_offsets,  # [J + 1] int64 or None
    p_starts,  # [J + 1] int32
    p_rows,  # [N] int32: numbers of the valid tokens
    p_owners,  # [N] int32: their captions
    stride_mj, stride_ml,
    J, L, N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_j = tl.program_id(0)
    start, end = tl.load(p_starts + o_j), tl.load(p_starts + o_j + 1)
    first = o_j * L
    if p_offsets is not None:
        first, _ = load_caption(None, p_offsets, o_j, J, L, N)
    if p_mask is not None:
        count_and_place(p_mask, p_rows + start, o_j.to(tl.int64), L, first, stride_mj, stride_ml, BLOCK)
    done = start
    while done < end:
        o = done + tl.arange(0, BLOCK)
        if p_mask is None:
            tl.store(p_rows + o, first + o - start, mask=o < end)
        tl.store(p_owners + o, tl.zeros([BLOCK], tl.int32) + o_j, mask=o < end)
        done += BLOCK


@triton.jit
def source_rows(p_rows, p_starts, p_mask, o, N_ROWS, J, L, stride_mj, stride_ml, PADDED: tl.constexpr):
    """(item, row, token, whether valid) of rows of a copy: of captions where ``p_rows`` names them, else of images."""
    if p_rows is not None:
        m = o < tl.load(p_starts + J)
        b_token = tl.load(p_rows + o, mask=m, other=0)
        o_item, o_row = b_token // L, b_token % L
    else:
        o_item, o_row = o // PADDED, o % PADDED
        b_token = o_item * L + o_row
        m = (o < N_ROWS) & (o_row < L)
        if p_mask is not None:
            p_valid = p_mask + o_item.to(tl.int64) * stride_mj + o_row.to(tl.int64) * stride_ml
            m = m & (tl.load(p_valid, mask=m, other=0) != 0)
    return o_item, o_row, b_token, m


@triton.jit
def load_factors(p_inverse, p_units, o_item, b_token, m, NORMALIZE: tl.constexpr, PER_ITEM: tl.constexpr):
    """[ROWS]: what a token is multiplied with in its copy."""
    if NORMALIZE:
        return tl.load(p_inverse + b_token, mask=m, other=0.0)
    elif p_units is None:
        return tl.where(m, 1.0, 0.0)
    elif PER_ITEM:
        return tl.load(p_units + o_item, mask=m, other=0.0)
    else:
        return tl.where(m, tl.load(p_units), 0.0)


@triton.jit(do_not_specialize=["N_ROWS", "J", "L"])
def copy_rows_kernel(
    p_tokens,  # [items, L, D]
    p_inverse,  # [items * L], of the norms
    p_mask,  # [items, L] bool or None; of images
    p_rows,  # [N_ROWS] int32 or None: not images
    p_starts,  # [J + 1] int32 or None
    p_units,  # [items] or [1], or None: powers of two
    p_copy,  # [N_ROWS, D]
    p_gamma,  # [N_ROWS] or None: inverse norms of the copies
    stride_tj, stride_tl, stride_td, stride_mj, stride_ml,
    N_ROWS, J, L,
    PADDED: tl.constexpr,  # rows of an image
    NORMALIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_item, o_row, b_token, m = source_rows(p_rows, p_starts, p_mask, o, N_ROWS, J, L, stride_mj, stride_ml, PADDED)
    b_factor = load_factors(p_inverse, p_units, o_item, b_token, m, NORMALIZE, p_rows is None)
    o_token = o_item.to(tl.int64) * stride_tj + o_row.to(tl.int64) * stride_tl
    b_squares = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_tokens, o_token, o_d, m, D, 1, stride_td, UPCAST).to(tl.float32) * b_factor[:, None]
        store_tile(p_copy, b_x, o, o_d, o < N_ROWS, D, D, UPCAST)
        if not UPCAST:
            b_x = b_x.to(p_copy.dtype.element_ty).to(tl.float32)
        b_squares += b_x * b_x
    if p_gamma is not None:
        b_norm = tl.sqrt(tl.sum(b_squares, axis=1))
        tl.store(p_gamma + o, 1.0 / tl.maximum(b_norm, MIN_NORM), mask=o < N_ROWS)


@triton.jit(do_not_specialize=["J", "N", "FIRST", "pooling_scale"])
def pooled_scores_kernel(
    p_cosines,  # [images, N]
    p_starts,  # [J + 1] int32
    p_patch_counts,  # [I] int32 or None
    p_scores,  # [I, J]
    p_levels,  # [I, J] or None: mean
    pooling_scale,
    J, N, FIRST,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image, block = tl.program_id(0) // tl.cdiv(J, BLOCK), tl.program_id(0) % tl.cdiv(J, BLOCK)
    o_i = (FIRST + image).to(tl.int64)
    o_j = block * BLOCK + tl.arange(0, BLOCK)
    b_first = tl.load(p_starts + o_j, mask=o_j < J, other=0)
    b_length = tl.load(p_starts + o_j + 1, mask=o_j < J, other=0) - b_first
    p_own = p_cosines + image.to(tl.int64) * N + b_first
    longest = tl.max(b_length, axis=0)
    b_top = tl.full([BLOCK], -float("inf"), tl.float32)
    if p_levels is not None:
        word = 0
        while word < longest:
            b_top = tl.maximum(b_top, tl.load(p_own + word, mask=word < b_length, other=-float("inf")))
            word += 1
        b_top *= pooling_scale
    b_sum = tl.zeros([BLOCK], tl.float32)
    word = 0
    while word < longest:
        b_r = tl.load(p_own + word, mask=word < b_length, other=0.0)
        if p_levels is not None:
            b_r = tl.where(word < b_length, tl.exp2((b_r * pooling_scale - b_top) * LOG2E), 0.0)
        b_sum += b_r
        word += 1
    m_some = b_length > 0
    if p_patch_counts is not None:
        m_some = m_some & (tl.load(p_patch_counts + o_i) > 0)
    if p_levels is not None:
        b_score = tl.where(m_some, b_top + tl.log(tl.where(m_some, b_sum, 1.0)), 0.0)
        tl.store(p_levels + o_i * J + o_j, b_score, mask=o_j < J)
    else:
        b_score = tl.where(m_some, b_sum / tl.maximum(b_length, 1).to(tl.float32), 0.0)
    tl.store(p_scores + o_i * J + o_j, b_score, mask=o_j < J)


@triton.jit(do_not_specialize=["N", "IMAGES"])
def sum_over_images_kernel(
    p_radial,  # [IMAGES, N]
    p_sum,  # [N]
    p_starts,  # [J + 1] int32
    N, IMAGES, J,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < tl.load(p_starts + J)
    b_sum = tl.zeros([BLOCK], tl.float32)
    if ADD:
        b_sum = tl.load(p_sum + o, mask=m, other=0.0)
    image = 0
    while image < IMAGES:
        b_sum += tl.load(p_radial + tl.cast(image, tl.int64) * N + o, mask=m, other=0.0)
        image += 1
    tl.store(p_sum + o, b_sum, mask=m)


@triton.jit(do_not_specialize=["N_ROWS", "J", "L"])
def grad_rows_kernel(
    p_tokens,  # [items, L, D]
    p_inverse,  # [items * L]
    p_mask,  # [items, L] bool or None; of images
    p_rows,  # [N_ROWS] int32 or None: not images
    p_starts,  # [J + 1] int32 or None
    p_units,  # [items] or [1], or None
    p_radial,  # [N_ROWS] or None: the sum of k r of a token
    p_power,  # [2] or None: results times power[1] are meant
    p_product,  # [N_ROWS, D] float32: gradient of the copies, from products
    p_grad,  # [items, L, D], contiguous
    stride_tj, stride_tl, stride_td, stride_mj, stride_ml,
    N_ROWS, J, L,
    PADDED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """b Y - T (T . b Y) b^2, or Y - T (sum of k r) b^2 where nothing is normalised; 0 at patches that are not valid."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_item, o_row, b_token, m = source_rows(p_rows, p_starts, p_mask, o, N_ROWS, J, L, stride_mj, stride_ml, PADDED)
    b_factor = load_factors(p_inverse, p_units, o_item, b_token, m, NORMALIZE, p_rows is None)
    m_store = m
    if p_rows is None:
        m_store = (o < N_ROWS) & (o_row < L)
    o_token = o_item.to(tl.int64) * stride_tj + o_row.to(tl.int64) * stride_tl
    b_inverse = tl.load(p_inverse + b_token, mask=m, other=0.0)
    b_inverse = tl.where(b_inverse < 1e12, b_inverse, 0.0)  # a norm that is clamped is a constant
    b_along = tl.zeros([BLOCK], tl.float32)
    if NORMALIZE:
        b_dot = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_x = load_tile(p_tokens, o_token, o_d, m, D, 1, stride_td, UPCAST).to(tl.float32)
            b_dot += b_x * load_tile(p_product, o, o_d, m, D, D, 1, False)
        b_along = tl.sum(b_dot, axis=1) * b_factor * b_inverse * b_inverse
    elif p_radial is not None:
        b_along = tl.load(p_radial + o, mask=m, other=0.0) * b_inverse * b_inverse
    unit = 1.0
    if p_power is not None:
        unit = tl.load(p_power + 1)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_tokens, o_token, o_d, m, D, 1, stride_td, UPCAST).to(tl.float32)
        b_y = load_tile(p_product, o, o_d, m, D, D, 1, False) * b_factor[:, None] - b_x * b_along[:, None]
        store_tile(p_grad, b_y * unit, b_token, o_d, m_store, D, D, UPCAST)

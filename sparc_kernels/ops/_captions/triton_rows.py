# mypy: disable-error-code="no-untyped-def"
"""Kernels and device functions along the tokens of images and captions: norms, how many are valid, where captions lie.

Prefixes as in ``ops/_triton/tiles.py``. A token is named by its number among all tokens, [J * L] or packed [N].
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import clamped_inverse_norm, load_mask, load_tile


@triton.jit
def load_inverse_norms(p_tokens, p_mask, o, n_tokens, n_rows, stride_item, stride_row, stride_d,
    stride_mask_item, stride_mask_row,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """[BLOCK] inverse norms of tokens, ``n_rows`` to an item; 0 of those that are not valid."""
    o_item, o_row = o // n_rows, o % n_rows
    m = o < n_tokens
    if p_mask is not None:
        o_mask = o_item.to(tl.int64) * stride_mask_item + o_row.to(tl.int64) * stride_mask_row
        m = m & (tl.load(p_mask + o_mask, mask=m, other=0) != 0)
    o_token = o_item.to(tl.int64) * stride_item + o_row.to(tl.int64) * stride_row
    b_squares = tl.zeros([o.shape[0], BLOCK_D], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_tokens, o_token, o_d, m, D, 1, stride_d, UPCAST).to(tl.float32)
        b_squares += b_x * b_x
    b_inverse, _ = clamped_inverse_norm(tl.sqrt_rn(tl.sum(b_squares, axis=1)))
    return tl.where(m, b_inverse, 0.0)


@triton.jit(do_not_specialize=["N_PATCHES", "N_TOKENS", "P", "L"])
def inverse_norms_kernel(
    p_images,  # [I, P, D]
    p_texts,  # [J, L, D], or packed: one item of all tokens
    p_image_mask,  # [I, P] bool or None
    p_text_mask,  # [J, L] or None
    p_stats,  # [I * P + J * L]
    stride_ii, stride_ip, stride_id, stride_tj, stride_tl, stride_td, stride_vi, stride_vp, stride_mj, stride_ml,
    N_PATCHES, N_TOKENS, P, L,
    NORMALIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The statistics; 1 where nothing is normalised."""
    block, blocks = tl.program_id(0), tl.cdiv(N_PATCHES, BLOCK)
    b_inverse = tl.full([BLOCK], 1.0, tl.float32)
    if block < blocks:
        o = block * BLOCK + tl.arange(0, BLOCK)
        if NORMALIZE:
            b_inverse = load_inverse_norms(
                p_images, p_image_mask, o, N_PATCHES, P, stride_ii, stride_ip, stride_id, stride_vi, stride_vp, D,
                BLOCK_D, UPCAST
            )  # fmt: skip
        tl.store(p_stats + o, b_inverse, mask=o < N_PATCHES)
    else:
        o = (block - blocks) * BLOCK + tl.arange(0, BLOCK)
        if NORMALIZE:
            b_inverse = load_inverse_norms(
                p_texts, p_text_mask, o, N_TOKENS, L, stride_tj, stride_tl, stride_td, stride_mj, stride_ml, D,
                BLOCK_D, UPCAST
            )  # fmt: skip
        tl.store(p_stats + N_PATCHES + o, b_inverse, mask=o < N_TOKENS)


@triton.jit
def count_and_place(p_mask, p_slots, o_item, n_rows, first, stride_item, stride_row, BLOCK: tl.constexpr):
    """How many rows of an item are valid, and the last one's number; ``first`` plus the numbers of all into slots."""
    count, last, start = 0, 0, 0
    while start < n_rows:  # the interpreter takes no bound of a range from the device
        o = start + tl.arange(0, BLOCK)
        m = load_mask(p_mask, o_item, o, n_rows, stride_item, stride_row)
        if p_slots is not None:
            tl.store(p_slots + count + tl.cumsum(m.to(tl.int32), axis=0) - 1, first + o, mask=m)
        count += tl.sum(m.to(tl.int32), axis=0)
        last = tl.maximum(last, tl.max(tl.where(m, o, 0), axis=0))
        start += BLOCK
    return count, last


@triton.jit(do_not_specialize=["L"])
def count_valid_kernel(
    p_mask,  # [J, L] bool
    p_counts,  # [J] int32
    stride_mj, stride_ml,
    L,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_j = tl.program_id(0)
    count, _ = count_and_place(p_mask, None, o_j.to(tl.int64), L, 0, stride_mj, stride_ml, BLOCK)
    tl.store(p_counts + o_j, count)


@triton.jit
def load_caption(p_counts, p_offsets, o_j, n_captions, L, N):
    """(first token, how many valid ones) of captions; of none that is not there."""
    m = o_j < n_captions
    if p_offsets is not None:
        # offsets that nobody has checked may point anywhere; L is the longest caption
        b_first = tl.minimum(tl.maximum(tl.load(p_offsets + o_j, mask=m, other=0), 0), N)
        b_end = tl.minimum(tl.maximum(tl.load(p_offsets + o_j + 1, mask=m, other=0), 0), N)
        b_first, b_length = b_first.to(tl.int32), tl.minimum(tl.maximum(b_end - b_first, 0), L).to(tl.int32)
    else:
        b_first, b_length = o_j * L, tl.where(m, L, 0)
        if p_counts is not None:
            b_length = tl.load(p_counts + o_j, mask=m, other=0)
    return b_first, b_length

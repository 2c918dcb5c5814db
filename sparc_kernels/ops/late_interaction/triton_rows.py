# mypy: disable-error-code="no-untyped-def"
"""Kernels along tokens, captions and scores of late interaction: norms, slots, sums, the end of a gradient.

Similarities are computed on *slots*: the valid tokens of a caption in their order, padded to whole granules by repeats
of the last one, which change no maximum. A run is some captions whose granules follow each other without a gap; an
image's patches get slots of their own, padded in the same way. So padding and holes cost no product, and no maximum
needs a mask.

Prefixes as in ``ops/_triton/tiles.py``. A token is named by its number among all tokens, [J * L] or packed [N].
"""

import triton
import triton.language as tl

from sparc_kernels.ops._captions.triton_rows import count_and_place, load_caption
from sparc_kernels.ops._triton.tiles import load_tile, store_tile

GRANULE = tl.constexpr(16)  # slots: of a matrix instruction, and what a few lanes of a warp hold of a row
NOBODY = tl.constexpr(-1)  # in slots and granules behind the last caption of a run


@triton.jit(do_not_specialize=["P", "PATCH_SLOTS"])
def patch_slots_kernel(
    p_mask,  # [I, P] bool
    p_slots,  # [I, PATCH_SLOTS] int32: numbers of patches
    p_counts,  # [I] int32
    stride_vi, stride_vp,
    P, PATCH_SLOTS,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_i = tl.program_id(0)
    p_own = p_slots + o_i.to(tl.int64) * PATCH_SLOTS
    count, last = count_and_place(p_mask, p_own, o_i.to(tl.int64), P, 0, stride_vi, stride_vp, BLOCK)
    tl.store(p_counts + o_i, count)
    start = count
    while start < PATCH_SLOTS:
        o = start + tl.arange(0, BLOCK)
        tl.store(p_own + o, tl.zeros([BLOCK], tl.int32) + last, mask=o < PATCH_SLOTS)
        start += BLOCK


@triton.jit(do_not_specialize=["J", "L", "N", "RUN_GRANULES"])
def caption_slots_kernel(
    p_mask,  # [J, L] bool or None
    p_counts,  # [J] int32 or None
    p_offsets,  # [J + 1] int64 or None
    p_slots,  # [RUNS * RUN_GRANULES * GRANULE] int32: a token; -2 - token for a repeat; NOBODY
    p_captions,  # [RUNS * RUN_GRANULES] int32: whose granule
    p_codes,  # as p_captions: twice the number of the granule in its caption, 1 more for the last one
    p_starts,  # [J] int32: first granule of a caption
    p_run_lengths,  # [RUNS] int32: granules of a run
    stride_mj, stride_ml,
    J, L, N, RUN_GRANULES,
    RUN: tl.constexpr,  # captions
    TILE: tl.constexpr,  # granules of a tile
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_j = tl.program_id(0)
    run = o_j // RUN
    o_run = run * RUN + tl.arange(0, RUN)
    b_first, b_length = load_caption(p_counts, p_offsets, o_run, J, L, N)
    b_granules = tl.cdiv(b_length, GRANULE)
    start = run * RUN_GRANULES + tl.sum(tl.where(o_run < o_j, b_granules, 0), axis=0)
    length = tl.sum(tl.where(o_run == o_j, b_length, 0), axis=0)
    first = tl.sum(tl.where(o_run == o_j, b_first, 0), axis=0)
    granules = tl.cdiv(length, GRANULE)
    tl.store(p_starts + o_j, start)
    p_own = p_slots + start.to(tl.int64) * GRANULE
    if p_mask is not None:
        _, last = count_and_place(p_mask, p_own, o_j.to(tl.int64), L, first, stride_mj, stride_ml, BLOCK)
        o_repeat = length + tl.arange(0, GRANULE)
        b_repeat = tl.zeros([GRANULE], tl.int32) - 2 - first - last
        tl.store(p_own + o_repeat, b_repeat, mask=o_repeat < granules * GRANULE)
    done = 0
    while done < granules * GRANULE:
        o = done + tl.arange(0, BLOCK)
        if p_mask is None:
            b_token = first + tl.minimum(o, length - 1)
            tl.store(p_own + o, tl.where(o < length, b_token, -2 - b_token), mask=o < granules * GRANULE)
        tl.store(p_captions + start + o, tl.zeros([BLOCK], tl.int32) + o_j, mask=o < granules)
        tl.store(p_codes + start + o, 2 * o + (o == granules - 1).to(tl.int32), mask=o < granules)
        done += BLOCK
    if o_j == tl.minimum(run * RUN + RUN, J) - 1:
        whole = tl.sum(b_granules, axis=0)
        tl.store(p_run_lengths + run, whole)
        o_tail = whole + tl.arange(0, TILE)
        m_tail = o_tail < tl.cdiv(whole, TILE) * TILE
        tl.store(p_captions + run * RUN_GRANULES + o_tail, tl.zeros([TILE], tl.int32) + NOBODY, mask=m_tail)
        tl.store(p_codes + run * RUN_GRANULES + o_tail, tl.zeros([TILE], tl.int32), mask=m_tail)
        o_slot = whole * GRANULE + tl.arange(0, TILE * GRANULE)
        m_slot = o_slot < tl.cdiv(whole, TILE) * (TILE * GRANULE)
        p_tail = p_slots + run.to(tl.int64) * RUN_GRANULES * GRANULE + o_slot
        tl.store(p_tail, tl.zeros([TILE * GRANULE], tl.int32) + NOBODY, mask=m_slot)


@triton.jit(do_not_specialize=["VALUE"])  # whether N is a multiple of 16 decides how wide it writes
def fill_kernel(
    p_values,  # [N] of integers
    N, VALUE,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_values + o, (tl.zeros([BLOCK], tl.int32) + VALUE).to(p_values.dtype.element_ty), mask=o < N)


@triton.jit
def weight(b_count, AVERAGE: tl.constexpr):
    """What a maximum is multiplied with in a score: 1 / count for a mean."""
    if AVERAGE:
        return 1.0 / tl.maximum(b_count, 1).to(tl.float32)
    else:
        return tl.full(b_count.shape, 1.0, tl.float32)


@triton.jit(do_not_specialize=["J", "P", "L", "N", "GRANULES"])
def merge_scores_kernel(
    p_image_partials,  # [I, J, CHUNKS], sums over the patches of a chunk; or None
    p_text_partials,  # [I, GRANULES], sums over the tokens of a granule; or None
    p_patch_counts,  # [I] int32 or None
    p_counts,  # [J] int32 or None
    p_offsets,  # [J + 1] int64 or None
    p_starts,  # [J] int32
    p_image_scores,  # [I, J] or None
    p_text_scores,  # [I, J] or None
    J, P, L, N, GRANULES,
    AVERAGE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_i, block = tl.program_id(0) // tl.cdiv(J, BLOCK), tl.program_id(0) % tl.cdiv(J, BLOCK)
    o_j = block * BLOCK + tl.arange(0, BLOCK)
    o_out = o_i.to(tl.int64) * J + o_j
    _, b_length = load_caption(p_counts, p_offsets, o_j, J, L, N)
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    if p_image_scores is not None:
        b_sum = tl.zeros([BLOCK], tl.float32)
        for chunk in range(CHUNKS):
            m = (b_length > 0) & (chunk * BLOCK_P < patches)
            b_sum += tl.load(p_image_partials + o_out * CHUNKS + chunk, mask=m, other=0.0)
        b_weight = weight(tl.zeros([BLOCK], tl.int32) + patches, AVERAGE)
        tl.store(p_image_scores + o_out, b_sum * b_weight, mask=o_j < J)
    if p_text_scores is not None:
        b_sum = tl.zeros([BLOCK], tl.float32)
        b_granules = tl.where(patches > 0, tl.cdiv(b_length, GRANULE), 0)
        p_first = p_text_partials + o_i.to(tl.int64) * GRANULES + tl.load(p_starts + o_j, mask=o_j < J, other=0)
        granule = 0
        while granule < tl.max(b_granules, axis=0):
            b_sum += tl.load(p_first + granule, mask=granule < b_granules, other=0.0)
            granule += 1
        tl.store(p_text_scores + o_out, b_sum * weight(b_length, AVERAGE), mask=o_j < J)


@triton.jit(do_not_specialize=["J", "L", "N"])
def owners_kernel(
    p_offsets,  # [J + 1] int64
    p_owners,  # [N] int32, -1 before: whose token
    J, L, N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_j = tl.program_id(0)
    first, length = load_caption(None, p_offsets, o_j, J, L, N)
    start = 0
    while start < length:
        o = start + tl.arange(0, BLOCK)
        tl.store(p_owners + first + o, tl.zeros([BLOCK], tl.int32) + o_j, mask=o < length)
        start += BLOCK


@triton.jit(do_not_specialize=["N", "L"])
def valid_tokens_kernel(
    p_tokens,  # [J, L, D], or packed: one item of all tokens
    p_mask,  # [J, L] bool or None
    p_owners,  # packed: [N] int32, negative where a token belongs to nobody; or None
    p_copy,  # [N, D], contiguous
    stride_tj, stride_tl, stride_td, stride_mj, stride_ml,
    N, L,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A copy with zeros where a token is not valid: a product takes 0 times what stands there."""
    o = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m = o < N
    m_valid = m
    if p_mask is not None:
        m_valid = m & (tl.load(p_mask + o // L * stride_mj + o % L * stride_ml, mask=m, other=0) != 0)
    if p_owners is not None:
        m_valid = m & (tl.load(p_owners + o, mask=m, other=-1) >= 0)
    o_token = o // L * stride_tj + o % L * stride_tl
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_tokens, o_token, o_d, m_valid, D, 1, stride_td, False)
        tl.store(p_copy + o[:, None] * D + o_d[None, :], b_x, mask=m[:, None] & (o_d < D)[None, :])


@triton.jit(do_not_specialize=["N"])
def grad_tokens_kernel(
    p_tokens,  # [N, D], 0 where not valid
    p_product,  # [N, D] float32, contiguous: W or its transpose times the other side
    p_inverse,  # [N], of the norms
    p_power,  # [2] or None: product * power[1] is meant
    p_grad,  # [N, D], contiguous
    stride_n, stride_d,
    N,
    NORMALIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """y - x (x . y) / |x|^2, without a second term where the norm is clamped."""
    o = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m = o < N
    unit = 1.0
    if p_power is not None:
        unit = tl.load(p_power + 1)
    b_factor = tl.zeros([BLOCK], tl.float32)
    if NORMALIZE:
        b_dot = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_x = load_tile(p_tokens, o, o_d, m, D, stride_n, stride_d, UPCAST).to(tl.float32)
            b_dot += b_x * load_tile(p_product, o, o_d, m, D, D, 1, False)
        b_inverse = tl.load(p_inverse + o, mask=m, other=0.0)
        b_factor = tl.where(b_inverse < 1e12, tl.sum(b_dot, axis=1) * b_inverse * b_inverse, 0.0)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_y = load_tile(p_product, o, o_d, m, D, D, 1, False)
        if NORMALIZE:
            b_x = load_tile(p_tokens, o, o_d, m, D, stride_n, stride_d, UPCAST).to(tl.float32)
            b_y -= b_x * b_factor[:, None]
        store_tile(p_grad, b_y * unit, o, o_d, m, D, D, UPCAST)

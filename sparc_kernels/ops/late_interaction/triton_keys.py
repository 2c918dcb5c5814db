# mypy: disable-error-code="no-untyped-def"
"""Keys that ``triton_resident`` has found, into indices, sums over granules and scores of images."""

import triton
import triton.language as tl

from sparc_kernels.ops.late_interaction.triton_forward import INDEX_BITS, best_of_chunks, index_of, value_of
from sparc_kernels.ops.late_interaction.triton_rows import GRANULE, load_caption, weight

RANKS = tl.constexpr(2**INDEX_BITS)  # the most tokens of a caption


@triton.jit(do_not_specialize=["FIRST", "RUNS", "N", "RUN_GRANULES", "GRANULES", "SLOTS", "PATCH_SLOTS"])
def token_maxima_kernel(
    p_token_keys,  # [images of this launch, CHUNKS, SLOTS] int32
    p_slots,  # [SLOTS]
    p_run_lengths,  # [RUNS]
    p_patch_slots,  # [I, PATCH_SLOTS] int32 or None
    p_patch_counts,  # [I] int32 or None
    p_best_patch,  # [I, N] or None
    p_text_partials,  # [I, GRANULES]
    FIRST, RUNS, N, RUN_GRANULES, GRANULES, SLOTS, PATCH_SLOTS,
    P: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,  # granules
):  # fmt: skip
    """Each token's best patch, and sums over granules; an image and a run of captions to a program."""
    run, own = tl.program_id(0) % RUNS, (tl.program_id(0) // RUNS).to(tl.int64)
    o_i = FIRST + own
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    end = tl.load(p_run_lengths + run)
    if patches == 0:
        end = 0
    done = 0
    while done < end:
        o_granule = done + tl.arange(0, BLOCK)
        o_place = done * GRANULE + tl.arange(0, BLOCK * GRANULE)
        m_place = o_place < end * GRANULE
        o_slot = run * RUN_GRANULES * GRANULE + tl.where(m_place, o_place, 0)
        p_keys = p_token_keys + own * CHUNKS * SLOTS + o_slot
        b_best, b_chunk = best_of_chunks(p_keys, SLOTS, patches, CHUNKS, BLOCK_P, False)
        b_token = tl.load(p_slots + o_slot)
        m_token = m_place & (b_token >= 0)
        b_maximum = tl.where(m_token, value_of(b_best, False), 0.0)
        b_sum = tl.sum(tl.reshape(b_maximum, (BLOCK, GRANULE)), axis=1)
        tl.store(p_text_partials + o_i * GRANULES + run * RUN_GRANULES + o_granule, b_sum, mask=o_granule < end)
        if p_best_patch is not None:
            b_index = b_chunk * BLOCK_P + index_of(b_best, BLOCK_P)
            if p_patch_slots is not None:
                b_index = tl.load(p_patch_slots + o_i * PATCH_SLOTS + b_index)
            tl.store(p_best_patch + o_i * N + b_token, b_index.to(p_best_patch.dtype.element_ty), mask=m_token)
        done += BLOCK


@triton.jit(do_not_specialize=["FIRST", "J", "L", "N", "PATCH_SLOTS"])
def patch_maxima_kernel(
    p_patch_keys,  # [images of this launch, J, P] int32
    p_slots,  # [SLOTS]
    p_starts,  # [J]
    p_patch_slots,  # [I, PATCH_SLOTS] int32 or None
    p_patch_counts,  # [I] int32 or None
    p_counts,  # [J] int32 or None
    p_offsets,  # [J + 1] int64 or None
    p_best_token,  # [I, J, P] or None
    p_image_scores,  # [I, J]
    FIRST, J, L, N, PATCH_SLOTS,
    P: tl.constexpr,
    HOLES: tl.constexpr,
    AVERAGE: tl.constexpr,
    ROWS: tl.constexpr,  # captions
    BLOCK: tl.constexpr,  # patches
):  # fmt: skip
    """Each patch's best token, and scores; an image and some captions to a program."""
    own, block = tl.program_id(0) // tl.cdiv(J, ROWS), tl.program_id(0) % tl.cdiv(J, ROWS)
    o_i, o_j = (FIRST + own).to(tl.int64), block * ROWS + tl.arange(0, ROWS)
    _, b_length = load_caption(p_counts, p_offsets, o_j, J, L, N)
    m_j = (o_j < J) & (b_length > 0)
    b_first = tl.load(p_starts + o_j, mask=m_j, other=0).to(tl.int64) * GRANULE
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    b_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, P, BLOCK):
        o_row = start + tl.arange(0, BLOCK)
        m = m_j[:, None] & (o_row < patches)[None, :]
        o_key = (own.to(tl.int64) * J + o_j)[:, None] * P + o_row[None, :]
        b_key = tl.load(p_patch_keys + o_key, mask=m, other=0).to(tl.uint32, bitcast=True)
        b_sum += tl.sum(tl.where(m, value_of(b_key, False), 0.0), axis=1)
        if p_best_token is not None:
            b_index = index_of(b_key, RANKS)
            if HOLES:
                b_index = tl.load(p_slots + b_first[:, None] + b_index, mask=m, other=0) - (o_j * L)[:, None]
            b_patch = o_row
            if p_patch_slots is not None:
                b_patch = tl.load(p_patch_slots + o_i * PATCH_SLOTS + o_row, mask=o_row < patches, other=0)
            p_best = p_best_token + (o_i * J + o_j)[:, None] * P + b_patch[None, :]
            tl.store(p_best, b_index.to(p_best_token.dtype.element_ty), mask=m)
    b_weight = weight(tl.zeros([ROWS], tl.int32) + patches, AVERAGE)
    tl.store(p_image_scores + o_i * J + o_j, b_sum * b_weight, mask=o_j < J)

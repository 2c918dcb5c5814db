# mypy: disable-error-code="no-untyped-def"
"""The forward kernel where an image's patches stay in shared memory (sm_90)."""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import load_tile
from sparc_kernels.ops.late_interaction.triton_forward import (
    SHRINK,
    best_of_chunks,
    index_of,
    load_tokens,
    value_of,
    with_index,
)
from sparc_kernels.ops.late_interaction.triton_rows import GRANULE, load_caption

LANES = tl.constexpr(4)  # threads that share a row of a matrix instruction's result


@triton.jit(do_not_specialize=["RUNS", "L", "RUN_GRANULES"])
def slotted_kernel(
    p_texts,
    p_text_inverse,
    p_slots,
    p_run_lengths,
    p_slotted,  # [GRANULES * GRANULE, D]
    p_slot_inverse,  # [GRANULES * GRANULE]
    stride_tj, stride_tl, stride_td,
    RUNS, L, RUN_GRANULES,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    run, tile = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS
    if tile * TILE < tl.load(p_run_lengths + run):
        o_slot = ((run * RUN_GRANULES + tile * TILE) * GRANULE).to(tl.int64) + tl.arange(0, TILE * GRANULE)
        b_token, m_token = load_tokens(p_slots + o_slot)
        tl.store(p_slot_inverse + o_slot, tl.load(p_text_inverse + b_token))
        o_token = (b_token // L).to(tl.int64) * stride_tj + (b_token % L).to(tl.int64) * stride_tl
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_x = load_tile(p_texts, o_token, o_d, m_token, D, 1, stride_td, False)
            tl.store(p_slotted + o_slot[:, None] * D + o_d[None, :], b_x, mask=(o_d < D)[None, :])


@triton.jit
def granules_of(b_keys, TILE: tl.constexpr):
    """[ROWS, TILE, LANES] as TILE blocks [ROWS, LANES]."""
    if TILE == 1:
        return (tl.reshape(b_keys, (b_keys.shape[0], b_keys.shape[2])),)
    else:
        HALF: tl.constexpr = TILE // 2
        b_halves = tl.reshape(b_keys, (b_keys.shape[0], 2, HALF, b_keys.shape[2]))
        b_left, b_right = tl.split(tl.permute(b_halves, (0, 2, 3, 1)))
        return granules_of(b_left, HALF) + granules_of(b_right, HALF)


@triton.jit
def load_few(p_numbers, N: tl.constexpr):
    """N numbers."""
    if N == 1:
        return (tl.load(p_numbers),)
    else:
        return load_few(p_numbers, N // 2) + load_few(p_numbers + N // 2, N // 2)


@triton.jit
def keys_of_columns(b_bits, unit, BLOCK_P: tl.constexpr):
    return tl.max(with_index(b_bits, tl.arange(0, BLOCK_P)[:, None], unit, BLOCK_P), axis=0)


@triton.jit
def keys_of_granules(b_bits, unit, BLOCK_P: tl.constexpr, TILE: tl.constexpr):
    """[BLOCK_P, TILE, LANES]: the best of those columns of a granule that one thread holds: nothing moves."""
    b_bits = tl.reshape(b_bits, (BLOCK_P, TILE, 2, LANES, 2))
    o_column = tl.reshape(tl.arange(0, GRANULE), (1, 1, 2, LANES, 2))
    return tl.max(tl.max(with_index(b_bits, o_column, unit, GRANULE), axis=4), axis=2)


@triton.jit
def finish_caption(
    b_open, caption, first_slot, o_i, chunk, o_row, patches, p_slots_keys, KIND: tl.constexpr, p_slots, p_patch_slots, p_best_token, p_image_partials,
    J, L, PATCH_SLOTS,
    P: tl.constexpr,
    CHUNKS: tl.constexpr,
    HOLES: tl.constexpr,
):  # fmt: skip
    b_key = tl.max(b_open, axis=1)
    m_row = o_row < patches
    o_pair = o_i * J + caption
    if KIND % 2 == 1:
        tl.store(p_slots_keys + caption.to(tl.int64) * P + o_row, b_key.to(tl.int32, bitcast=True), mask=m_row)
    else:
        finish_now(b_key, m_row, o_pair, caption, first_slot, o_i, chunk, o_row, p_slots, p_patch_slots, p_best_token, p_image_partials, L, PATCH_SLOTS, P, CHUNKS, HOLES)


@triton.jit
def finish_now(b_key, m_row, o_pair, caption, first_slot, o_i, chunk, o_row, p_slots, p_patch_slots, p_best_token, p_image_partials, L, PATCH_SLOTS, P: tl.constexpr, CHUNKS: tl.constexpr, HOLES: tl.constexpr):
    b_sum = tl.sum(tl.where(m_row, value_of(b_key, False), 0.0), axis=0)
    tl.store(p_image_partials + o_pair * CHUNKS + chunk, b_sum)
    if p_best_token is not None:
        b_index = index_of(b_key, 256)
        if HOLES:
            b_index = tl.load(p_slots + first_slot + b_index, mask=m_row, other=0) - caption * L
        b_patch = o_row
        if p_patch_slots is not None:
            b_patch = tl.load(p_patch_slots + o_i * PATCH_SLOTS + o_row, mask=m_row, other=0)
        tl.store(p_best_token + o_pair * P + b_patch, b_index.to(p_best_token.dtype.element_ty), mask=m_row)


@triton.jit
def next_tile(
    tile, granule, image, pointers, sizes, d_tokens, d_nobody, b_images, b_nothing, b_next, b_open,
    P: tl.constexpr,
    CHUNKS: tl.constexpr,
    HOLES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KIND: tl.constexpr,
    SKIP: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = TILE * GRANULE
    o_i, o_row, chunk, patches, b_inverse, b_base = image
    p_slot_inverse, p_slots, p_patch_slots, p_captions, p_codes, p_best_token, p_image_partials, p_keys, p_row_keys = pointers
    unit, J, L, PATCH_SLOTS = sizes
    b_nobody = d_nobody.load([0, 0])
    b_product = tl.dot(b_nothing, tl.trans(b_nobody), b_next) * b_inverse[:, None]
    b_tokens = d_tokens.load([(granule + TILE) * GRANULE, 0])
    b_next = tl.dot(b_images, tl.trans(b_tokens))
    if tile >= (SKIP if SKIP > 1 else 0):
        o_slot = granule * GRANULE + tl.arange(0, WIDTH)
        b_value = b_product * tl.load(p_slot_inverse + o_slot)[None, :] + b_base[:, None]
        b_bits = b_value.to(tl.uint32, bitcast=True)
        codes = load_few(p_codes + granule, TILE)
        captions = load_few(p_captions + granule, TILE)
        b_key = keys_of_columns(b_bits, unit, BLOCK_P)
        tl.store(p_keys + o_slot, b_key.to(tl.int32, bitcast=True))
        keys = granules_of(keys_of_granules(b_bits, unit, BLOCK_P, TILE), TILE)
        for g in tl.static_range(TILE):
            code = codes[g]
            b_open = tl.maximum(b_open, keys[g] + ((15 - (code >> 1)) * GRANULE).to(tl.uint32))
            if (code & 1) == 1:
                finish_caption(
                    b_open, captions[g], (granule + g - (code >> 1)) * GRANULE, o_i, chunk,
                    o_row, patches, p_row_keys, KIND, p_slots, p_patch_slots, p_best_token, p_image_partials, J, L, PATCH_SLOTS, P,
                    CHUNKS, HOLES
                )  # fmt: skip
                b_open = tl.zeros_like(b_open)
    return b_next, b_open


@triton.jit(do_not_specialize=["unit", "FIRST", "I", "RUNS", "J", "L", "RUN_GRANULES", "PATCH_SLOTS"])
def resident_kernel(
    p_images,  # [I, P, D]
    p_slotted,  # [SLOTS, D]
    p_nobody,  # [SLOTS of a tile, 16] zeros
    p_image_inverse,
    p_slot_inverse,
    p_patch_slots,
    p_patch_counts,
    p_slots, p_captions, p_codes, p_run_lengths,
    p_best_token,
    p_image_partials,
    p_token_keys,  # [images, CHUNKS, SLOTS]
    p_row_keys,  # [images, J, P]
    stride_ii, stride_ip,
    unit, FIRST, I, RUNS, J, L, RUN_GRANULES, SLOTS, PATCH_SLOTS,
    P: tl.constexpr,
    HOLES: tl.constexpr,
    D: tl.constexpr,
    WHOLE_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KIND: tl.constexpr,
    SKIP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = TILE * GRANULE
    if KIND < 2:
        run, chunk = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS % CHUNKS
        o_own = tl.program_id(0) // RUNS // CHUNKS
    else:
        each = tl.num_programs(0) // RUNS
        run, chunk = tl.program_id(0) // each, tl.program_id(0) % CHUNKS
        o_own = tl.program_id(0) % each // CHUNKS
    o_i = (o_own + FIRST).to(tl.int64)
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    tiles = tl.cdiv(tl.load(p_run_lengths + run), TILE)
    if chunk * BLOCK_P >= patches:
        tiles = -1
    d_images = tl.make_tensor_descriptor(p_images, [I, P, D], [stride_ii, stride_ip, 1], [1, BLOCK_P, WHOLE_D])
    d_tokens = tl.make_tensor_descriptor(p_slotted, [SLOTS, D], [D, 1], [WIDTH, WHOLE_D])
    o_row = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    b_images = tl.reshape(d_images.load([FIRST + o_own, chunk * BLOCK_P, 0]), (BLOCK_P, WHOLE_D))
    b_inverse = tl.load(p_image_inverse + o_i * P + o_row, mask=o_row < patches, other=0.0) * SHRINK
    b_base = tl.where(o_row < patches, 3.0, 2.0)
    d_nobody = tl.make_tensor_descriptor(p_nobody, [WIDTH, 16], [16, 1], [WIDTH, 16])
    b_nothing = tl.zeros([BLOCK_P, 16], p_images.dtype.element_ty)
    b_next = tl.zeros([BLOCK_P, WIDTH], tl.float32)
    b_open = tl.zeros([BLOCK_P, LANES], tl.uint32)
    p_own_row_keys = p_row_keys + o_own.to(tl.int64) * J * P
    p_keys = p_token_keys + (o_own.to(tl.int64) * CHUNKS + chunk) * SLOTS
    image = (o_i, o_row, chunk, patches, b_inverse, b_base)
    pointers = (p_slot_inverse, p_slots, p_patch_slots, p_captions, p_codes, p_best_token, p_image_partials, p_keys, p_own_row_keys)
    sizes = (unit, J, L, PATCH_SLOTS)
    granule = run * RUN_GRANULES - TILE
    if INTERPRETED:  # whose ranges take no bound from the device
        tile = -1
        while tile < tiles:
            b_next, b_open = next_tile(
                tile, granule, image, pointers, sizes, d_tokens, d_nobody, b_images, b_nothing, b_next, b_open, P,
                CHUNKS, HOLES, TILE, BLOCK_P, KIND, SKIP
            )  # fmt: skip
            tile += 1
            granule += TILE
    else:
        for tile in range(-1, tiles):
            b_next, b_open = next_tile(
                tile, granule, image, pointers, sizes, d_tokens, d_nobody, b_images, b_nothing, b_next, b_open, P,
                CHUNKS, HOLES, TILE, BLOCK_P, KIND, SKIP
            )  # fmt: skip
            granule += TILE


@triton.jit(do_not_specialize=["FIRST", "RUNS", "N", "RUN_GRANULES", "GRANULES", "PATCH_SLOTS"])
def token_maxima_kernel(
    p_token_keys,
    p_slots,
    p_run_lengths,
    p_patch_slots,
    p_patch_counts,
    p_best_patch,
    p_text_partials,  # [I, GRANULES]
    FIRST, RUNS, N, RUN_GRANULES, SLOTS, GRANULES, PATCH_SLOTS,
    P: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,  # granules
):  # fmt: skip
    run, o_own = tl.program_id(0) % RUNS, (tl.program_id(0) // RUNS).to(tl.int64)
    o_i = o_own + FIRST
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    end = tl.load(p_run_lengths + run)
    if patches == 0:
        end = 0
    done = 0
    while done < end:
        o_place = done * GRANULE + tl.arange(0, BLOCK * GRANULE)
        m = o_place < end * GRANULE
        o_slot = run * RUN_GRANULES * GRANULE + tl.where(m, o_place, 0)
        b_best, b_chunk = best_of_chunks(p_token_keys + o_own * CHUNKS * SLOTS + o_slot, patches, CHUNKS, BLOCK_P, False, SLOTS)
        b_slot = tl.load(p_slots + o_slot)
        m = m & (b_slot >= 0)
        b_sum = tl.sum(tl.reshape(tl.where(m, value_of(b_best, False), 0.0), (BLOCK, GRANULE)), axis=1)
        o_granule = done + tl.arange(0, BLOCK)
        tl.store(p_text_partials + o_i * GRANULES + run * RUN_GRANULES + o_granule, b_sum, mask=o_granule < end)
        if p_best_patch is not None:
            b_index = b_chunk * BLOCK_P + index_of(b_best, BLOCK_P)
            if p_patch_slots is not None:
                b_index = tl.load(p_patch_slots + o_i * PATCH_SLOTS + b_index)
            tl.store(p_best_patch + o_i * N + b_slot, b_index.to(p_best_patch.dtype.element_ty), mask=m)
        done += BLOCK


@triton.jit(do_not_specialize=["FIRST", "J", "L", "N", "PATCH_SLOTS"])
def patch_maxima_kernel(
    p_row_keys, p_slots, p_starts, p_patch_slots, p_patch_counts, p_counts, p_offsets, p_best_token, p_image_partials,
    FIRST, J, L, N, PATCH_SLOTS,
    P: tl.constexpr,
    HOLES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o_own, block = tl.program_id(0) // tl.cdiv(J, ROWS), tl.program_id(0) % tl.cdiv(J, ROWS)
    o_j = block * ROWS + tl.arange(0, ROWS)
    o_i = (o_own + FIRST).to(tl.int64)
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
        p_key = p_row_keys + (o_own.to(tl.int64) * J + o_j)[:, None] * P + o_row[None, :]
        b_key = tl.load(p_key, mask=m, other=0).to(tl.uint32, bitcast=True)
        b_sum += tl.sum(tl.where(m, value_of(b_key, False), 0.0), axis=1)
        if p_best_token is not None:
            b_index = index_of(b_key, 256)
            if HOLES:
                b_index = tl.load(p_slots + b_first[:, None] + b_index, mask=m, other=0) - (o_j * L)[:, None]
            b_patch = o_row
            if p_patch_slots is not None:
                b_patch = tl.load(p_patch_slots + o_i * PATCH_SLOTS + o_row, mask=o_row < patches, other=0)
            p_best = p_best_token + (o_i * J + o_j)[:, None] * P + b_patch[None, :]
            tl.store(p_best, b_index.to(p_best_token.dtype.element_ty), mask=m)
    tl.store(p_image_partials + o_i * J + o_j, b_sum, mask=o_j < J)

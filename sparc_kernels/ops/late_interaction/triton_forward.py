# mypy: disable-error-code="no-untyped-def"
"""The forward kernel: both maxima of every pair from one product per tile.

A program owns an image and a run of captions. Tiles are [patches, slots of tokens] (``triton_rows``). A tile's columns
give each token its best patch so far; its rows give each patch its best token of a granule, and granules are merged
caption by caption, what is open going on in the next tile.

Index and value travel in one key, so that a maximum is one comparison and the lowest index wins a tie: the value above,
the index counted backwards below. Cosines of half-precision tokens have a key of 32 bits, in steps of 2^-22: the least
bits of a float32 between 2 and 4, which a cosine becomes when 3 is added. All else has a key of 64 bits.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import rows_product
from sparc_kernels.ops.late_interaction.triton_rows import GRANULE, NOBODY

INDEX_BITS = tl.constexpr(8)  # of a key, below its value
SHRINK = tl.constexpr(0.984375)  # keeps a cosine that rounding made larger than 1 within the key


@triton.jit
def value_bits(b_value, EXACT: tl.constexpr):
    """The upper part of a key, monotone in the value, NaN above all. Where not EXACT, the value is ``SHRINK`` times a
    cosine, and the bits above those of a key are the same for all."""
    if EXACT:
        b_value = tl.where(b_value == b_value, b_value + 0.0, float("nan"))  # one zero, one NaN
        b_bits = b_value.to(tl.int32, bitcast=True)
        b_bits = tl.where(b_value == b_value, b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
        return b_bits.to(tl.int64)
    else:
        return (b_value + 3.0).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(b_key, EXACT: tl.constexpr):
    """The value of a key, unshrunk."""
    if EXACT:
        b_bits = (b_key >> INDEX_BITS).to(tl.int32)
        return (b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    else:
        b_bits = (b_key >> INDEX_BITS).to(tl.int32)
        b_value = ((b_bits & 0x7FFFFF) | 0x40000000).to(tl.float32, bitcast=True)
        return tl.where(b_bits < 0x800000, (b_value - 3.0) * (1.0 / SHRINK), float("nan"))


@triton.jit
def index_of(b_key, SIZE: tl.constexpr):
    """The index of a key that was counted backwards from SIZE - 1."""
    return -(b_key & (2**INDEX_BITS - 1)).to(tl.int32) + (SIZE - 1)


@triton.jit
def with_index(b_bits, o_index, unit, SIZE: tl.constexpr):
    """A key; ``o_index`` is broadcast to it. ``unit`` is 2^INDEX_BITS, which the compiler may not know: it would make a
    shift and an "or" of the multiplication and addition, whose instruction runs beside those of maxima."""
    return b_bits * unit.to(b_bits.dtype) + (-o_index + (SIZE - 1)).to(b_bits.dtype)


@triton.jit
def exceeds(b_key, b_other):
    """Whether the value of a key is above that of another one."""
    return (b_key >> INDEX_BITS) > (b_other >> INDEX_BITS)


@triton.jit
def columns_of(b_tile, PARTS: tl.constexpr):
    """[ROWS, COLS] in parts of its columns, in their order."""
    if PARTS == 1:
        return (b_tile,)
    else:
        HALF: tl.constexpr = b_tile.shape[1] // 2
        b_left, b_right = tl.split(tl.permute(tl.reshape(b_tile, (b_tile.shape[0], 2, HALF)), (0, 2, 1)))
        return columns_of(b_left, PARTS // 2) + columns_of(b_right, PARTS // 2)


@triton.jit
def merge_granules(b_keys, b_caption, b_number, open_caption, b_open, b_open_rank):
    """The best key of each granule's whole caption, as far as it lies before here or in these granules, and the rank of
    the token that it is from among the caption's valid ones [ROWS, GRANULES].

    ``b_keys`` [ROWS, GRANULES]: the best of each granule; ``b_caption``, ``b_number`` [GRANULES]: its caption, and its
    number there; ``b_open``, ``b_open_rank`` [ROWS]: the same of ``open_caption``, which goes on here, or NOBODY.
    """
    GRANULES: tl.constexpr = b_keys.shape[1]
    LEAST: tl.constexpr = 0 if b_keys.dtype == tl.uint32 else -(2**62)
    o_granule = tl.arange(0, GRANULES)
    # an index counts backwards within all granules: of equal keys the earlier one is the larger
    b_keys += ((-o_granule + (GRANULES - 1)) * GRANULE)[None, :].to(b_keys.dtype)
    m_same = (b_caption[:, None] == b_caption[None, :])[None, :, :]
    b_best = tl.max(tl.where(m_same, b_keys[:, :, None], tl.full(m_same.shape, LEAST, b_keys.dtype)), axis=1)
    b_rank = index_of(b_best, GRANULES * GRANULE) + ((b_number - o_granule) * GRANULE)[None, :]
    m_open = (b_caption == open_caption)[None, :] & (exceeds(b_best, b_open[:, None]) == 0)
    return tl.where(m_open, b_open[:, None], b_best), tl.where(m_open, b_open_rank[:, None], b_rank)


@triton.jit
def load_tokens(p_slots):
    """Numbers of tokens in slots, 0 and False where there is none."""
    b_slot = tl.load(p_slots)
    b_token = tl.where(b_slot < NOBODY, -2 - b_slot, b_slot)
    return tl.maximum(b_token, 0), b_token >= 0


@triton.jit
def load_key(p_key, EXACT: tl.constexpr):
    """As signed integers of its size they are stored."""
    return tl.load(p_key).to(tl.int64 if EXACT else tl.uint32, bitcast=True)


@triton.jit
def best_of_chunks(p_keys, stride, patches, CHUNKS: tl.constexpr, BLOCK_P: tl.constexpr, EXACT: tl.constexpr):
    """The best key of each slot [SLOTS] and the chunk it is from, over the chunks of an image, ``stride``
    from one to the next."""
    b_best = load_key(p_keys, EXACT)
    b_chunk = tl.zeros(b_best.shape, tl.int32)
    for chunk in range(1, CHUNKS):
        if chunk * BLOCK_P < patches:
            b_key = load_key(p_keys + chunk * stride, EXACT)
            m_new = exceeds(b_key, b_best)
            b_best, b_chunk = tl.where(m_new, b_key, b_best), tl.where(m_new, chunk, b_chunk)
    return b_best, b_chunk


RAGGED = ["FIRST", "RUNS", "J", "L", "N", "RUN_GRANULES", "GRANULES", "PATCH_SLOTS", "stride_p"]


@triton.jit(do_not_specialize=[*RAGGED, "unit"])
def maxima_kernel(
    p_images,  # [I, P, D]
    p_texts,  # [J, L, D], or packed: one item of all tokens
    p_image_inverse,  # [I * P]
    p_text_inverse,  # [J * L]
    p_patch_slots,  # [I, PATCH_SLOTS] int32 or None: patches in their order, the last one repeated
    p_patch_counts,  # [I] int32 or None
    p_slots,  # [GRANULES * GRANULE] int32; this and the next three as in caption_slots_kernel
    p_captions,  # [GRANULES]
    p_codes,  # [GRANULES]
    p_run_lengths,  # [RUNS]
    p_products,  # [images of this launch * P, J * L] raw, stride_p from row to row, of a library; or None
    p_best_token,  # [I, J, P] or None
    p_best_patch,  # [I, J * L] or None
    p_image_partials,  # [I, J, CHUNKS] or None
    p_text_partials,  # [I, GRANULES] or None
    p_token_keys,  # [programs, CHUNKS, SLOTS] of the size of a key: each token's best patch of a chunk
    p_open_keys,  # [programs, CHUNKS, BLOCK_P] of the size of a key: of the caption that goes on in the next tile
    p_open_ranks,  # [programs, CHUNKS, BLOCK_P] int32
    stride_ii, stride_ip, stride_id, stride_tj, stride_tl, stride_td, stride_p,
    unit,  # 2^INDEX_BITS
    FIRST,  # of the images of this launch
    RUNS,
    J, L, N, RUN_GRANULES, GRANULES, PATCH_SLOTS,
    P: tl.constexpr,
    HOLES: tl.constexpr,  # a text mask is given: a token's place among the valid ones is not its place in the caption
    D: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,  # granules
    PARTS: tl.constexpr,  # of a tile's columns, one after the other
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    SLOTS: tl.constexpr = TILE * GRANULE
    WIDTH: tl.constexpr = SLOTS // PARTS
    pid = tl.program_id(0).to(tl.int64)
    # All runs of an image, then the next image: programs that run at the same time share few images and few tokens, and
    # both stay in the L2 cache.
    run = tl.program_id(0) % RUNS
    o_i = (tl.program_id(0) // RUNS + FIRST).to(tl.int64)
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    end = tl.load(p_run_lengths + run)
    if patches == 0:
        end = 0
    o_row = tl.arange(0, BLOCK_P)
    done = 0
    while done < end:
        granule = run * RUN_GRANULES + done
        p_own = p_slots + granule.to(tl.int64) * GRANULE
        chunk = 0
        while chunk * BLOCK_P < patches:
            if p_patch_slots is None:
                b_patch = tl.minimum(chunk * BLOCK_P + o_row, P - 1)
            else:
                b_patch = tl.load(p_patch_slots + o_i * PATCH_SLOTS + chunk * BLOCK_P + o_row)
            if p_products is None:
                b_token, m_token = load_tokens(p_own + tl.arange(0, SLOTS))
                o_token = (b_token // L).to(tl.int64) * stride_tj + (b_token % L).to(tl.int64) * stride_tl
                b_tile = rows_product(
                    p_images + o_i * stride_ii, p_texts, b_patch, o_token, b_patch >= 0, m_token, stride_ip, stride_id,
                    1, stride_td, D, BLOCK_D, PRECISION, UPCAST
                )  # fmt: skip
                parts = columns_of(b_tile, PARTS)
            b_image_inverse = tl.load(p_image_inverse + o_i * P + b_patch)[:, None]
            for part in tl.static_range(PARTS):
                b_token, _ = load_tokens(p_own + part * WIDTH + tl.arange(0, WIDTH))
                if p_products is None:
                    b_value = parts[part]
                else:
                    o_product = ((o_i - FIRST) * P + b_patch)[:, None] * stride_p + b_token[None, :]
                    b_value = tl.load(p_products + o_product)
                b_text_inverse = tl.load(p_text_inverse + b_token)[None, :]
                if not EXACT:
                    b_text_inverse *= SHRINK
                b_bits = value_bits(b_value * b_image_inverse * b_text_inverse, EXACT)
                if p_text_partials is not None:
                    b_key = tl.max(with_index(b_bits, o_row[:, None], unit, BLOCK_P), axis=0)
                    o_key = (pid * CHUNKS + chunk) * SLOTS + part * WIDTH + tl.arange(0, WIDTH)
                    tl.store(p_token_keys + o_key, b_key.to(p_token_keys.dtype.element_ty, bitcast=True))
                if p_image_partials is not None:
                    b_granules = tl.reshape(b_bits, (BLOCK_P, WIDTH // GRANULE, GRANULE))
                    b_keys = tl.max(with_index(b_granules, tl.arange(0, GRANULE)[None, None, :], unit, GRANULE), axis=2)
                    o_granule = granule + part * (WIDTH // GRANULE) + tl.arange(0, WIDTH // GRANULE)
                    b_code, b_caption = tl.load(p_codes + o_granule), tl.load(p_captions + o_granule)
                    o_open = (pid * CHUNKS + chunk) * BLOCK_P + o_row
                    if part == 0:
                        m_open = tl.zeros_like(o_row) + done > 0
                        b_open = tl.load(p_open_keys + o_open, mask=m_open, other=0).to(b_keys.dtype, bitcast=True)
                        b_open_rank = tl.load(p_open_ranks + o_open, mask=m_open, other=0)
                    open_caption = NOBODY - 1
                    if part > 0 or done > 0:
                        open_caption = tl.load(p_captions + granule + part * (WIDTH // GRANULE) - 1)
                    b_keys, b_rank = merge_granules(b_keys, b_caption, b_code >> 1, open_caption, b_open, b_open_rank)
                    m_end = (tl.arange(0, WIDTH // GRANULE) == WIDTH // GRANULE - 1)[None, :]
                    b_open = tl.sum(tl.where(m_end, b_keys, tl.zeros_like(b_keys)), axis=1)
                    b_open_rank = tl.sum(tl.where(m_end, b_rank, 0), axis=1)
                    if part == PARTS - 1:
                        tl.store(p_open_keys + o_open, b_open.to(p_open_keys.dtype.element_ty, bitcast=True))
                        tl.store(p_open_ranks + o_open, b_open_rank)
                    m_last = (b_code & 1) == 1
                    o_pair = o_i * J + b_caption
                    m_done = m_last[None, :] & (chunk * BLOCK_P + o_row < patches)[:, None]
                    b_sum = tl.sum(tl.where(m_done, value_of(b_keys, EXACT), 0.0), axis=0)
                    tl.store(p_image_partials + o_pair * CHUNKS + chunk, b_sum, mask=m_last)
                    if p_best_token is not None:
                        b_index = b_rank
                        if HOLES:
                            o_first = (o_granule - (b_code >> 1)).to(tl.int64) * GRANULE
                            b_index = tl.load(p_slots + o_first[None, :] + b_rank, mask=m_done, other=0)
                            b_index -= (b_caption * L)[None, :]
                        o_best = o_pair[None, :] * P + b_patch[:, None]
                        tl.store(p_best_token + o_best, b_index.to(p_best_token.dtype.element_ty), mask=m_done)
            chunk += 1
        tl.debug_barrier()  # what was stored need not be loaded by the same threads
        if p_text_partials is not None:
            p_keys = p_token_keys + pid * CHUNKS * SLOTS + tl.arange(0, SLOTS)
            b_best, b_best_chunk = best_of_chunks(p_keys, SLOTS, patches, CHUNKS, BLOCK_P, EXACT)
            b_slot = tl.load(p_own + tl.arange(0, SLOTS))
            b_maximum = tl.where(b_slot >= 0, value_of(b_best, EXACT), 0.0)
            b_sum = tl.sum(tl.reshape(b_maximum, (TILE, GRANULE)), axis=1)
            tl.store(p_text_partials + o_i * GRANULES + granule + tl.arange(0, TILE), b_sum)
            if p_best_patch is not None:
                b_index = b_best_chunk * BLOCK_P + index_of(b_best, BLOCK_P)
                if p_patch_slots is not None:
                    b_index = tl.load(p_patch_slots + o_i * PATCH_SLOTS + b_index)
                b_index = b_index.to(p_best_patch.dtype.element_ty)
                tl.store(p_best_patch + o_i * N + b_slot, b_index, mask=b_slot >= 0)
            tl.debug_barrier()  # before the next tile's keys
        done += TILE

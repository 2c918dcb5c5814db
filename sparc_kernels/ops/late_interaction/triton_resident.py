# mypy: disable-error-code="no-untyped-def"
"""The forward kernels for cosines of half precision on sm_90: patches stay in shared memory while captions go by.

Tokens are copied into their slots first (``triton_rows``), and patches that have a mask into theirs, so that both
operands are dense matrices, which the tensor memory accelerator copies. A program owns some patches of an image and a
run of captions. Two of them fit into a multiprocessor: one has products to add while the other looks for maxima.

What it finds are keys (``triton_forward``): of each token the best patch, of each patch and caption the best token. It
merges the granules of a caption itself: four threads hold a row of a tile, and each keeps the best of its own columns,
so that nothing moves between threads before a caption ends. ``triton_keys`` turns keys into indices and scores.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import load_tile
from sparc_kernels.ops.late_interaction.triton_forward import (
    INDEX_BITS,
    SHRINK,
    load_tokens,
    with_index,
)
from sparc_kernels.ops.late_interaction.triton_rows import GRANULE

LANES = tl.constexpr(4)  # threads that hold a row of a tile (wgmma's layout)
RANKS = tl.constexpr(2**INDEX_BITS)  # the most tokens of a caption


@triton.jit(do_not_specialize=["RUNS", "L", "RUN_GRANULES"])
def copy_tokens_kernel(
    p_texts,  # [J, L, D], or packed: one item of all tokens
    p_text_inverse,  # [J * L]
    p_slots,  # [SLOTS] int32, as in caption_slots_kernel
    p_run_lengths,  # [RUNS]
    p_slotted,  # [SLOTS, D], what p_texts has; 0 in slots of nobody
    p_slot_inverse,  # [SLOTS]
    stride_tj, stride_tl, stride_td,
    RUNS, L, RUN_GRANULES,
    D: tl.constexpr,
    TILE: tl.constexpr,  # granules
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tokens and their inverse norms into slots, a tile to a program; nothing beyond a run's last tile."""
    run, done = tl.program_id(0) % RUNS, tl.program_id(0) // RUNS * TILE
    if done < tl.load(p_run_lengths + run):
        o_slot = (run * RUN_GRANULES + done).to(tl.int64) * GRANULE + tl.arange(0, TILE * GRANULE)
        b_token, m_token = load_tokens(p_slots + o_slot)
        tl.store(p_slot_inverse + o_slot, tl.load(p_text_inverse + b_token))
        o_token = (b_token // L).to(tl.int64) * stride_tj + (b_token % L).to(tl.int64) * stride_tl
        for o_chunk in range(0, D, BLOCK_D):
            o_d = o_chunk + tl.arange(0, BLOCK_D)
            b_x = load_tile(p_texts, o_token, o_d, m_token, D, 1, stride_td, False)
            tl.store(p_slotted + o_slot[:, None] * D + o_d[None, :], b_x, mask=(o_d < D)[None, :])


@triton.jit(do_not_specialize=["P", "PATCH_SLOTS"])
def copy_patches_kernel(
    p_images,  # [I, P, D]
    p_patch_slots,  # [I, PATCH_SLOTS] int32
    p_copy,  # [I, PATCH_SLOTS, D]
    stride_ii, stride_ip, stride_id,
    P, PATCH_SLOTS,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Patches into their slots, a block of an image to a program."""
    blocks = tl.cdiv(PATCH_SLOTS, BLOCK)
    o_i, o_slot = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    p_own, m_slot = p_images + o_i * stride_ii, o_slot < PATCH_SLOTS
    b_patch = tl.load(p_patch_slots + o_i * PATCH_SLOTS + o_slot, mask=m_slot, other=0)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_own, b_patch, o_d, m_slot & (b_patch < P), D, stride_ip, stride_id, False)
        o_copy = (o_i * PATCH_SLOTS + o_slot)[:, None] * D + o_d[None, :]
        tl.store(p_copy + o_copy, b_x, mask=m_slot[:, None] & (o_d < D)[None, :])


@triton.jit
def load_each(p_numbers, N: tl.constexpr):
    """N numbers, a power of two."""
    if N == 1:
        return (tl.load(p_numbers),)
    else:
        return load_each(p_numbers, N // 2) + load_each(p_numbers + N // 2, N // 2)


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
def best_of_granules(b_bits, unit, TILE: tl.constexpr):
    """The best key of each granule's columns that one thread holds, TILE blocks [ROWS, LANES]."""
    b_bits = tl.reshape(b_bits, (b_bits.shape[0], TILE, 2, LANES, 2))
    o_column = tl.reshape(tl.arange(0, GRANULE), (1, 1, 2, LANES, 2))
    b_keys = tl.max(tl.max(with_index(b_bits, o_column, unit, GRANULE), axis=4), axis=2)
    return granules_of(b_keys, TILE)


@triton.jit
def find_maxima(b_product, granule, image, captions, found, b_open, unit, P: tl.constexpr, TILE: tl.constexpr):
    """Keys of a tile of products, which begins at ``granule``. ``b_open`` [ROWS, LANES]: the best keys of the caption
    that goes on here, and what has become of them."""
    o_row, patches, b_inverse, b_base = image
    p_slot_inverse, p_captions, p_codes = captions
    p_token_keys, p_patch_keys = found
    ROWS: tl.constexpr = b_product.shape[0]
    o_slot = granule * GRANULE + tl.arange(0, b_product.shape[1])
    b_text_inverse = tl.load(p_slot_inverse + o_slot)
    b_value = b_product * b_inverse[:, None] * b_text_inverse[None, :] + b_base[:, None]
    b_bits = b_value.to(tl.uint32, bitcast=True)
    if p_patch_keys is not None:  # early: what branches depend on should be there
        codes, owners = load_each(p_codes + granule, TILE), load_each(p_captions + granule, TILE)
    if p_token_keys is not None:
        b_best = tl.max(with_index(b_bits, tl.arange(0, ROWS)[:, None], unit, ROWS), axis=0)
        tl.store(p_token_keys + o_slot, b_best.to(tl.int32, bitcast=True))
    if p_patch_keys is not None:
        keys = best_of_granules(b_bits, unit, TILE)
        for g in tl.static_range(TILE):
            rank = (codes[g] >> 1) * GRANULE
            b_open = tl.maximum(b_open, keys[g] + (-rank + (RANKS - GRANULE)).to(tl.uint32))
            if (codes[g] & 1) == 1:
                b_key = tl.max(b_open, axis=1).to(tl.int32, bitcast=True)
                tl.store(p_patch_keys + owners[g].to(tl.int64) * P + o_row, b_key, mask=o_row < patches)
                b_open = tl.zeros_like(b_open)
    return b_open


@triton.jit
def load_slices(
    d_images, o_i, first_row, o_d,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """SLICES blocks [BLOCK_P, BLOCK_D] of an image's channels, from ``o_d`` on."""
    b_slice = tl.reshape(d_images.load([o_i, first_row, o_d]), (BLOCK_P, BLOCK_D))
    if UPCAST:
        b_slice = b_slice.to(tl.float32)
    if SLICES == 1:
        return (b_slice,)
    else:
        rest = load_slices(d_images, o_i, first_row, o_d + BLOCK_D, BLOCK_P, BLOCK_D, SLICES - 1, UPCAST)
        return (b_slice,) + rest  # noqa: RUF005


@triton.jit
def add_slice(part, images, b_tokens, b_product, EACH: tl.constexpr, SLICES: tl.constexpr):
    """The sum with products of the slice ``part`` of ``images``, which is EACH or one behind.

    A tile in shared memory has no index that is known late, so a branch picks it.
    """
    if EACH == SLICES - 1:
        return tl.dot(images[EACH], tl.trans(b_tokens), b_product)
    else:
        if part == EACH:
            b_product = tl.dot(images[EACH], tl.trans(b_tokens), b_product)
        else:
            b_product = add_slice(part, images, b_tokens, b_product, EACH + 1, SLICES)
        return b_product


@triton.jit
def next_slice(
    step, first, operands, image, captions, found, b_product, b_open, unit,
    P: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Products of some more channels; maxima behind a tile's last ones. One loop over both lets copies for a tile run
    ahead while the one before it is being finished."""
    d_tokens, images = operands
    part, granule = step % SLICES, first + step // SLICES * TILE
    b_tokens = d_tokens.load([granule * GRANULE, part * BLOCK_D])
    if UPCAST:
        b_tokens = b_tokens.to(tl.float32)
    b_product = add_slice(part, images, b_tokens, b_product, 0, SLICES)
    if part == SLICES - 1:
        b_open = find_maxima(b_product, granule, image, captions, found, b_open, unit, P, TILE)
        b_product = tl.zeros_like(b_product)
    return b_product, b_open


@triton.jit(do_not_specialize=["unit", "FIRST", "I", "RUNS", "J", "RUN_GRANULES", "SLOTS"])
def resident_maxima_kernel(
    p_images,  # [I, P, D], or a copy [I, PATCH_SLOTS, D] of it
    p_slotted,  # [SLOTS, D]
    p_image_inverse,  # [I * P]
    p_patch_slots,  # [I, PATCH_SLOTS] int32 or None
    p_patch_counts,  # [I] int32 or None
    p_slot_inverse,  # [SLOTS]
    p_captions,  # [GRANULES] this and the next two as in caption_slots_kernel
    p_codes,  # [GRANULES]
    p_run_lengths,  # [RUNS]
    p_token_keys,  # [images of this launch, CHUNKS, SLOTS] int32 or None
    p_patch_keys,  # [images of this launch, J, P] int32 or None, by slots where patches have some
    stride_ii, stride_ip,
    unit,  # 2^INDEX_BITS
    FIRST,  # of the images of this launch
    I, RUNS, J, RUN_GRANULES, SLOTS,
    P: tl.constexpr,
    PATCH_SLOTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,  # granules
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = TILE * GRANULE
    SLICES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    HELD: tl.constexpr = P if p_patch_slots is None else PATCH_SLOTS
    # Images first, so that programs that run at the same time share captions in the L2 cache.
    programs = tl.num_programs(0) // RUNS
    run, own = tl.program_id(0) // programs, tl.program_id(0) % programs // CHUNKS
    first_row = tl.program_id(0) % CHUNKS * BLOCK_P
    o_i = (FIRST + own).to(tl.int64)
    patches = P
    if p_patch_counts is not None:
        patches = tl.load(p_patch_counts + o_i)
    tiles = tl.cdiv(tl.load(p_run_lengths + run), TILE)
    if first_row >= patches:
        tiles = 0
    d_images = tl.make_tensor_descriptor(p_images, [I, HELD, D], [stride_ii, stride_ip, 1], [1, BLOCK_P, BLOCK_D])
    d_tokens = tl.make_tensor_descriptor(p_slotted, [SLOTS, D], [D, 1], [WIDTH, BLOCK_D])
    o_row = first_row + tl.arange(0, BLOCK_P)
    m_row = o_row < patches
    b_patch = o_row
    if p_patch_slots is not None:
        b_patch = tl.load(p_patch_slots + o_i * PATCH_SLOTS + o_row, mask=m_row, other=0)
    b_inverse = tl.load(p_image_inverse + o_i * P + b_patch, mask=m_row, other=0.0) * SHRINK
    # no patch, no caption's best: 2 is the least that a key's value can be
    b_base = tl.where(m_row, 3.0, 2.0)
    if p_token_keys is not None:
        p_token_keys += (own.to(tl.int64) * CHUNKS + tl.program_id(0) % CHUNKS) * SLOTS
    if p_patch_keys is not None:
        p_patch_keys += own.to(tl.int64) * J * P
    image = (o_row, patches, b_inverse, b_base)
    captions = (p_slot_inverse, p_captions, p_codes)
    found = (p_token_keys, p_patch_keys)
    operands = (d_tokens, load_slices(d_images, FIRST + own, first_row, 0, BLOCK_P, BLOCK_D, SLICES, UPCAST))
    b_product = tl.zeros([BLOCK_P, WIDTH], tl.float32)
    b_open = tl.zeros([BLOCK_P, LANES], tl.uint32)
    first = run * RUN_GRANULES
    if INTERPRETED:  # whose ranges take no bound from the device
        step = 0
        while step < tiles * SLICES:
            b_product, b_open = next_slice(
                step, first, operands, image, captions, found, b_product, b_open, unit, P, SLICES, BLOCK_D, TILE, UPCAST
            )
            step += 1
    else:
        for each in tl.range(0, tiles * SLICES, num_stages=STAGES):
            b_product, b_open = next_slice(
                each, first, operands, image, captions, found, b_product, b_open, unit, P, SLICES, BLOCK_D, TILE, UPCAST
            )

# mypy: disable-error-code="no-untyped-def"
"""Kernels along rows and vectors: norms, the end of a gradient, sums in a fixed order, float16's power of two."""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import clamped_inverse_norm, load_tile, store_tile
from sparc_kernels.ops.contrastive.triton_tiles import load_scale, load_vector


@triton.jit
def store_inverse_norms(
    p_rows, p_stats, block, N, stride_n, stride_d,
    D: tl.constexpr,
    FIELD: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Of a block of rows, into that field of their statistics [FIELDS, N]; the first field's norms clear the others."""
    o = block * BLOCK + tl.arange(0, BLOCK)
    b_squares = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        b_x = load_tile(p_rows, o, o_chunk + tl.arange(0, BLOCK_D), o < N, D, stride_n, stride_d, UPCAST).to(tl.float32)
        b_squares += b_x * b_x
    b_inverse, _ = clamped_inverse_norm(tl.sqrt_rn(tl.sum(b_squares, axis=1)))
    p_field = p_stats + tl.cast(N, tl.int64) * FIELD + o
    tl.store(p_field, b_inverse, mask=o < N)
    if FIELD == 0:
        for _ in tl.static_range(1, FIELDS):
            p_field += N
            tl.store(p_field, tl.zeros([BLOCK], tl.float32), mask=o < N)


@triton.jit(do_not_specialize=["M", "N"])
def inverse_norms_kernel(
    p_rows,  # [M, D]
    p_cols,  # [N, D]
    p_row_stats,  # [FIELDS, M]
    p_col_stats,  # [FIELDS, N]
    stride_m, stride_md, stride_n, stride_nd,
    M, N,
    D: tl.constexpr,
    FIELD: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    block, blocks = tl.program_id(0), tl.cdiv(M, BLOCK)
    if block < blocks:
        store_inverse_norms(
            p_rows, p_row_stats, block, M, stride_m, stride_md, D, FIELD, FIELDS, BLOCK, BLOCK_D, UPCAST
        )
    else:
        store_inverse_norms(
            p_cols, p_col_stats, block - blocks, N, stride_n, stride_nd, D, FIELD, FIELDS, BLOCK, BLOCK_D, UPCAST
        )


@triton.jit(do_not_specialize=["N"])
def grad_rows_kernel(
    p_rows,  # [N, D]
    p_product,  # W [N, D] float32, contiguous: G or its transpose times the other side
    p_inverse,  # [N], of the norms
    p_power,  # [2] or None: W / power[1] is meant
    p_grad,  # [N, D], contiguous
    p_of_cosines,  # [N] or None: gradient of the cosine of each row and its partner
    p_cosines,  # [N]
    p_partners,  # [N, D]
    p_partner_inverse,  # [N]
    stride_n, stride_d, stride_o, stride_od,
    N,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """W - x (x . W) / |x|^2, and g (y / |y| - c x / |x|) / |x| where a row y is the partner; no term with x where the
    norm is clamped."""
    o = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m = o < N
    unit = 1.0
    if p_power is not None:
        unit = tl.load(p_power + 1)
    b_dot = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_rows, o, o_d, m, D, stride_n, stride_d, UPCAST).to(tl.float32)
        b_dot += b_x * load_tile(p_product, o, o_d, m, D, D, 1, False)
    b_inverse = load_vector(p_inverse, o, N)
    b_along = tl.sum(b_dot, axis=1) * unit
    if p_of_cosines is not None:
        b_across = load_vector(p_of_cosines, o, N)
        b_along += b_across * load_vector(p_cosines, o, N)
        b_across *= b_inverse * load_vector(p_partner_inverse, o, N)
    b_along = tl.where(b_inverse < 1e12, b_along * b_inverse * b_inverse, 0.0)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_rows, o, o_d, m, D, stride_n, stride_d, UPCAST).to(tl.float32)
        b_grad = load_tile(p_product, o, o_d, m, D, D, 1, False) * unit - b_x * b_along[:, None]
        if p_of_cosines is not None:
            b_y = load_tile(p_partners, o, o_d, m, D, stride_o, stride_od, UPCAST).to(tl.float32)
            b_grad += b_y * b_across[:, None]
        store_tile(p_grad, b_grad, o, o_d, m, D, D, UPCAST)


@triton.jit
def scale_rows(p_rows, p_scaled, factor, o, N, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of [N, D] times a number, multiplied in float32; all of it contiguous."""
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_x = load_tile(p_rows, o, o_d, o < N, D, D, 1, UPCAST).to(tl.float32)
        store_tile(p_scaled, b_x * factor, o, o_d, o < N, D, D, UPCAST)


@triton.jit(do_not_specialize=["M", "N"])
def scaled_kernel(
    p_factor,  # []
    p_rows, p_scaled_rows,  # [M, D] or None
    p_cols, p_scaled_cols,  # [N, D] or None
    p_first, p_scaled_first,  # [] or None
    p_second, p_scaled_second,
    M, N,  # 0 where there is None
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """All that a forward pass has kept, times a number."""
    block, blocks = tl.program_id(0), tl.cdiv(M, BLOCK)
    factor = tl.load(p_factor)
    if block == 0:
        if p_first is not None:
            tl.store(p_scaled_first, tl.load(p_first) * factor)
        if p_second is not None:
            tl.store(p_scaled_second, tl.load(p_second) * factor)
    if block < blocks:
        if p_rows is not None:
            o = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
            scale_rows(p_rows, p_scaled_rows, factor, o, M, D, BLOCK_D, UPCAST)
    else:
        if p_cols is not None:
            o = ((block - blocks) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
            scale_rows(p_cols, p_scaled_cols, factor, o, N, D, BLOCK_D, UPCAST)


@triton.jit(do_not_specialize=["N", "GROUPS", "BLOCKS", "LATER", "stride_s"])
def merge_sums_kernel(
    p_partials,  # [FIELDS, GROUPS, N]
    p_sums,  # [FIELDS, N], stride_s from field to field
    stride_s, N, GROUPS,
    BLOCKS,  # of a field
    LATER,  # 1: added to what the sums hold
    BLOCK: tl.constexpr,
):  # fmt: skip
    field = tl.program_id(0) // BLOCKS
    o = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    p_sum = p_sums + tl.cast(field, tl.int64) * stride_s + o
    b_sum = tl.load(p_sum, mask=(o < N) & (tl.zeros_like(o) + LATER > 0), other=0.0)
    group = 0
    while group < GROUPS:  # the interpreter takes no bound of a range from the device
        b_sum += load_vector(p_partials + tl.cast(field * GROUPS + group, tl.int64) * N, o, N)
        group += 1
    tl.store(p_sum, b_sum, mask=o < N)


@triton.jit(do_not_specialize=["N"])
def total_kernel(
    p_vector,  # [N]
    p_weights,  # [N] or None: all 1
    p_total,  # []
    N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b_sum = tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < N:
        b_value = load_vector(p_vector, start + tl.arange(0, BLOCK), N)
        if p_weights is not None:
            b_value *= load_vector(p_weights, start + tl.arange(0, BLOCK), N)
        b_sum += b_value
        start += BLOCK
    tl.store(p_total, tl.sum(b_sum, axis=0))


@triton.jit
def largest(p_vector, n, BLOCK: tl.constexpr):
    """The largest of a vector of positive numbers; 0 for None."""
    top = 0.0
    if p_vector is not None:
        b_top = tl.zeros([BLOCK], tl.float32)
        start = 0
        while start < n:
            b_top = tl.maximum(b_top, load_vector(p_vector, start + tl.arange(0, BLOCK), n))
            start += BLOCK
        top = tl.max(b_top, axis=0)
    return top


@triton.jit(do_not_specialize=["M", "N"])
def top_scale_kernel(
    p_row_scale,  # [M], or [] with M = 1; None: that direction is not wanted
    p_col_scale,  # [N], or [] with N = 1
    p_top,  # []
    M, N,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tl.store(p_top, tl.maximum(largest(p_row_scale, M, BLOCK), largest(p_col_scale, N, BLOCK)))


@triton.jit
def reach(p_inverse, p_scale, p_first, p_second, p_third, n, PER_ITEM: tl.constexpr, BLOCK: tl.constexpr):
    """Largest of scale * sum of |gradients| / norm over items, and of 1 / norm; zero vectors do not count."""
    b_reach, b_long = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    start = 0
    while start < n:
        o = start + tl.arange(0, BLOCK)
        b_inverse = load_vector(p_inverse, o, n)
        b_inverse = tl.where(b_inverse < 1e12, b_inverse, 0.0)
        b_grad = tl.zeros([BLOCK], tl.float32)
        if p_first is not None:
            b_grad += tl.abs(load_vector(p_first, o, n))
        if p_second is not None:
            b_grad += tl.abs(load_vector(p_second, o, n))
        if p_third is not None:
            b_grad += tl.abs(load_vector(p_third, o, n))
        b_reach = tl.maximum(b_reach, load_scale(p_scale, o, n, PER_ITEM) * b_grad * b_inverse)
        b_long = tl.maximum(b_long, b_inverse)
        start += BLOCK
    return tl.max(b_reach, axis=0), tl.max(b_long, axis=0)


@triton.jit(do_not_specialize=["M", "N"])
def power_kernel(
    p_row_inverse, p_row_scale, p_grad_row_lse, p_grad_row_target, p_grad_row_soft,  # [M]
    p_col_inverse, p_col_scale, p_grad_col_lse, p_grad_col_target, p_grad_col_soft,  # [N]
    p_power,  # [2]: a power of two that brings the largest possible |G| below 2^15, and its inverse
    M, N,
    ROW_SCALES: tl.constexpr,
    COL_SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row_reach, row_long = reach(
        p_row_inverse, p_row_scale, p_grad_row_lse, p_grad_row_target, p_grad_row_soft, M, ROW_SCALES, BLOCK
    )
    col_reach, col_long = reach(
        p_col_inverse, p_col_scale, p_grad_col_lse, p_grad_col_target, p_grad_col_soft, N, COL_SCALES, BLOCK
    )
    bound = row_reach * col_long + col_reach * row_long
    exponent = bound.to(tl.int32, bitcast=True) >> 23  # biased by 127; no sign, as the bound has none
    exponent = tl.minimum(tl.maximum(268 - exponent, 1), 253)  # 2^14 over it
    tl.store(p_power, (exponent << 23).to(tl.float32, bitcast=True))
    tl.store(p_power + 1, ((254 - exponent) << 23).to(tl.float32, bitcast=True))

# mypy: disable-error-code="no-untyped-def"
"""Device helpers of the sweeps over the matrix of cosines: supertiles, who takes part, running sums.

A pair that takes no part has the cosine -inf: every exponential of it is 0. Prefixes as in ``ops/_triton/tiles.py``.
What belongs together travels as a tuple.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import rows_product, store_tile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(2**31 - 1)  # no column lies there
LEAST = tl.constexpr(-(2**63))
BAND = tl.constexpr(8)  # supertiles of rows that are walked side by side, so that they share columns in the L2 cache


@triton.jit
def locate_supertile(M, N, GROUP_M, GROUP_N):
    """(run of rows, run of columns) of this program: down a band of rows, then on to the next columns."""
    n_m, n_n = tl.cdiv(M, GROUP_M), tl.cdiv(N, GROUP_N)
    pid = tl.program_id(0)
    first = pid // (BAND * n_n) * BAND
    height = tl.minimum(n_m - first, BAND)
    return first + pid % (BAND * n_n) % height, pid % (BAND * n_n) // height


@triton.jit
def load_vector(p_vector, o, n):
    """[ROWS], 0 outside."""
    return tl.load(p_vector + o, mask=o < n, other=0.0)


@triton.jit
def load_scale(p_scale, o, n, PER_ITEM: tl.constexpr):
    """A single number [1], or [ROWS] of one per item."""
    if PER_ITEM:
        return tl.load(p_scale + o, mask=o < n, other=1.0)
    else:
        return tl.load(p_scale + tl.arange(0, 1))


@triton.jit
def load_ids(p_ids, o, n):
    """[ROWS]: ids of items, 0 where there are no ids; and who is there at all."""
    m = o < n
    b_ids = tl.zeros(o.shape, tl.int64)
    if p_ids is not None:
        b_ids = tl.load(p_ids + o, mask=m, other=-1)
        m = m & (b_ids != -1)
    return b_ids, m


@triton.jit
def range_of_ids(p_ids, o, n):
    """(least, greatest) id; the least is LEAST where somebody is missing."""
    b_ids, m = load_ids(p_ids, o, n)
    return tl.min(tl.where(m, b_ids, LEAST), axis=0), tl.max(b_ids, axis=0)


@triton.jit
def may_exclude(row_range, col_range, IDS_EXCLUDE: tl.constexpr):
    """Whether rows or columns are missing, or two may share an id, by their ranges of ids.

    Where ids name the items of a batch, that is so in few tiles.
    """
    row_least, row_greatest = row_range
    col_least, col_greatest = col_range
    needed = (row_least == LEAST) | (col_least == LEAST)
    if IDS_EXCLUDE:
        needed = needed | ((row_least <= col_greatest) & (col_least <= row_greatest))
    return needed


@triton.jit
def first_pair(p_indptr, p_indices, o_m, M, N_PAIRS, start):
    """[ROWS]: positions of the first excluded column from ``start`` on, and of the end of the rows."""
    m_m = o_m < M
    # a pattern that nobody has checked may point anywhere
    o_low = tl.minimum(tl.maximum(tl.load(p_indptr + o_m, mask=m_m, other=0), 0), N_PAIRS)
    o_end = tl.minimum(tl.maximum(tl.load(p_indptr + o_m + 1, mask=m_m, other=0), 0), N_PAIRS)
    o_high = tl.maximum(o_low, o_end)
    while tl.max(o_high - o_low, axis=0) > 0:
        o_middle = (o_low + o_high) // 2
        m_open = o_low < o_high
        b_column = tl.load(p_indices + o_middle, mask=m_open, other=0)
        m_before = m_open & (b_column < start)
        o_high = tl.where(m_open & (b_column >= start), o_middle, o_high)
        o_low = tl.where(m_before, o_middle + 1, o_low)
    return o_low, o_end


@triton.jit
def load_pair(p_indices, o_pair, o_end):
    """[ROWS] int32: the excluded column at a position, FAR beyond the row's end."""
    b_column = tl.load(p_indices + o_pair, mask=o_pair < o_end, other=FAR)
    return tl.minimum(tl.maximum(b_column, -1), FAR).to(tl.int32)


@triton.jit
def exclude_pairs(b_cosine, p_indices, o_pair, o_end, o_n, end):
    """-inf at the excluded columns before ``end``; and the positions of the first ones behind."""
    b_column = load_pair(p_indices, o_pair, o_end)
    while tl.min(b_column, axis=0) < end:
        b_cosine = tl.where(o_n[None, :] == b_column[:, None], -float("inf"), b_cosine)
        o_pair += (b_column < end).to(o_pair.dtype)
        b_column = load_pair(p_indices, o_pair, o_end)
    return b_cosine, o_pair


@triton.jit
def descriptor(p_side, n, stride, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of [n, D], for tiles of BLOCK rows."""
    return tl.make_tensor_descriptor(p_side, [n, D], [stride, 1], [BLOCK, BLOCK_D])


@triton.jit
def add_channels(left, right, first_m, first_n, o_d, b_tile, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """A tile's raw products with those of some more channels, by tensor descriptors."""
    b_left, b_right = left[5].load([first_m, o_d]), right[5].load([first_n, o_d])
    if UPCAST:
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    return tl.dot(b_left, tl.trans(b_right), b_tile, input_precision=PRECISION)


@triton.jit
def products(
    left, right, first_m, first_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] raw; a side is (pointer, how many, stride of one, stride of a channel, pointer to inverse
    norms, tensor descriptor or None)."""
    if left[5] is not None:
        b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for o_d in range(0, D, BLOCK_D):
            b_tile = add_channels(left, right, first_m, first_n, o_d, b_tile, PRECISION, UPCAST)
        return b_tile
    else:
        o_m, o_n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
        return rows_product(
            left[0], right[0], o_m, o_n, o_m < left[1], o_n < right[1], left[2], left[3], right[2], right[3], D,
            BLOCK_D, PRECISION, UPCAST
        )  # fmt: skip


@triton.jit
def halves(b_tile):
    """A tile's left and right half, which a thread holds already: nothing moves."""
    HALF: tl.constexpr = b_tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(b_tile, (b_tile.shape[0], 2, HALF)), (0, 2, 1)))


@triton.jit
def split_columns(b_tile, PARTS: tl.constexpr):
    """A tile in parts of its columns, a power of two: what is computed of one needs no registers for the others."""
    if PARTS == 1:
        return (b_tile,)
    else:
        b_left, b_right = halves(b_tile)
        return split_columns(b_left, PARTS // 2) + split_columns(b_right, PARTS // 2)


@triton.jit
def even_columns(N, EVEN: tl.constexpr):
    """N, and where that is a multiple of 16 in a form that shows it: masks of columns then agree 16 at a time, and what
    they guard moves in words of 16 bytes instead of one number after the other."""
    if EVEN:
        N = N // 16 * 16
    return N


@triton.jit
def whole_words(N):
    """The columns of a row that is padded to a multiple of 16."""
    return tl.cdiv(N, 16) * 16


@triton.jit
def cosines(b_product, b_left_inverse, right, o_n):
    """Of raw products; the left side's inverse norms [ROWS], the right side as in ``products``."""
    return b_product * b_left_inverse[:, None] * load_vector(right[4], o_n, right[1])[None, :]


@triton.jit
def locate_products(p_products, o_m, o_n, M, N, FIRST, stride_p):
    """Pointers to and mask of raw products, whose first row is the FIRST of a sweep, stride_p from row to row."""
    p_tile = p_products + (o_m - FIRST).to(tl.int64)[:, None] * stride_p + o_n[None, :]
    return p_tile, (o_m < M)[:, None] & (o_n < N)[None, :]


@triton.jit
def load_products(p_products, o_m, o_n, M, N, FIRST, stride_p):
    """[ROWS, COLS] raw, as ``locate_products`` finds them."""
    p_tile, m_tile = locate_products(p_products, o_m, o_n, M, N, FIRST, stride_p)
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def keep_products(p_products, b_product, o_m, o_n, M, N, FIRST, stride_p):
    """Store them for the backward pass, where they are kept."""
    if p_products is not None:
        p_tile, m_tile = locate_products(p_products, o_m, o_n, M, N, FIRST, stride_p)
        tl.store(p_tile, b_product, mask=m_tile)


@triton.jit
def mark_excluded(b_cosine, row, col, o_m, o_n, IDS_EXCLUDE: tl.constexpr):
    """-inf where a row or a column is missing, or their ids are equal and exclude; a side is (pointer, how many)."""
    b_row_ids, m_m = load_ids(row[0], o_m, row[1])
    b_col_ids, m_n = load_ids(col[0], o_n, col[1])
    m_part = m_m[:, None] & m_n[None, :]
    if IDS_EXCLUDE:
        m_part = m_part & (b_row_ids[:, None] != b_col_ids[None, :])
    return tl.where(m_part, b_cosine, -float("inf"))


@triton.jit
def same_ids(p_row_ids, p_col_ids, o_m, o_n, M, N):
    """Where ids are equal."""
    b_row_ids, _ = load_ids(p_row_ids, o_m, M)
    b_col_ids, _ = load_ids(p_col_ids, o_n, N)
    return b_row_ids[:, None] == b_col_ids[None, :]


@triton.jit
def mark_above(b_cosine, b_guide, p_threshold, o_m, M, PER_ITEM: tl.constexpr):
    """-inf where a guide's cosine is above the threshold, if there is one."""
    if p_threshold is not None:
        b_cosine = tl.where(b_guide > load_scale(p_threshold, o_m, M, PER_ITEM)[:, None], -float("inf"), b_cosine)
    return b_cosine


@triton.jit
def guide_logits(b_guide, b_cosine, p_guide_scale):
    """Scaled cosines of a guide to the base 2, -inf at pairs that take no part."""
    return tl.where(b_cosine > -float("inf"), b_guide * (tl.load(p_guide_scale) * LOG2E), -float("inf"))


@triton.jit
def finite(b_top):
    """A reference for exponentials: 0 where there is nothing."""
    return tl.where(b_top == -float("inf"), 0.0, b_top)


@triton.jit
def running_sum(b_x, b_top, b_sum, AXIS: tl.constexpr):
    """(top, sum of 2^(x - top)) of what was before and of x [ROWS, COLS] along an axis."""
    b_new = tl.maximum(b_top, tl.max(b_x, axis=AXIS))
    b_reference = finite(b_new)
    b_sum = b_sum * tl.exp2(b_top - b_reference)
    return b_new, b_sum + tl.sum(tl.exp2(b_x - tl.expand_dims(b_reference, AXIS)), axis=AXIS)


@triton.jit
def running_mean(b_x, b_value, b_top, b_sum, b_total, AXIS: tl.constexpr):
    """As ``running_sum``, and the sum of value * 2^(x - top)."""
    b_new = tl.maximum(b_top, tl.max(b_x, axis=AXIS))
    b_reference = finite(b_new)
    b_shrink = tl.exp2(b_top - b_reference)
    b_weight = tl.exp2(b_x - tl.expand_dims(b_reference, AXIS))
    b_total = b_total * b_shrink + tl.sum(b_weight * b_value, axis=AXIS)
    return b_new, b_sum * b_shrink + tl.sum(b_weight, axis=AXIS), b_total


@triton.jit
def load_partial(p_partials, o, n, group, groups, earlier, FIELD: tl.constexpr, OTHER: tl.constexpr):
    """[ROWS] of a field of partial results [FIELDS, groups, n]; OTHER outside, and where there is none from earlier."""
    p_field = p_partials + (groups * FIELD + group).to(tl.int64) * n
    return tl.load(p_field + o, mask=(o < n) & (tl.zeros_like(o) + earlier > 0), other=OTHER)


@triton.jit
def store_partial(p_partials, b_value, o, n, group, groups, FIELD: tl.constexpr):
    """[ROWS] into a field of partial results [FIELDS, groups, n]."""
    tl.store(p_partials + (groups * FIELD + group).to(tl.int64) * n + o, b_value, mask=o < n)


@triton.jit
def in_range(b_cosine):
    """A cosine that may be multiplied with 0: that of a pair that takes no part is -inf."""
    return tl.maximum(b_cosine, -2.0)


@triton.jit
def in_float16(b_gradient, p_power):
    """G with a power of two in front and within float16's range. What is clamped belongs to zero vectors, whose
    gradients are beyond float16; infinities would spoil all others."""
    return tl.minimum(tl.maximum(b_gradient * tl.load(p_power), -65504.0), 65504.0)


@triton.jit
def store_gradient(p_gradient, b_gradient, p_power, o_m, o_n, M, N, stride_g, UPCAST: tl.constexpr):
    """A tile of G, rounded to its dtype; the rows of G are padded to whole words."""
    if p_power is not None:
        b_gradient = in_float16(b_gradient, p_power)
    store_tile(p_gradient, b_gradient, o_m, o_n, o_m < M, whole_words(N), stride_g, UPCAST)

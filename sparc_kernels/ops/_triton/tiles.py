# mypy: disable-error-code="no-untyped-def"
"""Device helpers that several Triton kernels share: loads, the cut at the threshold, products, gradients.

Symbols are those of ``ops/fine_grained/MATH.md``. Prefixes: ``p_`` pointer, ``o_`` offset, ``m_`` mask, ``b_`` block.
Blocks: ``L`` rows of tokens, ``P`` rows of patches, ``D`` channels.
"""

import triton
import triton.language as tl

# A row of similarities is flat if its range is at most 16 eps(float32) times its largest magnitude.
FLAT_RANGE = tl.constexpr(2.0**-19)
MIN_NORM = tl.constexpr(1e-12)


@triton.jit
def load_mask(p_mask, o_batch, o_rows, n_rows, stride_batch, stride_row):
    """[ROWS] int1: inside the tensor, and True in the [B, n_rows] mask if there is one. ``o_batch`` is an int64."""
    m_rows = o_rows < n_rows
    if p_mask is not None:
        p_rows = p_mask + o_batch * stride_batch + o_rows.to(tl.int64) * stride_row
        m_rows = m_rows & (tl.load(p_rows, mask=m_rows, other=0) != 0)
    return m_rows


@triton.jit
def threshold_of(p_threshold, n_patches):
    """sigma (1 / number of valid patches unless given), and NaN in place of 0 for an image without a valid patch."""
    poison = tl.where(n_patches > 0, 0.0, float("nan"))
    if p_threshold is None:
        return 1.0 / tl.maximum(n_patches, 1).to(tl.float32), poison
    else:
        return tl.load(p_threshold), poison


@triton.jit
def load_tile(p_base, o_rows, o_cols, m_rows, n_cols, stride_row, stride_col, UPCAST: tl.constexpr):
    """[ROWS, COLS] of a matrix, 0 where a row is masked or a column lies outside."""
    # 64 bits: a transposed view can put 2^31 elements between two rows of one pair
    p_tile = p_base + o_rows.to(tl.int64)[:, None] * stride_row + o_cols.to(tl.int64)[None, :] * stride_col
    b_tile = tl.load(p_tile, mask=m_rows[:, None] & (o_cols < n_cols)[None, :], other=0.0)
    if UPCAST:
        b_tile = b_tile.to(tl.float32)
    return b_tile


@triton.jit
def store_tile(p_base, b_tile, o_rows, o_cols, m_rows, n_cols, stride_row, UPCAST: tl.constexpr):
    """[ROWS, COLS] float32 into rows of contiguous columns, rounded to the tensor's dtype."""
    p_tile = p_base + o_rows.to(tl.int64)[:, None] * stride_row + o_cols[None, :]
    m_tile = m_rows[:, None] & (o_cols < n_cols)[None, :]
    if UPCAST:  # the interpreter truncates float32 to bfloat16: round to nearest even before it does
        b_bits = b_tile.to(tl.int32, bitcast=True)
        b_bits = ((b_bits + 0x7FFF + ((b_bits >> 16) & 1)) >> 16) << 16
        b_tile = tl.where(b_tile == b_tile, b_bits.to(tl.float32, bitcast=True), b_tile)
    tl.store(p_tile, b_tile.to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def store_mean(p_mean, b_tile, n_rows, o_cols, n_cols, UPCAST: tl.constexpr):
    """The mean over rows of [ROWS, COLS], of which ``n_rows`` count and the others are 0, into a row of ``p_mean``."""
    b_mean = tl.sum(b_tile.to(tl.float32), axis=0)[None, :] * (1.0 / tl.maximum(n_rows, 1).to(tl.float32))
    o_row = tl.arange(0, 1)
    store_tile(p_mean, b_mean, o_row, o_cols, o_row < 1, n_cols, n_cols, UPCAST)


@triton.jit
def share_of_mean(p_grad_mean, n_rows, o_cols, n_cols):
    """[1, COLS]: what each of ``n_rows`` rows gets of the gradient of their mean."""
    b_grad = tl.load(p_grad_mean + o_cols, mask=o_cols < n_cols, other=0.0).to(tl.float32)
    return b_grad[None, :] * (1.0 / tl.maximum(n_rows, 1).to(tl.float32))


@triton.jit
def row_extrema(b_similarity, m_patches):
    """Minimum and maximum [L] of rows of similarities [L, P] over the valid patches; 0 and 0 if there is none."""
    b_min = tl.min(tl.where(m_patches[None, :], b_similarity, float("inf")), axis=1)
    b_max = tl.max(tl.where(m_patches[None, :], b_similarity, -float("inf")), axis=1)
    m_none = b_min > b_max
    return tl.where(m_none, 0.0, b_min), tl.where(m_none, 0.0, b_max)


@triton.jit
def min_max_heights(b_similarity, b_min, b_max, m_patches):
    """H [L, P] and the range [L] of the row, 0 in flat rows.

    H replaces S and the masks in registers: S = m + (M - m) H, kept patches have H >= sigma, minima (and every patch of
    a flat row) H = 0, the maximum H = 1, masked patches H = -1.
    """
    b_range = b_max - b_min
    b_range = tl.where(b_range <= FLAT_RANGE * tl.maximum(tl.abs(b_min), tl.abs(b_max)), 0.0, b_range)
    b_height = (b_similarity - b_min[:, None]) * (1.0 / tl.where(b_range == 0.0, 1.0, b_range))[:, None]
    b_height = tl.where(b_similarity == b_max[:, None], 1.0, b_height)
    b_height = tl.where((b_range == 0.0)[:, None], 0.0, b_height)
    return tl.where(m_patches[None, :], b_height, -1.0), b_range


@triton.jit
def alignment(b_height, b_range, sigma):
    """U [L, P] in units of the row's range: K * H, and 1 on every valid patch of a flat row.

    ``sigma`` is a scalar or [L, 1]. K is written as "not cut", so that a NaN is kept and seen.
    """
    m_flat = (b_range == 0.0)[:, None]
    b_weight = tl.where(m_flat, 1.0, b_height)
    return tl.where(b_height < tl.where(m_flat, 0.0, sigma), 0.0, b_weight)


@triton.jit
def group_chunk(b_weight, b_patches, SHRINK: tl.constexpr, PRECISION: tl.constexpr):
    """C' [L, D'] = U V of some channels. In float16 a sum over patches may leave the range: SHRINK makes it a mean."""
    return tl.dot(b_weight, b_patches, input_precision=PRECISION) * SHRINK


@triton.jit
def split_dot(b_left, b_right, b_sum, PRECISION: tl.constexpr):
    """b_sum + b_left @ b_right, the float32 left operand in two halves where the right one has half precision."""
    b_high = b_left.to(b_right.dtype)
    b_sum = tl.dot(b_high, b_right, b_sum, input_precision=PRECISION)
    if b_right.dtype != tl.float32:
        b_sum = tl.dot((b_left - b_high.to(tl.float32)).to(b_right.dtype), b_right, b_sum)
    return b_sum


@triton.jit
def split_dot_right(b_left, b_right, b_sum, PRECISION: tl.constexpr):
    """b_sum + b_left @ b_right, the float32 right operand in two halves where the left one has half precision."""
    b_high = b_right.to(b_left.dtype)
    b_sum = tl.dot(b_left, b_high, b_sum, input_precision=PRECISION)
    if b_left.dtype != tl.float32:
        b_sum = tl.dot(b_left, (b_right - b_high.to(tl.float32)).to(b_left.dtype), b_sum)
    return b_sum


@triton.jit
def clamped_inverse_norm(b_norm):
    """1 / norm [L], and the factor that a clamped norm has in its own gradient: 0."""
    b_inverse = 1.0 / tl.maximum(b_norm, MIN_NORM)
    return b_inverse, tl.where(b_norm > MIN_NORM, b_inverse * b_inverse, 0.0)


@triton.jit
def masked_logsumexp(b_logits, m_logits, AXIS: tl.constexpr):
    """log sum exp over one axis of [L, L] where the mask is True; 0 where it is nowhere."""
    b_logits = tl.where(m_logits, b_logits, -float("inf"))
    b_top = tl.max(b_logits, axis=AXIS)
    b_top = tl.where(b_top == -float("inf"), 0.0, b_top)
    b_sum = tl.sum(tl.exp(b_logits - tl.expand_dims(b_top, AXIS)), axis=AXIS)
    return b_top + tl.log(tl.where(b_sum == 0.0, 1.0, b_sum))


@triton.jit
def grad_logits(
    b_z, b_w_row, b_w_column, b_group_norm, b_token_norm, b_row, b_column, scale, m_diagonal, m_pairs,
    IS_HALF: tl.constexpr,
):  # fmt: skip
    """dZ of a tile [L, L'] of Z; 0 where ``m_pairs`` is False.

    In float16 a token without a length would set the unit of all others (1 / |t| = 1e12): the product dZ T multiplies
    it with zeros, so its column of dZ goes without 1 / |t| and the caller puts it back into dT.
    """
    b_r, _ = clamped_inverse_norm(b_group_norm)
    b_q, _ = clamped_inverse_norm(b_token_norm)
    b_y = tl.where(m_pairs, scale * (b_z * (b_r[:, None] * b_q[None, :])), -float("inf"))
    b_dy = 0.5 * b_w_row[:, None] * tl.exp(b_y - b_row[:, None])
    b_dy += 0.5 * b_w_column[None, :] * tl.exp(b_y - b_column[None, :])
    b_dy -= tl.where(m_diagonal, b_w_row[:, None], 0.0)
    if IS_HALF:
        b_q = tl.where(b_token_norm <= MIN_NORM, 1.0, b_q)
    return scale * (b_r[:, None] * b_q[None, :]) * b_dy


@triton.jit
def largest_magnitude(b_tile):
    """max |x| of a block, 1 if all of it is 0: the unit in which float16 can hold it."""
    top = tl.max(tl.abs(b_tile))
    return tl.where(top > 0.0, top, 1.0)


@triton.jit
def grad_similarities(b_grad, b_height, b_range, sigma):
    """dS [L, P] from dU [L, P], U in units of the row's range: K dU, less its row sum at the minima; 0 in flat rows."""
    b_grad = tl.where(b_height < sigma, 0.0, b_grad)
    b_ties = tl.sum(tl.where(b_height == 0.0, 1.0, 0.0), axis=1)
    b_shared = tl.sum(b_grad, axis=1) / tl.maximum(b_ties, 1.0)
    b_inverse_range = tl.where(b_range == 0.0, 0.0, 1.0 / tl.where(b_range == 0.0, 1.0, b_range))
    b_grad = b_grad - tl.where(b_height == 0.0, b_shared[:, None], 0.0)
    return b_grad * b_inverse_range[:, None]

# mypy: disable-error-code="no-untyped-def"
"""Device helpers of any kernel: masked loads, rounded stores, products in two halves, norms, softmaxes.

Prefixes: ``p_`` pointer, ``o_`` offset, ``m_`` mask, ``b_`` block.
"""

import triton
import triton.language as tl

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
def load_tile(p_base, o_rows, o_cols, m_rows, n_cols, stride_row, stride_col, UPCAST: tl.constexpr):
    """[ROWS, COLS] of a matrix, 0 where a row is masked or a column lies outside."""
    # 64 bits: a transposed view can put 2^31 elements between two rows of one item
    p_tile = p_base + o_rows.to(tl.int64)[:, None] * stride_row + o_cols.to(tl.int64)[None, :] * stride_col
    b_tile = tl.load(p_tile, mask=m_rows[:, None] & (o_cols < n_cols)[None, :], other=0.0)
    if UPCAST:
        b_tile = b_tile.to(tl.float32)
    return b_tile


@triton.jit
def rounded(b_tile, UPCAST: tl.constexpr):
    """float32 such that a cast to bfloat16 is to nearest even: the interpreter's cuts off."""
    if UPCAST:
        b_bits = b_tile.to(tl.int32, bitcast=True)
        b_bits = ((b_bits + 0x7FFF + ((b_bits >> 16) & 1)) >> 16) << 16
        b_tile = tl.where(b_tile == b_tile, b_bits.to(tl.float32, bitcast=True), b_tile)
    return b_tile


@triton.jit
def store_tile(p_base, b_tile, o_rows, o_cols, m_rows, n_cols, stride_row, UPCAST: tl.constexpr):
    """[ROWS, COLS] float32 into rows of contiguous columns, rounded to the tensor's dtype."""
    p_tile = p_base + o_rows.to(tl.int64)[:, None] * stride_row + o_cols[None, :]
    m_tile = m_rows[:, None] & (o_cols < n_cols)[None, :]
    tl.store(p_tile, rounded(b_tile, UPCAST).to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def store_inside(p_base, b_tile, o_rows, o_cols, stride_row, UPCAST: tl.constexpr):
    """As ``store_tile``, where all of it lies inside the tensor."""
    p_tile = p_base + o_rows.to(tl.int64)[:, None] * stride_row + o_cols[None, :]
    tl.store(p_tile, rounded(b_tile, UPCAST).to(p_base.dtype.element_ty))


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
def rows_product(
    p_left, p_right, o_left, o_right, m_left, m_right, stride_am, stride_ad, stride_bn, stride_bd,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLS] float32: rows of the left matrix times rows of the right one, over D channels."""
    b_product = tl.zeros([o_left.shape[0], o_right.shape[0]], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_left = load_tile(p_left, o_left, o_d, m_left, D, stride_am, stride_ad, UPCAST)  # [ROWS, BLOCK_D]
        b_right = load_tile(p_right, o_right, o_d, m_right, D, stride_bn, stride_bd, UPCAST)  # [COLS, BLOCK_D]
        b_product = tl.dot(b_left, tl.trans(b_right), b_product, input_precision=PRECISION)
    return b_product


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
def largest_magnitude(b_tile):
    """max |x| of a block, 1 if all of it is 0: the unit in which float16 can hold it."""
    top = tl.max(tl.abs(b_tile))
    return tl.where(top > 0.0, top, 1.0)

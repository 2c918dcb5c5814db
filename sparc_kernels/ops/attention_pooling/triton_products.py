# mypy: disable-error-code="no-untyped-def"
"""Products of the backward pass over valid tokens only, whose number the host does not know: on sm_90 and later.

A program sums up a part of the depth, so that few tiles keep all multiprocessors busy; parts lie one behind the other.
Matrices [rows, IMAGES * PADDED] have the rows of a block of tokens, FIRST_ROW to LAST_ROW.
"""

import triton
import triton.language as tl

BLOCKS = ["J", "N", "IMAGES", "FIRST", "FIRST_ROW", "LAST_ROW", "PARTS"]


@triton.jit
def part_of(depth, part, PARTS, BLOCK_K: tl.constexpr, STEPS: tl.constexpr):
    """Where a part of the depth begins, and how many blocks it has; in the interpreter, which cannot count to a number
    out of memory, STEPS, and what lies behind the depth is 0."""
    length = tl.cdiv(tl.cdiv(depth, PARTS), BLOCK_K)
    if STEPS is None:
        first = tl.minimum(part * length * BLOCK_K, depth)
        return first, tl.cdiv(tl.minimum(first + length * BLOCK_K, depth) - first, BLOCK_K)
    else:
        return part * STEPS * BLOCK_K, STEPS


@triton.jit
def valid_rows(p_starts, J, FIRST_ROW, LAST_ROW):
    """Of this block of tokens."""
    return tl.maximum(tl.minimum(tl.load(p_starts + J), LAST_ROW) - FIRST_ROW, 0)


@triton.jit
def bound(count, STEPS: tl.constexpr):
    """The rows of a descriptor, of which there is at least one; the interpreter, which reads rows beyond, gets 0s."""
    if STEPS is None:
        return tl.maximum(count, 1)
    else:
        return count


@triton.jit
def operand(b_x, UPCAST: tl.constexpr):
    """For a product, in the interpreter too."""
    if UPCAST:
        return b_x.to(tl.float32)
    else:
        return b_x


@triton.jit
def store_sum(p_out, b_x, m, ADD: tl.constexpr):
    """Into a result, or added to it."""
    if ADD:
        b_x += tl.load(p_out, mask=m, other=0.0)
    tl.store(p_out, b_x, mask=m)


@triton.jit(do_not_specialize=BLOCKS)
def product_kernel(
    p_similarity_grad,  # [rows, IMAGES * PADDED]: dS, stride_w from row to row
    p_operand,  # images [I, PADDED, D], or texts [N, D] where TRANSPOSED
    p_starts,  # [J + 1] int32
    p_product,  # [PARTS, N, D]: dS V, of valid tokens; TRANSPOSED [PARTS, IMAGES * PADDED, D]: dS^T T
    stride_w,
    J, N, IMAGES, FIRST, FIRST_ROW, LAST_ROW, PARTS,
    PADDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    STEPS: tl.constexpr,
    ADD: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    part, tile = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    columns: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    row, column = tile // columns * BLOCK_M, tile % columns * BLOCK_N
    count, width = valid_rows(p_starts, J, FIRST_ROW, LAST_ROW), IMAGES * PADDED
    described = bound(count, STEPS)
    if TRANSPOSED:
        rows, depth, above, o_product = width, count, FIRST_ROW, tl.cast(part, tl.int64) * width
        end = above + described
    else:
        rows, depth, above, o_product = count, width, FIRST * PADDED, tl.cast(part, tl.int64) * N + FIRST_ROW
        end = above + width
    if row < rows:
        down: tl.constexpr = BLOCK_K if TRANSPOSED else BLOCK_M
        across: tl.constexpr = BLOCK_M if TRANSPOSED else BLOCK_K
        left = tl.make_tensor_descriptor(p_similarity_grad, [described, width], [stride_w, 1], [down, across])
        right = tl.make_tensor_descriptor(p_operand, [end, D], [D, 1], [BLOCK_K, BLOCK_N])
        first, steps = part_of(depth, part, PARTS, BLOCK_K, STEPS)
        b_x = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(steps):
            o = first + step * BLOCK_K
            if TRANSPOSED:
                b_left = tl.trans(left.load([o, row]))
            else:
                b_left = left.load([row, o])
            b_x = tl.dot(operand(b_left, UPCAST), operand(right.load([above + o, column]), UPCAST), b_x)
        o_m, o_n = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
        o_out = (o_product + o_m)[:, None] * D + o_n[None, :]
        store_sum(p_product + o_out, b_x, (o_m < rows)[:, None] & (o_n < D)[None, :], ADD)


@triton.jit(do_not_specialize=BLOCKS)
def gram_gradient_kernel(
    p_weights,  # [rows, IMAGES * PADDED]: E
    p_weights_grad,  # the same: w E, a number of the row times E
    p_starts,  # [J + 1] int32
    p_gram_grad,  # [PARTS, IMAGES, PADDED, PADDED]: E^T w E
    stride_w,
    J, N, IMAGES, FIRST, FIRST_ROW, LAST_ROW, PARTS,
    PADDED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    ADD: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """An image's: the blocks on its diagonal and, of two, the one beside it, whose mirror image is the fourth."""
    part, image = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    TWO: tl.constexpr = PADDED > BLOCK_P
    count = valid_rows(p_starts, J, FIRST_ROW, LAST_ROW)
    p_left, p_right = p_weights_grad + image * PADDED, p_weights + image * PADDED
    left = tl.make_tensor_descriptor(p_left, [bound(count, STEPS), PADDED], [stride_w, 1], [BLOCK_K, BLOCK_P])
    right = tl.make_tensor_descriptor(p_right, [bound(count, STEPS), PADDED], [stride_w, 1], [BLOCK_K, BLOCK_P])
    first, steps = part_of(count, part, PARTS, BLOCK_K, STEPS)
    b_first = tl.zeros([BLOCK_P, BLOCK_P], tl.float32)
    b_beside = tl.zeros([BLOCK_P, BLOCK_P], tl.float32)
    b_last = tl.zeros([BLOCK_P, BLOCK_P], tl.float32)
    for step in range(steps):
        o = first + step * BLOCK_K
        b_right = operand(right.load([o, 0]), UPCAST)
        b_left = operand(tl.trans(left.load([o, 0])), UPCAST)
        b_first = tl.dot(b_left, b_right, b_first)
        if TWO:
            b_right = operand(right.load([o, BLOCK_P]), UPCAST)
            b_beside = tl.dot(b_left, b_right, b_beside)
            b_last = tl.dot(operand(tl.trans(left.load([o, BLOCK_P])), UPCAST), b_right, b_last)
    p_out = p_gram_grad + (tl.cast(part, tl.int64) * IMAGES + image) * PADDED * PADDED
    o_p = tl.arange(0, BLOCK_P)
    o_row, o_column = o_p[:, None] * PADDED, o_p[None, :]
    m, m_last = o_p < PADDED, BLOCK_P + o_p < PADDED
    store_sum(p_out + o_row + o_column, b_first, m[:, None] & m[None, :], ADD)
    if TWO:
        p_last = p_out + BLOCK_P * PADDED + BLOCK_P
        store_sum(p_out + o_row + BLOCK_P + o_column, b_beside, m[:, None] & m_last[None, :], ADD)
        store_sum(p_out + o_p[:, None] + (BLOCK_P + o_p)[None, :] * PADDED, b_beside, m[:, None] & m_last[None, :], ADD)
        store_sum(p_last + o_row + o_column, b_last, m_last[:, None] & m_last[None, :], ADD)

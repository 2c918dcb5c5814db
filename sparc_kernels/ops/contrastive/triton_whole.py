# mypy: disable-error-code="no-untyped-def"
"""Sweeps over supertiles in which every pair takes part and every tile lies inside the matrix: most of them, where ids
name the items of a batch.

Nothing is masked, numbers of a column are loaded before the products that they wait for, and sums stay spread over
threads until a run of tiles ends. One scale serves both directions.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.launch import interpreted
from sparc_kernels.ops._triton.tiles import store_inside
from sparc_kernels.ops.contrastive.triton_tiles import (
    LN2,
    LOG2E,
    add_channels,
    finite,
    in_float16,
    load_partial,
    load_vector,
    may_exclude,
    range_of_ids,
    split_columns,
    store_gradient,
    store_partial,
)

INTERPRETED = tl.constexpr(interpreted())
SAFE_SCALE = tl.constexpr(60.0)  # below, no exponential of a scaled cosine leaves float32 (``MATH.md``, Numerics)
LARGEST_SCALE = tl.constexpr(100.0)  # up to it a fixed reference does, but for rows and columns far from all others
LEAST_LOG = tl.constexpr(-62.0 * 1.4426950408889634)  # of a sum: what float32 has lost of it is below its rounding
TOP, SUM = tl.constexpr(0), tl.constexpr(1)
# Sums over a run of columns: Z c and Z, for the gradients of scale and bias; and softplus beside them.
SCALE, BIAS, VALUE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def reference_of(scale):
    """What is taken off all logits: to the base e, 0 where the scale is safe."""
    return tl.maximum(scale - SAFE_SCALE, 0.0)


@triton.jit
def all_within(p_lse, first, n, reference, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Whether no sum of exponentials of TILES tiles is far below the reference."""
    b_least = tl.zeros([BLOCK], tl.float32)
    if p_lse is not None:
        for tile in range(TILES):
            o = first + tile * BLOCK + tl.arange(0, BLOCK)
            b_least = tl.minimum(b_least, finite(tl.load(p_lse + o, mask=o < n, other=0.0)) - reference)
    return tl.min(b_least, axis=0) * LOG2E >= LEAST_LOG


@triton.jit
def range_of_run(p_ids, first, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """As ``range_of_ids``, of TILES tiles."""
    least, greatest = range_of_ids(p_ids, first + tl.arange(0, BLOCK), n)
    for tile in range(1, TILES):
        some_least, some_greatest = range_of_ids(p_ids, first + tile * BLOCK + tl.arange(0, BLOCK), n)
        least, greatest = tl.minimum(least, some_least), tl.maximum(greatest, some_greatest)
    return least, greatest


@triton.jit
def is_whole(
    p_row_ids, p_col_ids, group_m, group_n, M, N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    IDS_EXCLUDE: tl.constexpr,
):  # fmt: skip
    """Whether a supertile lies inside the matrix and no two of its ids can be one."""
    inside = ((group_m + 1) * TILES_M * BLOCK_M <= M) & ((group_n + 1) * TILES_N * BLOCK_N <= N)
    if p_row_ids is not None:
        rows = range_of_run(p_row_ids, group_m * TILES_M * BLOCK_M, M, BLOCK_M, TILES_M)
        cols = range_of_run(p_col_ids, group_n * TILES_N * BLOCK_N, N, BLOCK_N, TILES_N)
        inside = inside & (may_exclude(rows, cols, IDS_EXCLUDE) == 0)
    return inside


@triton.jit
def after(chunk, tile, CHUNKS: tl.constexpr):
    """The next channels of a tile, or the first of the next tile.

    One loop over both lets copies for a tile run ahead while the one before it is still being finished. Tiles of a
    supertile are powers of two, so that masks find their place: a division would come between matrix instructions.
    """
    chunk = tl.where(chunk == CHUNKS - 1, 0, chunk + 1)
    return chunk, tl.where(chunk == 0, tile + 1, tile)


@triton.jit
def strands_of_cols(b_x):
    """[32, COLS]: sums of those rows that a thread of four warps holds (wgmma's layout): nothing moves."""
    ROWS: tl.constexpr = b_x.shape[0]
    COLS: tl.constexpr = b_x.shape[1]
    if ROWS % 64 == 0:
        b_x = tl.sum(tl.reshape(b_x, (ROWS // 64, 4, 2, 8, COLS)), axis=2)
        b_x = tl.reshape(tl.sum(b_x, axis=0), (32, COLS))
    return b_x


@triton.jit
def strands_of_rows(b_x):
    """[ROWS, 4]: sums of those columns that a thread holds: nothing moves."""
    ROWS: tl.constexpr = b_x.shape[0]
    COLS: tl.constexpr = b_x.shape[1]
    b_x = tl.sum(tl.reshape(b_x, (ROWS, COLS // 8, 4, 2)), axis=3)
    return tl.sum(b_x, axis=1)


@triton.jit
def with_products(b_sum, b_x, b_y):
    """[ROWS, 8] and the products of x and y, summed over every eighth column, which a thread holds: one fused
    instruction each, where a sum of products along an axis would take two for each pair."""
    COUNT: tl.constexpr = b_x.shape[1] // 8
    some_x, some_y = split_columns(b_x, COUNT), split_columns(b_y, COUNT)
    for i in tl.static_range(COUNT):
        b_sum += some_x[i] * some_y[i]
    return b_sum


@triton.jit
def whole_logsumexp(
    left, right, p_scale, p_row_partials, p_col_partials, group_m, group_n, GROUPS_M, GROUPS_N,
    D: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The partial results of a supertile, whose exponentials have one reference; whether that was too high for a row's
    or a column's, of which float32 has then lost too much."""
    M, N = left[1], right[1]
    STRANDS: tl.constexpr = 32 if BLOCK_M % 64 == 0 else BLOCK_M
    scale = tl.load(p_scale)
    reference = reference_of(scale) * LOG2E
    b_row_least, b_col_least = tl.full([BLOCK_M], 1.0, tl.float32), tl.full([BLOCK_N], 1.0, tl.float32)
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_col_sum = tl.zeros([STRANDS, BLOCK_N], tl.float32)
    chunk, tile = -1, -1
    for _ in range(TILES_M * TILES_N * CHUNKS):
        chunk, tile = after(chunk, tile, CHUNKS)
        first_m = (group_m * TILES_M + (tile & (TILES_M - 1))) * BLOCK_M
        first_n = (group_n * TILES_N + tile // TILES_M) * BLOCK_N
        b_tile = add_channels(left, right, first_m, first_n, chunk * BLOCK_D, b_tile, PRECISION, UPCAST)
        if chunk == CHUNKS - 1:
            o_m, o_n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
            b_row_factor = (tl.load(left[4] + o_m) * (scale * LOG2E))[:, None]
            b_e = tl.exp2(b_tile * (b_row_factor * tl.load(right[4] + o_n)[None, :]) - reference)
            b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if p_row_partials is not None:
                # loaded by the threads that store it, so that no barrier keeps copies from running ahead
                b_sum = load_partial(p_row_partials, o_m, M, group_n, GROUPS_N, tile // TILES_M, SUM, 0.0)
                b_sum += tl.sum(b_e, axis=1)
                b_row_least = tl.minimum(b_row_least, b_sum)
                store_partial(p_row_partials, b_sum, o_m, M, group_n, GROUPS_N, SUM)
                store_partial(p_row_partials, tl.zeros_like(b_sum) + reference, o_m, M, group_n, GROUPS_N, TOP)
            if p_col_partials is not None:
                b_col_sum += strands_of_cols(b_e)
                if tile % TILES_M == TILES_M - 1:
                    b_end = tl.sum(b_col_sum, axis=0)
                    b_col_least = tl.minimum(b_col_least, b_end)
                    store_partial(p_col_partials, b_end, o_n, N, group_m, GROUPS_M, SUM)
                    store_partial(p_col_partials, tl.zeros_like(b_end) + reference, o_n, N, group_m, GROUPS_M, TOP)
                    b_col_sum = tl.zeros([STRANDS, BLOCK_N], tl.float32)
    least = tl.minimum(tl.min(b_row_least, axis=0), tl.min(b_col_least, axis=0))
    return tl.log2(least) < LEAST_LOG


@triton.jit
def weights_of(p_grad, p_lse, o, n, reference):
    """Gradient of log-sum-exp over the sum of exponentials of that reference, times ln 2; 0 where none is wanted."""
    b_weight = tl.zeros(o.shape, tl.float32)
    if p_grad is not None:
        b_weight = load_vector(p_grad, o, n) * LN2 * tl.exp2((reference - finite(load_vector(p_lse, o, n))) * LOG2E)
    return b_weight


@triton.jit
def whole_gradient(
    left, right, p_scale, row, col, p_power, p_gradient, p_row_partials, p_col_partials, stride_g,
    group_m, group_n, GROUPS_N,
    D: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """G of a supertile. One exponential e serves both directions, G = e (w_i + v_j) s a_i b_j; a side is pointers to
    its gradients of log-sum-exp and to these."""
    M, N = left[1], right[1]
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    scale = tl.load(p_scale)
    reference = reference_of(scale)
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_row_sum, b_other_sum = tl.zeros([BLOCK_M, 4], tl.float32), tl.zeros([BLOCK_M, 4], tl.float32)
    chunk, tile = -1, -1
    for _ in range(TILES_M * TILES_N * CHUNKS):
        chunk, tile = after(chunk, tile, CHUNKS)
        first_m = (group_m * TILES_M + tile // TILES_N) * BLOCK_M
        first_n = (group_n * TILES_N + (tile & (TILES_N - 1))) * BLOCK_N
        b_tile = add_channels(left, right, first_m, first_n, chunk * BLOCK_D, b_tile, PRECISION, UPCAST)
        if chunk == CHUNKS - 1:
            o_m, o_n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
            b_row_factor = (tl.load(left[4] + o_m) * (scale * LOG2E))[:, None]
            b_row_weight = weights_of(row[0], row[1], o_m, M, reference)
            parts = split_columns(b_tile, PARTS)
            factors = split_columns(tl.load(right[4] + o_n)[None, :], PARTS)
            weights = split_columns(weights_of(col[0], col[1], o_n, N, reference)[None, :], PARTS)
            b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for part in tl.static_range(PARTS):
                b_factor = b_row_factor * factors[part]
                b_g = tl.exp2(parts[part] * b_factor - reference * LOG2E) * b_factor
                if p_row_partials is not None or p_col_partials is not None:
                    b_ex = b_g * parts[part]
                    if p_row_partials is not None:
                        b_row_sum += strands_of_rows(b_ex)
                    if p_col_partials is not None:
                        b_other_sum += strands_of_rows(b_ex * weights[part])
                if p_gradient is not None:
                    b_g *= b_row_weight[:, None] + weights[part]
                    o_part = first_n + part * WIDTH + tl.arange(0, WIDTH)
                    store_gradient(p_gradient, b_g, p_power, o_m, o_part, M, N, stride_g, UPCAST)
            if tile % TILES_N == TILES_N - 1:
                if p_row_partials is not None:
                    b_sum = tl.sum(b_row_sum, axis=1) * b_row_weight / scale
                    store_partial(p_row_partials, b_sum, o_m, M, group_n, GROUPS_N, 0)
                if p_col_partials is not None:
                    b_sum = tl.sum(b_other_sum, axis=1) / scale
                    store_partial(p_col_partials, b_sum, o_m, M, group_n, GROUPS_N, 0)
                b_row_sum, b_other_sum = tl.zeros([BLOCK_M, 4], tl.float32), tl.zeros([BLOCK_M, 4], tl.float32)


@triton.jit
def log1p(b_u):
    """log(1 + u) for u in [0, 1], exact for tiny u: u times a polynomial of degree 8.

    Its coefficients are a fit of log(1 + u) / u on [0, 1] to the least largest relative error, 3e-8; rounded to and
    evaluated in float32 it is 1.7e-7.
    """
    b_p = 0.005232705734670162 * b_u - 0.029505284503102303
    b_p = b_p * b_u + 0.07822602987289429
    b_p = b_p * b_u - 0.1366325169801712
    b_p = b_p * b_u + 0.19106009602546692
    b_p = b_p * b_u - 0.24842983484268188
    b_p = b_p * b_u + 0.3331909775733948
    b_p = b_p * b_u - 0.4999949336051941
    b_p = b_p * b_u + 0.9999999403953552
    return b_p * b_u


@triton.jit
def exp_of_size(b_z):
    """e^-|z|, which a softplus and its derivative share; 0 at -inf."""
    return tl.exp2(-tl.abs(b_z) * LOG2E)


@triton.jit
def softplus(b_z, b_u):
    """log(1 + e^z), where u = e^-|z|; 0 at -inf."""
    return tl.maximum(b_z, 0.0) + log1p(b_u)


@triton.jit
def sigmoid(b_z, b_u):
    """1 / (1 + e^-z), where u = e^-|z|; 0 at -inf. The reciprocal of 1 to 2 is a squared inverse root: one instruction
    of the device and a product, where a division would take care of ranges."""
    b_root = tl.rsqrt(1.0 + b_u)
    return tl.where(b_z < 0.0, b_u, 1.0) * (b_root * b_root)


@triton.jit
def join(b_x, b_y):
    """(1 + x) (1 + y) - 1, exact for what is small beside 1."""
    return b_x * b_y + (b_x + b_y)


@triton.jit
def joint_strands_of_rows(b_u):
    """[ROWS, 4]: the product of 1 + u over those columns that a thread holds, less 1."""
    ROWS: tl.constexpr = b_u.shape[0]
    COLS: tl.constexpr = b_u.shape[1]
    b_u = tl.reduce(tl.reshape(b_u, (ROWS, COLS // 8, 4, 2)), 3, join)
    return tl.reduce(b_u, 1, join)


@triton.jit
def log2_of_product(b_p):
    """log2(1 + p), exact for small p."""
    return tl.where(b_p < 1.0, log1p(tl.minimum(b_p, 1.0)) * LOG2E, tl.log2(1.0 + b_p))


@triton.jit
def reciprocal(b_x):
    """1 / x of ordinary numbers, in one instruction of the device, where a division would take care of ranges."""
    if INTERPRETED:
        return 1.0 / b_x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b_x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def store_whole(p_gradient, b_gradient, p_power, o_m, o_n, stride_g, UPCAST: tl.constexpr):
    """As ``store_gradient``, of a tile that lies inside the matrix."""
    if p_power is not None:
        b_gradient = in_float16(b_gradient, p_power)
    store_inside(p_gradient, b_gradient, o_m, o_n, stride_g, UPCAST)


@triton.jit
def whole_softplus(
    left, right, numbers, p_grad_row_sum, p_power, p_gradient, p_row_partials, stride_g, group_m, group_n, GROUPS_N,
    ONE_SWEEP: tl.constexpr,
    D: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums over softplus, or G and the sums that come with it, of a supertile; ``numbers`` are scale and bias."""
    M = left[1]
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    BACKWARD: tl.constexpr = p_grad_row_sum is not None
    scale, bias = numbers
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_sum, b_other_sum = tl.zeros([BLOCK_M, 8], tl.float32), tl.zeros([BLOCK_M, 4], tl.float32)
    b_values = tl.zeros([BLOCK_M, 4], tl.float32)
    chunk, tile = -1, -1
    for _ in range(TILES_M * TILES_N * CHUNKS):
        chunk, tile = after(chunk, tile, CHUNKS)
        first_m = (group_m * TILES_M + tile // TILES_N) * BLOCK_M
        first_n = (group_n * TILES_N + (tile & (TILES_N - 1))) * BLOCK_N
        b_tile = add_channels(left, right, first_m, first_n, chunk * BLOCK_D, b_tile, PRECISION, UPCAST)
        if chunk == CHUNKS - 1:
            o_m, o_n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
            b_row_factor = (tl.load(left[4] + o_m) * (scale * LOG2E))[:, None]
            parts = split_columns(b_tile, PARTS)
            factors = split_columns(tl.load(right[4] + o_n)[None, :], PARTS)
            b_tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            b_product = tl.zeros([BLOCK_M, 4], tl.float32)
            if BACKWARD:
                b_row_weight = tl.load(p_grad_row_sum + o_m)
            for part in tl.static_range(PARTS):
                b_factor = b_row_factor * factors[part]
                b_z = parts[part] * b_factor + bias * LOG2E  # to the base 2
                b_u = tl.exp2(tl.abs(b_z) * -1.0)
                if ONE_SWEEP or not BACKWARD:
                    b_values += strands_of_rows(tl.maximum(b_z, 0.0))
                    b_product = join(b_product, joint_strands_of_rows(b_u))
                if BACKWARD:
                    b_s = tl.where(b_z < 0.0, b_u, 1.0) * reciprocal(1.0 + b_u)
                    if p_row_partials is not None:
                        b_other_sum += strands_of_rows(b_s)
                    b_s *= b_factor
                    if p_row_partials is not None:
                        b_sum = with_products(b_sum, b_s, parts[part])
                    if p_gradient is not None:
                        b_g = b_s * (b_row_weight * LN2)[:, None]
                        o_part = first_n + part * WIDTH + tl.arange(0, WIDTH)
                        store_whole(p_gradient, b_g, p_power, o_m, o_part, stride_g, UPCAST)
            if ONE_SWEEP or not BACKWARD:
                b_values += log2_of_product(b_product)
            if tile % TILES_N == TILES_N - 1:
                if p_row_partials is not None:
                    b_value = tl.sum(b_values, axis=1) * LN2
                    if BACKWARD:
                        b_total = tl.sum(b_sum, axis=1) * b_row_weight * (LN2 / scale)
                        b_other_total = tl.sum(b_other_sum, axis=1) * b_row_weight
                        store_partial(p_row_partials, b_total, o_m, M, group_n, GROUPS_N, SCALE)
                        store_partial(p_row_partials, b_other_total, o_m, M, group_n, GROUPS_N, BIAS)
                        if ONE_SWEEP:
                            store_partial(p_row_partials, b_value, o_m, M, group_n, GROUPS_N, VALUE)
                    else:
                        store_partial(p_row_partials, b_value, o_m, M, group_n, GROUPS_N, SCALE)
                b_sum, b_other_sum = tl.zeros([BLOCK_M, 8], tl.float32), tl.zeros([BLOCK_M, 4], tl.float32)
                b_values = tl.zeros([BLOCK_M, 4], tl.float32)

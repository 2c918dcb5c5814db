# mypy: disable-error-code="no-untyped-def"
"""Kernels of ``similarity_softplus`` and its total: sums over the columns of a run, and the matrix operand G of both
gradients, in a pass each or in one."""

import triton
import triton.language as tl

from sparc_kernels.ops.contrastive.triton_tiles import (
    cosines,
    descriptor,
    even_columns,
    exclude_pairs,
    first_pair,
    in_range,
    keep_products,
    load_products,
    load_vector,
    locate_supertile,
    mark_above,
    mark_excluded,
    may_exclude,
    products,
    range_of_ids,
    same_ids,
    split_columns,
    store_gradient,
    store_partial,
)
from sparc_kernels.ops.contrastive.triton_whole import (
    BIAS,
    SCALE,
    VALUE,
    exp_of_size,
    is_whole,
    sigmoid,
    softplus,
    whole_softplus,
)

RAGGED = ["M", "N", "N_PAIRS", "GROUPS_N", "FIRST", "ROWS", "FIRST_COL"]


@triton.jit(do_not_specialize=RAGGED)
def softplus_kernel(
    p_rows,  # [M, D]
    p_cols,  # [N, D]
    p_row_inverse,  # [M], of the norms
    p_col_inverse,  # [N]
    p_scale,  # []
    p_bias,  # []
    p_row_ids,  # [M] int64 or None
    p_col_ids,  # [N]
    p_indptr,  # [M + 1] int64 or None
    p_indices,  # [N_PAIRS]
    p_guide_rows,  # [M, K] or None
    p_guide_cols,  # [N, K]
    p_guide_row_inverse,  # [M]
    p_guide_col_inverse,  # [N]
    p_threshold,  # [] or [M] or None
    p_products,  # [ROWS, N] raw, stride_p from row to row: GIVEN, or to be kept; None: neither
    p_grad_row_sum,  # [M]; None in the forward pass
    p_power,  # [2] or None: the power of two in front of G
    p_gradient,  # G [M, N], stride_g from row to row, or None
    p_row_partials,  # forward [GROUPS_N, M]; backward [2, GROUPS_N, M] or None; both in one sweep [3, GROUPS_N, M]
    stride_m, stride_md, stride_n, stride_nd, stride_um, stride_uk, stride_vn, stride_vk, stride_p, stride_g,
    M, N, N_PAIRS, GROUPS_N,
    FIRST, ROWS,  # of the rows, the first and how many this sweep is over
    FIRST_COL,  # among the columns that p_indices count
    D: tl.constexpr,
    K: tl.constexpr,
    THRESHOLDS: tl.constexpr,
    IDS_EXCLUDE: tl.constexpr,
    ONE_SWEEP: tl.constexpr,  # a backward pass that also sums softplus
    GIVEN: tl.constexpr,
    EVEN: tl.constexpr,  # N is a multiple of 16
    DESCRIBED: tl.constexpr,  # the embeddings have tensor descriptors
    WHOLE: tl.constexpr,  # supertiles in which all pairs take part are looked for
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    EXCLUDE: tl.constexpr = p_row_ids is not None and IDS_EXCLUDE
    LABELLED: tl.constexpr = p_row_ids is not None and not IDS_EXCLUDE
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    BACKWARD: tl.constexpr = p_grad_row_sum is not None
    N = even_columns(N, EVEN)
    group_m, group_n = locate_supertile(ROWS, N, TILES_M * BLOCK_M, TILES_N * BLOCK_N)
    group_m += FIRST // (TILES_M * BLOCK_M)
    scale, bias = tl.load(p_scale), tl.load(p_bias)
    d_rows, d_cols = None, None
    if DESCRIBED:
        d_rows = descriptor(p_rows, M, stride_m, D, BLOCK_M, BLOCK_D)
        d_cols = descriptor(p_cols, N, stride_n, D, BLOCK_N, BLOCK_D)
    left = (p_rows, M, stride_m, stride_md, p_row_inverse, d_rows)
    right = (p_cols, N, stride_n, stride_nd, p_col_inverse, d_cols)
    guide_left = (p_guide_rows, M, stride_um, stride_uk, p_guide_row_inverse, None)
    guide_right = (p_guide_cols, N, stride_vn, stride_vk, p_guide_col_inverse, None)
    whole = False
    if WHOLE:
        whole = (scale > 0.0) & is_whole(
            p_row_ids, p_col_ids, group_m, group_n, M, N, BLOCK_M, BLOCK_N, TILES_M, TILES_N, IDS_EXCLUDE
        )
        if whole:
            whole_softplus(
                left, right, (scale, bias), p_grad_row_sum, p_power, p_gradient, p_row_partials, stride_g,
                group_m, group_n, GROUPS_N, ONE_SWEEP,
                D, TILES_M, TILES_N, BLOCK_M, BLOCK_N, BLOCK_D, PARTS, PRECISION, UPCAST
            )  # fmt: skip
    if not whole:
        for tile_m in range(TILES_M):
            first_m = (group_m * TILES_M + tile_m) * BLOCK_M
            o_m = first_m + tl.arange(0, BLOCK_M)
            row_range = range_of_ids(p_row_ids, o_m, M)
            b_row_inverse = load_vector(p_row_inverse, o_m, M)
            b_sum, b_other_sum = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32)
            b_values = tl.zeros([BLOCK_M], tl.float32)
            if p_indptr is not None:
                first_n = FIRST_COL + group_n * TILES_N * BLOCK_N
                o_pair, o_end = first_pair(p_indptr, p_indices, o_m, M, N_PAIRS, first_n)
            for tile_n in range(TILES_N):
                start = (group_n * TILES_N + tile_n) * BLOCK_N
                col_range = range_of_ids(p_col_ids, start + tl.arange(0, BLOCK_N), N)
                if not GIVEN:
                    b_tile = products(left, right, first_m, start, BLOCK_M, BLOCK_N, D, BLOCK_D, PRECISION, UPCAST)
                    parts = split_columns(b_tile, PARTS)
                if p_guide_rows is not None:
                    b_tile = products(
                        guide_left, guide_right, first_m, start, BLOCK_M, BLOCK_N, K, BLOCK_K, PRECISION, UPCAST
                    )
                    guide_parts = split_columns(b_tile, PARTS)
                for part in tl.static_range(PARTS):
                    o_n = start + part * WIDTH + tl.arange(0, WIDTH)
                    if GIVEN:
                        b_product = load_products(p_products, o_m, o_n, M, N, FIRST, stride_p)
                    else:
                        b_product = parts[part]
                        keep_products(p_products, b_product, o_m, o_n, M, N, FIRST, stride_p)
                    b_c = cosines(b_product, b_row_inverse, right, o_n)
                    if may_exclude(row_range, col_range, EXCLUDE):
                        b_c = mark_excluded(b_c, (p_row_ids, M), (p_col_ids, N), o_m, o_n, EXCLUDE)
                    if p_indptr is not None:
                        end = FIRST_COL + start + (part + 1) * WIDTH
                        b_c, o_pair = exclude_pairs(b_c, p_indices, o_pair, o_end, FIRST_COL + o_n, end)
                    if p_guide_rows is not None:
                        b_q = cosines(guide_parts[part], load_vector(p_guide_row_inverse, o_m, M), guide_right, o_n)
                        b_c = mark_above(b_c, b_q, p_threshold, o_m, M, THRESHOLDS)
                    b_sign = 1.0  # y; a pair that takes no part keeps 1
                    if LABELLED:
                        m_same = same_ids(p_row_ids, p_col_ids, o_m, o_n, M, N) & (b_c > -float("inf"))
                        b_sign = tl.where(m_same, -1.0, 1.0)
                    b_z = b_sign * (scale * b_c + bias)
                    b_u = exp_of_size(b_z)
                    if not BACKWARD:
                        b_sum += tl.sum(softplus(b_z, b_u), axis=1)
                    else:
                        if ONE_SWEEP:
                            b_values += tl.sum(softplus(b_z, b_u), axis=1)
                        b_z = load_vector(p_grad_row_sum, o_m, M)[:, None] * b_sign * sigmoid(b_z, b_u)  # Z
                        if p_row_partials is not None:
                            b_sum += tl.sum(b_z * in_range(b_c), axis=1)
                            b_other_sum += tl.sum(b_z, axis=1)
                        if p_gradient is not None:
                            b_z *= b_row_inverse[:, None] * load_vector(p_col_inverse, o_n, N)[None, :]
                            store_gradient(p_gradient, b_z * scale, p_power, o_m, o_n, M, N, stride_g, UPCAST)
            if p_row_partials is not None:
                store_partial(p_row_partials, b_sum, o_m, M, group_n, GROUPS_N, SCALE)
                if BACKWARD:
                    store_partial(p_row_partials, b_other_sum, o_m, M, group_n, GROUPS_N, BIAS)
                if ONE_SWEEP:
                    store_partial(p_row_partials, b_values, o_m, M, group_n, GROUPS_N, VALUE)

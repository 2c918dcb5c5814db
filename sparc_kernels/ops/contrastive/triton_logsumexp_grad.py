# mypy: disable-error-code="no-untyped-def"
"""Backward kernel of ``similarity_logsumexp``: the matrix operand G of both gradients, and the scales' gradients."""

import triton
import triton.language as tl

from sparc_kernels.ops.contrastive.triton_tiles import (
    LOG2E,
    cosines,
    descriptor,
    even_columns,
    exclude_pairs,
    finite,
    first_pair,
    guide_logits,
    in_range,
    load_partial,
    load_products,
    load_scale,
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
    LARGEST_SCALE,
    all_within,
    is_whole,
    reference_of,
    whole_gradient,
)

RAGGED = ["M", "N", "N_PAIRS", "GROUPS_M", "GROUPS_N", "FIRST", "ROWS", "FIRST_COL", "LATER"]


@triton.jit
def load_weights(side, o, n, AXIS: tl.constexpr):
    """What ``weigh`` needs of the rows (AXIS 1) or columns (AXIS 0). A side is pointers: to the gradients of
    log-sum-exp, target sum and soft mean, each or None, and to the log-sum-exps of the op and of the guide."""
    p_grad, p_grad_target, p_grad_soft, p_lse, p_guide_lse = side
    b_grad, b_target, b_soft, b_lse, b_guide_lse = 0.0, 0.0, 0.0, 0.0, 0.0
    if p_grad is not None:
        b_grad = tl.expand_dims(load_vector(p_grad, o, n), AXIS)
        b_lse = tl.expand_dims(finite(load_vector(p_lse, o, n)) * LOG2E, AXIS)
    if p_grad_target is not None:
        b_target = tl.expand_dims(load_vector(p_grad_target, o, n), AXIS)
    if p_grad_soft is not None:
        b_soft = tl.expand_dims(load_vector(p_grad_soft, o, n), AXIS)
        b_guide_lse = tl.expand_dims(finite(load_vector(p_guide_lse, o, n)) * LOG2E, AXIS)
    return b_grad, b_target, b_soft, b_lse, b_guide_lse


@triton.jit
def weigh(side, weights, b_cosine, b_scale, m_same, b_guide):
    """ZR or ZC of a tile, from what ``load_weights`` loads of a side."""
    p_grad, p_grad_target, p_grad_soft, _, _ = side
    b_grad, b_target, b_soft, b_lse, b_guide_lse = weights
    b_z = tl.zeros_like(b_cosine)
    if p_grad is not None:
        b_z = b_grad * tl.exp2(b_cosine * (b_scale * LOG2E) - b_lse)
    if p_grad_target is not None:
        b_z += tl.where(m_same & (b_cosine > -float("inf")), b_target, 0.0)
    if p_grad_soft is not None:
        b_z += b_soft * tl.exp2(b_guide - b_guide_lse)
    return b_z


@triton.jit(do_not_specialize=RAGGED)
def logsumexp_gradient_kernel(
    p_rows,  # [M, D]: those of a block, as all that has M or N
    p_cols,  # [N, D]
    p_row_inverse, p_col_inverse,  # [M], [N], of the norms
    p_row_scale, p_col_scale,  # [] or [M], [] or [N]
    p_row_ids, p_col_ids,  # [M], [N] int64 or None
    p_indptr,  # [M + 1] int64 or None
    p_indices,  # [N_PAIRS]
    p_guide_rows,  # [M, K] or None
    p_guide_cols,  # [N, K]
    p_guide_row_inverse,  # [M]
    p_guide_col_inverse,  # [N]
    p_guide_scale,  # [] or None: no soft targets
    p_threshold,  # [] or [M] or None
    p_products,  # [ROWS, N] raw, stride_p from row to row, where they are GIVEN
    p_row_lse, p_guide_row_lse,  # [M]
    p_col_lse, p_guide_col_lse,  # [N]
    p_grad_row_lse, p_grad_row_target, p_grad_row_soft,  # [M] or None
    p_grad_col_lse, p_grad_col_target, p_grad_col_soft,  # [N] or None
    p_power,  # [2] or None: the power of two in front of G
    p_gradient,  # G [M, N], stride_g from row to row; None: only scales are wanted
    p_row_partials,  # [GROUPS_N, M] or None: sums of ZR c over runs of columns
    p_col_partials,  # [GROUPS_M, N] or None: sums of ZC c over runs of rows, of this block and, LATER, those above;
    # with a single scale [GROUPS_N, M]: over runs of columns, too
    stride_m, stride_md, stride_n, stride_nd, stride_um, stride_uk, stride_vn, stride_vk, stride_p, stride_g,
    M, N, N_PAIRS, GROUPS_M, GROUPS_N, LATER,
    FIRST, ROWS,  # of the rows, the first and how many this sweep is over
    FIRST_COL,  # among the columns that p_indices count
    D: tl.constexpr,
    K: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    COL_SCALES: tl.constexpr,
    THRESHOLDS: tl.constexpr,
    IDS_EXCLUDE: tl.constexpr,
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
    SOFT_TARGETS: tl.constexpr = p_guide_scale is not None
    BY_ROWS: tl.constexpr = not (p_grad_row_lse is None and p_grad_row_target is None and p_grad_row_soft is None)
    BY_COLS: tl.constexpr = not (p_grad_col_lse is None and p_grad_col_target is None and p_grad_col_soft is None)
    N = even_columns(N, EVEN)
    group_m, group_n = locate_supertile(ROWS, N, TILES_M * BLOCK_M, TILES_N * BLOCK_N)
    group_m += FIRST // (TILES_M * BLOCK_M)
    d_rows, d_cols = None, None
    if DESCRIBED:
        d_rows = descriptor(p_rows, M, stride_m, D, BLOCK_M, BLOCK_D)
        d_cols = descriptor(p_cols, N, stride_n, D, BLOCK_N, BLOCK_D)
    left = (p_rows, M, stride_m, stride_md, p_row_inverse, d_rows)
    right = (p_cols, N, stride_n, stride_nd, p_col_inverse, d_cols)
    guide_left = (p_guide_rows, M, stride_um, stride_uk, p_guide_row_inverse, None)
    guide_right = (p_guide_cols, N, stride_vn, stride_vk, p_guide_col_inverse, None)
    row = (p_grad_row_lse, p_grad_row_target, p_grad_row_soft, p_row_lse, p_guide_row_lse)
    col = (p_grad_col_lse, p_grad_col_target, p_grad_col_soft, p_col_lse, p_guide_col_lse)
    whole = False
    if WHOLE:
        scale = tl.load(p_row_scale)
        whole = (
            (scale > 0.0)
            & (scale <= LARGEST_SCALE)
            & is_whole(p_row_ids, p_col_ids, group_m, group_n, M, N, BLOCK_M, BLOCK_N, TILES_M, TILES_N, IDS_EXCLUDE)
        )
        first_m, first_n = group_m * TILES_M * BLOCK_M, group_n * TILES_N * BLOCK_N
        whole = whole & all_within(p_row_lse, first_m, M, reference_of(scale), BLOCK_M, TILES_M)
        whole = whole & all_within(p_col_lse, first_n, N, reference_of(scale), BLOCK_N, TILES_N)
        if whole:
            whole_gradient(
                left, right, p_row_scale, (p_grad_row_lse, p_row_lse), (p_grad_col_lse, p_col_lse), p_power, p_gradient,
                p_row_partials, p_col_partials, stride_g, group_m, group_n, GROUPS_N,
                D, TILES_M, TILES_N, BLOCK_M, BLOCK_N, BLOCK_D, PARTS, PRECISION, UPCAST
            )  # fmt: skip
    if not whole:
        for tile_m in range(TILES_M):
            first_m = (group_m * TILES_M + tile_m) * BLOCK_M
            o_m = first_m + tl.arange(0, BLOCK_M)
            row_range = range_of_ids(p_row_ids, o_m, M)
            b_row_inverse = load_vector(p_row_inverse, o_m, M)
            b_row_scale = load_scale(p_row_scale, o_m, M, ROW_SCALES)[:, None]
            row_weights = load_weights(row, o_m, M, 1)
            b_row_sum, b_other_sum = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32)
            if p_indptr is not None:
                first_n = FIRST_COL + group_n * TILES_N * BLOCK_N
                o_pair, o_end = first_pair(p_indptr, p_indices, o_m, M, N_PAIRS, first_n)
            for tile_n in tl.range(TILES_N, flatten=True):
                start = (group_n * TILES_N + tile_n) * BLOCK_N
                if not GIVEN:
                    b_tile = products(left, right, first_m, start, BLOCK_M, BLOCK_N, D, BLOCK_D, PRECISION, UPCAST)
                    parts = split_columns(b_tile, PARTS)
                if p_guide_rows is not None:
                    b_tile = products(
                        guide_left, guide_right, first_m, start, BLOCK_M, BLOCK_N, K, BLOCK_K, PRECISION, UPCAST
                    )
                    guide_parts = split_columns(b_tile, PARTS)
                col_range = range_of_ids(p_col_ids, start + tl.arange(0, BLOCK_N), N)
                for part in tl.static_range(PARTS):
                    o_n = start + part * WIDTH + tl.arange(0, WIDTH)
                    if GIVEN:
                        b_product = load_products(p_products, o_m, o_n, M, N, FIRST, stride_p)
                    else:
                        b_product = parts[part]
                    b_c = cosines(b_product, b_row_inverse, right, o_n)
                    if may_exclude(row_range, col_range, EXCLUDE):
                        b_c = mark_excluded(b_c, (p_row_ids, M), (p_col_ids, N), o_m, o_n, EXCLUDE)
                    if p_indptr is not None:
                        end = FIRST_COL + start + (part + 1) * WIDTH
                        b_c, o_pair = exclude_pairs(b_c, p_indices, o_pair, o_end, FIRST_COL + o_n, end)
                    m_same, b_guide = None, None
                    if p_guide_rows is not None:
                        b_q = cosines(guide_parts[part], load_vector(p_guide_row_inverse, o_m, M), guide_right, o_n)
                        b_c = mark_above(b_c, b_q, p_threshold, o_m, M, THRESHOLDS)
                        if SOFT_TARGETS:
                            b_guide = guide_logits(b_q, b_c, p_guide_scale)
                    if LABELLED:
                        m_same = same_ids(p_row_ids, p_col_ids, o_m, o_n, M, N)
                    b_g = tl.zeros([BLOCK_M, WIDTH], tl.float32)
                    if BY_ROWS:
                        b_z = weigh(row, row_weights, b_c, b_row_scale, m_same, b_guide)
                        b_g += b_row_scale * b_z
                        if p_row_partials is not None:
                            b_row_sum += tl.sum(b_z * in_range(b_c), axis=1)
                    if BY_COLS:
                        b_col_scale = load_scale(p_col_scale, o_n, N, COL_SCALES)[None, :]
                        b_z = weigh(col, load_weights(col, o_n, N, 0), b_c, b_col_scale, m_same, b_guide)
                        b_g += b_col_scale * b_z
                        if p_col_partials is not None:
                            if COL_SCALES:
                                b_col_sum = load_partial(
                                    p_col_partials, o_n, N, group_m, GROUPS_M, LATER + tile_m, 0, 0.0
                                )
                                b_col_sum += tl.sum(b_z * in_range(b_c), axis=0)
                                store_partial(p_col_partials, b_col_sum, o_n, N, group_m, GROUPS_M, 0)
                            else:
                                b_other_sum += tl.sum(b_z * in_range(b_c), axis=1)
                    if p_gradient is not None:
                        b_g *= b_row_inverse[:, None] * load_vector(p_col_inverse, o_n, N)[None, :]
                        store_gradient(p_gradient, b_g, p_power, o_m, o_n, M, N, stride_g, UPCAST)
                if COL_SCALES and p_col_partials is not None and TILES_M > 1:
                    tl.debug_barrier()  # the next row of tiles reads what other threads have written
            if p_row_partials is not None:
                store_partial(p_row_partials, b_row_sum, o_m, M, group_n, GROUPS_N, 0)
            if p_col_partials is not None and not COL_SCALES:
                store_partial(p_col_partials, b_other_sum, o_m, M, group_n, GROUPS_N, 0)

# mypy: disable-error-code="no-untyped-def"
"""Forward kernels of ``similarity_logsumexp``: one sweep for both directions, and the merge of what it leaves.

Exponentials are powers of two: x = scale * cosine * log2(e).
"""

import triton
import triton.language as tl

from sparc_kernels.ops.contrastive.triton_tiles import (
    LN2,
    LOG2E,
    cosines,
    descriptor,
    even_columns,
    exclude_pairs,
    finite,
    first_pair,
    guide_logits,
    keep_products,
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
    running_mean,
    running_sum,
    same_ids,
    split_columns,
    store_partial,
)
from sparc_kernels.ops.contrastive.triton_whole import LARGEST_SCALE, SAFE_SCALE, is_whole, whole_logsumexp

# Partial results of a row over a run of columns, and of a column over a run of rows. The last three are a guide's.
FIELDS = ("top", "sum", "target", "guide_top", "guide_sum", "soft")
TOP, SUM, TARGET, GUIDE_TOP, GUIDE_SUM, SOFT = map(tl.constexpr, range(len(FIELDS)))
RAGGED = ["M", "N", "N_PAIRS", "GROUPS_M", "GROUPS_N", "FIRST", "ROWS"]  # no reason to compile again


@triton.jit
def no_state(o):
    """The numbers of ``FIELDS`` before anything is seen."""
    b_zero = tl.zeros(o.shape, tl.float32)
    b_nothing = tl.full(o.shape, -float("inf"), tl.float32)
    return b_nothing, b_zero, b_zero, b_nothing, b_zero, b_zero


@triton.jit
def load_state(p_partials, o, n, group, groups, earlier, LABELLED: tl.constexpr, SOFT_TARGETS: tl.constexpr):
    """The numbers of ``FIELDS`` where there are some from ``earlier``; else, and where not asked for, of none."""
    b_top, b_sum, b_target, b_guide_top, b_guide_sum, b_soft = no_state(o)
    b_top = load_partial(p_partials, o, n, group, groups, earlier, TOP, -float("inf"))
    b_sum = load_partial(p_partials, o, n, group, groups, earlier, SUM, 0.0)
    if LABELLED:
        b_target = load_partial(p_partials, o, n, group, groups, earlier, TARGET, 0.0)
    if SOFT_TARGETS:
        b_guide_top = load_partial(p_partials, o, n, group, groups, earlier, GUIDE_TOP, -float("inf"))
        b_guide_sum = load_partial(p_partials, o, n, group, groups, earlier, GUIDE_SUM, 0.0)
        b_soft = load_partial(p_partials, o, n, group, groups, earlier, SOFT, 0.0)
    return b_top, b_sum, b_target, b_guide_top, b_guide_sum, b_soft


@triton.jit
def store_state(p_partials, state, o, n, group, groups, LABELLED: tl.constexpr, SOFT_TARGETS: tl.constexpr):
    """The reverse of ``load_state``."""
    b_top, b_sum, b_target, b_guide_top, b_guide_sum, b_soft = state
    store_partial(p_partials, b_top, o, n, group, groups, TOP)
    store_partial(p_partials, b_sum, o, n, group, groups, SUM)
    if LABELLED:
        store_partial(p_partials, b_target, o, n, group, groups, TARGET)
    if SOFT_TARGETS:
        store_partial(p_partials, b_guide_top, o, n, group, groups, GUIDE_TOP)
        store_partial(p_partials, b_guide_sum, o, n, group, groups, GUIDE_SUM)
        store_partial(p_partials, b_soft, o, n, group, groups, SOFT)


@triton.jit
def with_targets(state, b_cosine, b_scale, m_same, b_guide, AXIS: tl.constexpr):
    """The state with a tile's sums over pairs of equal id (``m_same``) and under a guide's softmax; None: not asked."""
    b_top, b_sum, b_target, b_guide_top, b_guide_sum, b_soft = state
    if m_same is not None or b_guide is not None:
        b_z = tl.where(b_cosine > -float("inf"), b_cosine, 0.0) * b_scale
        if m_same is not None:
            b_target += tl.sum(tl.where(m_same, b_z, 0.0), axis=AXIS)
        if b_guide is not None:
            b_guide_top, b_guide_sum, b_soft = running_mean(b_guide, b_z, b_guide_top, b_guide_sum, b_soft, AXIS)
    return b_top, b_sum, b_target, b_guide_top, b_guide_sum, b_soft


@triton.jit
def with_exponentials(
    row, col, b_cosine, b_row_scale, b_col_scale, safe,
    BY_ROWS: tl.constexpr,
    BY_COLS: tl.constexpr,
    SAME_SCALE: tl.constexpr,
):  # fmt: skip
    """The states of a tile's rows and columns with its exponentials; where ``safe``, their reference is 0."""
    row_top, row_sum, row_target, row_guide_top, row_guide_sum, row_soft = row
    col_top, col_sum, col_target, col_guide_top, col_guide_sum, col_soft = col
    b_x = b_cosine * (b_row_scale * LOG2E)
    b_y = b_x if SAME_SCALE else b_cosine * (b_col_scale * LOG2E)
    if safe:
        if BY_ROWS:
            b_e = tl.exp2(b_x)
            row_top, row_sum = tl.zeros_like(row_top), row_sum + tl.sum(b_e, axis=1)
            if BY_COLS:
                b_e = b_e if SAME_SCALE else tl.exp2(b_y)
                col_top, col_sum = tl.zeros_like(col_top), col_sum + tl.sum(b_e, axis=0)
        else:
            col_top, col_sum = tl.zeros_like(col_top), col_sum + tl.sum(tl.exp2(b_y), axis=0)
    else:
        if BY_ROWS:
            row_top, row_sum = running_sum(b_x, row_top, row_sum, 1)
        if BY_COLS:
            col_top, col_sum = running_sum(b_y, col_top, col_sum, 0)
    return (
        (row_top, row_sum, row_target, row_guide_top, row_guide_sum, row_soft),
        (col_top, col_sum, col_target, col_guide_top, col_guide_sum, col_soft),
    )


@triton.jit(do_not_specialize=RAGGED)
def logsumexp_kernel(
    p_rows,  # [M, D]
    p_cols,  # [N, D]
    p_row_inverse,  # [M], of the norms
    p_col_inverse,  # [N]
    p_row_scale,  # [] or [M]
    p_col_scale,  # [] or [N]
    p_top_scale,  # []: the largest of all scales
    p_row_ids,  # [M] int64 or None
    p_col_ids,  # [N]
    p_indptr,  # [M + 1] int64 or None
    p_indices,  # [N_PAIRS]
    p_guide_rows,  # [M, K] or None
    p_guide_cols,  # [N, K]
    p_guide_row_inverse,  # [M]
    p_guide_col_inverse,  # [N]
    p_guide_scale,  # [] or None: no soft targets
    p_threshold,  # [] or [M] or None
    p_products,  # [ROWS, N] raw, stride_p from row to row: GIVEN, or to be kept; None: neither
    p_row_partials,  # [FIELDS, GROUPS_N, M] or None: not wanted
    p_col_partials,  # [FIELDS, GROUPS_M, N] or None: not wanted
    stride_m, stride_md, stride_n, stride_nd, stride_um, stride_uk, stride_vn, stride_vk, stride_p,
    M, N, N_PAIRS, GROUPS_M, GROUPS_N,
    FIRST, ROWS,  # of the rows, the first and how many this sweep is over
    D: tl.constexpr,
    K: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    COL_SCALES: tl.constexpr,
    THRESHOLDS: tl.constexpr,
    SAME_SCALE: tl.constexpr,
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
    BY_ROWS: tl.constexpr = p_row_partials is not None
    BY_COLS: tl.constexpr = p_col_partials is not None
    N = even_columns(N, EVEN)
    group_m, group_n = locate_supertile(ROWS, N, TILES_M * BLOCK_M, TILES_N * BLOCK_N)
    group_m += FIRST // (TILES_M * BLOCK_M)
    safe = tl.load(p_top_scale) <= SAFE_SCALE
    d_rows, d_cols = None, None
    if DESCRIBED:
        d_rows = descriptor(p_rows, M, stride_m, D, BLOCK_M, BLOCK_D)
        d_cols = descriptor(p_cols, N, stride_n, D, BLOCK_N, BLOCK_D)
    left = (p_rows, M, stride_m, stride_md, p_row_inverse, d_rows)
    right = (p_cols, N, stride_n, stride_nd, p_col_inverse, d_cols)
    guide_left = (p_guide_rows, M, stride_um, stride_uk, p_guide_row_inverse, None)
    guide_right = (p_guide_cols, N, stride_vn, stride_vk, p_guide_col_inverse, None)
    again = True
    if WHOLE:
        scale = tl.load(p_row_scale)
        whole = (
            (scale > 0.0)
            & (scale <= LARGEST_SCALE)
            & is_whole(p_row_ids, p_col_ids, group_m, group_n, M, N, BLOCK_M, BLOCK_N, TILES_M, TILES_N, IDS_EXCLUDE)
        )
        if whole:
            again = whole_logsumexp(
                left, right, p_row_scale, p_row_partials, p_col_partials, group_m, group_n, GROUPS_M, GROUPS_N,
                D, TILES_M, TILES_N, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, UPCAST
            )  # fmt: skip
    if again:
        for tile_m in range(TILES_M):
            first_m = (group_m * TILES_M + tile_m) * BLOCK_M
            o_m = first_m + tl.arange(0, BLOCK_M)
            row_range = range_of_ids(p_row_ids, o_m, M)
            b_row_inverse = load_vector(p_row_inverse, o_m, M)
            b_row_scale = load_scale(p_row_scale, o_m, M, ROW_SCALES)[:, None]
            row = no_state(o_m)
            if p_indptr is not None:
                o_pair, o_end = first_pair(p_indptr, p_indices, o_m, M, N_PAIRS, group_n * TILES_N * BLOCK_N)
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
                        keep_products(p_products, b_product, o_m, o_n, M, N, FIRST, stride_p)
                    b_c = cosines(b_product, b_row_inverse, right, o_n)
                    if may_exclude(row_range, col_range, EXCLUDE):
                        b_c = mark_excluded(b_c, (p_row_ids, M), (p_col_ids, N), o_m, o_n, EXCLUDE)
                    if p_indptr is not None:
                        b_c, o_pair = exclude_pairs(b_c, p_indices, o_pair, o_end, o_n, start + (part + 1) * WIDTH)
                    m_same, b_guide = None, None
                    if p_guide_rows is not None:
                        b_q = cosines(guide_parts[part], load_vector(p_guide_row_inverse, o_m, M), guide_right, o_n)
                        b_c = mark_above(b_c, b_q, p_threshold, o_m, M, THRESHOLDS)
                        if SOFT_TARGETS:
                            b_guide = guide_logits(b_q, b_c, p_guide_scale)
                    if LABELLED:
                        m_same = same_ids(p_row_ids, p_col_ids, o_m, o_n, M, N)
                    b_col_scale = load_scale(p_col_scale, o_n, N, COL_SCALES)[None, :]
                    col = no_state(o_n)
                    if BY_COLS:
                        col = load_state(p_col_partials, o_n, N, group_m, GROUPS_M, tile_m, LABELLED, SOFT_TARGETS)
                    row, col = with_exponentials(
                        row, col, b_c, b_row_scale, b_col_scale, safe, BY_ROWS, BY_COLS, SAME_SCALE
                    )
                    if BY_ROWS:
                        row = with_targets(row, b_c, b_row_scale, m_same, b_guide, 1)
                    if BY_COLS:
                        col = with_targets(col, b_c, b_col_scale, m_same, b_guide, 0)
                        store_state(p_col_partials, col, o_n, N, group_m, GROUPS_M, LABELLED, SOFT_TARGETS)
                if BY_COLS and TILES_M > 1:
                    tl.debug_barrier()  # the next row of tiles reads what other threads have written
            if BY_ROWS:
                store_state(p_row_partials, row, o_m, M, group_n, GROUPS_N, LABELLED, SOFT_TARGETS)


@triton.jit
def merge(
    p_partials,  # [FIELDS, GROUPS, N] of the rows, or of the columns
    p_lse,  # [N]
    p_stat_lse,  # [N]: the same, kept for the backward pass
    p_target,  # [N] or None
    p_soft,  # [N] or None
    p_stat_guide_lse,  # [N]
    block, N, GROUPS,
    BLOCK: tl.constexpr,
):  # fmt: skip
    LABELLED: tl.constexpr = p_target is not None
    SOFT_TARGETS: tl.constexpr = p_soft is not None
    o = block * BLOCK + tl.arange(0, BLOCK)
    b_top, b_sum, b_target, b_guide_top, b_guide_sum, b_soft = no_state(o)
    group = 0
    while group < GROUPS:  # the interpreter takes no bound of a range from the device
        part = load_state(p_partials, o, N, group, GROUPS, 1, LABELLED, SOFT_TARGETS)
        b_new = tl.maximum(b_top, part[0])
        b_reference = finite(b_new)
        b_sum = b_sum * tl.exp2(b_top - b_reference) + part[1] * tl.exp2(part[0] - b_reference)
        b_top = b_new
        b_target += part[2]
        if SOFT_TARGETS:
            b_new = tl.maximum(b_guide_top, part[3])
            b_reference = finite(b_new)
            b_old, b_add = tl.exp2(b_guide_top - b_reference), tl.exp2(part[3] - b_reference)
            b_guide_sum = b_guide_sum * b_old + part[4] * b_add
            b_soft = b_soft * b_old + part[5] * b_add
            b_guide_top = b_new
        group += 1
    m = o < N
    b_lse = logarithm(b_top, b_sum)
    tl.store(p_lse + o, b_lse, mask=m)
    tl.store(p_stat_lse + o, b_lse, mask=m)
    if LABELLED:
        tl.store(p_target + o, b_target, mask=m)
    if SOFT_TARGETS:
        tl.store(p_soft + o, b_soft / tl.where(b_guide_sum == 0.0, 1.0, b_guide_sum), mask=m)
        tl.store(p_stat_guide_lse + o, logarithm(b_guide_top, b_guide_sum), mask=m)


@triton.jit(do_not_specialize=["M", "N", "GROUPS_M", "GROUPS_N", "BLOCKS"])
def logsumexp_merge_kernel(
    p_row_partials,  # [FIELDS, GROUPS_N, M]
    p_row_lse, p_row_stat_lse, p_row_target, p_row_soft, p_row_stat_guide_lse,  # [M], those of ``merge``
    p_col_partials,  # [FIELDS, GROUPS_M, N]
    p_col_lse, p_col_stat_lse, p_col_target, p_col_soft, p_col_stat_guide_lse,  # [N]
    M, N, GROUPS_M, GROUPS_N,
    BLOCKS,  # so many programs are the rows'; 0: they are not wanted
    BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < BLOCKS:
        if p_row_partials is not None:
            merge(
                p_row_partials, p_row_lse, p_row_stat_lse, p_row_target, p_row_soft, p_row_stat_guide_lse,
                block, M, GROUPS_N, BLOCK
            )  # fmt: skip
    else:
        if p_col_partials is not None:
            merge(
                p_col_partials, p_col_lse, p_col_stat_lse, p_col_target, p_col_soft, p_col_stat_guide_lse,
                block - BLOCKS, N, GROUPS_M, BLOCK
            )  # fmt: skip


@triton.jit
def logarithm(b_top, b_sum):
    """Natural logarithm of sum * 2^top; -inf where there is nothing."""
    b_log = b_top * LN2 + tl.log(tl.where(b_sum == 0.0, 1.0, b_sum))
    return tl.where(b_sum == 0.0, -float("inf"), b_log)

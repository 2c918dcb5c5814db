# mypy: disable-error-code="no-untyped-def"
"""Where kernels that hand results to each other find them: tiles of contiguous workspaces, numbers per row.

Grid axis 0 holds item, row tile, column tile. Numbers of tiles are constexprs: loops over them then need no bound from
the device. Fields of rows are constexprs too: positions in the tuple of names that the launcher counts.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import load_mask


@triton.jit
def locate(TILES_A: tl.constexpr, TILES_B: tl.constexpr):
    """(item as int64, row tile, column tile) of this program."""
    pid = tl.program_id(0)
    return (pid // (TILES_A * TILES_B)).to(tl.int64), (pid // TILES_B) % TILES_A, pid % TILES_B


@triton.jit
def workspace_offsets(o_b, o_rows, o_cols, n_rows, n_cols):
    """Offsets and mask [ROWS, COLS] in a workspace [N, n_rows, n_cols]."""
    o_tile = (o_b * n_rows + o_rows)[:, None] * n_cols + o_cols[None, :]
    return o_tile, (o_rows < n_rows)[:, None] & (o_cols < n_cols)[None, :]


@triton.jit
def load_workspace(p_workspace, o_b, o_rows, o_cols, n_rows, n_cols):
    """[ROWS, COLS] of a workspace [N, n_rows, n_cols], 0 outside."""
    o_tile, m_tile = workspace_offsets(o_b, o_rows, o_cols, n_rows, n_cols)
    return tl.load(p_workspace + o_tile, mask=m_tile, other=0.0)


@triton.jit
def load_field(p_fields, o_b, o_rows, n_rows, FIELD: tl.constexpr, FIELDS: tl.constexpr):
    """[ROWS] of one field of a workspace [N, FIELDS, n_rows], 0 outside."""
    return tl.load(p_fields + (o_b * FIELDS + FIELD) * n_rows + o_rows, mask=o_rows < n_rows, other=0.0)


@triton.jit
def store_field(p_fields, b_field, o_b, o_rows, n_rows, FIELD: tl.constexpr, FIELDS: tl.constexpr):
    """[ROWS] into one field of a workspace [N, FIELDS, n_rows]."""
    tl.store(p_fields + (o_b * FIELDS + FIELD) * n_rows + o_rows, b_field, mask=o_rows < n_rows)


@triton.jit
def locate_stat(p_stats, o_b, o_rows, stride_stat, n_rows, FIELD: tl.constexpr):
    """Pointers [ROWS] to one of an op's statistics [FIELDS, B, n_rows]."""
    return p_stats + (o_b * n_rows + o_rows + FIELD * stride_stat)


@triton.jit
def load_stat(p_stats, o_b, o_rows, m_rows, stride_stat, n_rows, FIELD: tl.constexpr, OTHER: tl.constexpr):
    """[ROWS] of one of an op's statistics [FIELDS, B, n_rows]; OTHER at masked rows."""
    return tl.load(locate_stat(p_stats, o_b, o_rows, stride_stat, n_rows, FIELD), mask=m_rows, other=OTHER)


@triton.jit
def store_stat(p_stats, b_stat, o_b, o_rows, m_rows, stride_stat, n_rows, FIELD: tl.constexpr):
    """[ROWS] into one of an op's statistics [FIELDS, B, n_rows]; 0 at masked rows."""
    p_stat = locate_stat(p_stats, o_b, o_rows, stride_stat, n_rows, FIELD)
    tl.store(p_stat, tl.where(m_rows, b_stat, 0.0), mask=o_rows < n_rows)


@triton.jit
def load_amax(p_amax, o_b, N_AMAX: tl.constexpr, BLOCK_AMAX: tl.constexpr):
    """The largest of the magnitudes [N, N_AMAX] that tiles of an item reported; 1 where none had to."""
    if p_amax is None:
        return 1.0
    else:
        o_amax = tl.arange(0, BLOCK_AMAX)
        return tl.max(tl.load(p_amax + o_b * N_AMAX + o_amax, mask=o_amax < N_AMAX, other=0.0), axis=0)


@triton.jit
def count_valid(p_mask, o_b, n_rows, stride_batch, stride_row, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """How many of an item's rows are valid."""
    count = 0
    for tile in range(TILES):
        o_rows = tile * BLOCK + tl.arange(0, BLOCK)
        count += tl.sum(load_mask(p_mask, o_b, o_rows, n_rows, stride_batch, stride_row).to(tl.int32), axis=0)
    return count

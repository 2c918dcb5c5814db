# mypy: disable-error-code="no-untyped-def"
"""The op's statistics [7, B, L] by name, as its kernels read and write them."""

import triton
import triton.language as tl

from sparc_kernels.ops.fine_grained.schema import STATS

ROW_MIN = tl.constexpr(STATS.index("row_min"))
ROW_MAX = tl.constexpr(STATS.index("row_max"))
GROUP_NORM = tl.constexpr(STATS.index("group_norm"))
TOKEN_NORM = tl.constexpr(STATS.index("token_norm"))
ROW_LSE = tl.constexpr(STATS.index("row_logsumexp"))
COLUMN_LSE = tl.constexpr(STATS.index("column_logsumexp"))
SCALE_DERIVATIVE = tl.constexpr(STATS.index("scale_derivative"))


@triton.jit
def load_stat(p_stats, o_b, o_l, m_l, stride_stat, L, FIELD: tl.constexpr, OTHER: tl.constexpr):
    """[ROWS] of one statistic; OTHER at padded tokens."""
    return tl.load(p_stats + (o_b * L + o_l + FIELD * stride_stat), mask=m_l, other=OTHER)


@triton.jit
def store_stat(p_stats, b_stat, o_b, o_l, m_l, stride_stat, L, FIELD: tl.constexpr):
    """[ROWS] into one statistic; 0 at padded tokens."""
    tl.store(p_stats + (o_b * L + o_l + FIELD * stride_stat), tl.where(m_l, b_stat, 0.0), mask=o_l < L)

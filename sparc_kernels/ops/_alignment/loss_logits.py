# mypy: disable-error-code="no-untyped-def"
"""What all paths of a loss per token share: its statistics [STATS, B, L] by name, and the gradient of its logits."""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import MIN_NORM, clamped_inverse_norm

# The first two are of the rows of similarities; only the backend that wrote them reads them.
STATS = ("low", "high", "group_norm", "token_norm", "row_logsumexp", "column_logsumexp", "scale_derivative")
ROW_MIN = tl.constexpr(STATS.index("low"))
ROW_MAX = tl.constexpr(STATS.index("high"))
GROUP_NORM = tl.constexpr(STATS.index("group_norm"))
TOKEN_NORM = tl.constexpr(STATS.index("token_norm"))
ROW_LSE = tl.constexpr(STATS.index("row_logsumexp"))
COLUMN_LSE = tl.constexpr(STATS.index("column_logsumexp"))
SCALE_DERIVATIVE = tl.constexpr(STATS.index("scale_derivative"))


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

# mypy: disable-error-code="no-untyped-def"
"""Device helpers of kernels over patches and tokens: min-max similarities, the cut at the threshold, their gradients.

Symbols are those of ``ops/fine_grained/MATH.md``. Blocks: ``L`` rows of tokens, ``P`` rows of patches, ``D`` channels.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._alignment.flatness import FLAT_EPS

FLAT_RANGE = tl.constexpr(FLAT_EPS * 2.0**-23)  # eps of float32, in which similarities are summed


@triton.jit
def threshold_of(p_threshold, n_patches):
    """sigma (1 / number of valid patches unless given), and NaN in place of 0 for an image without a valid patch."""
    poison = tl.where(n_patches > 0, 0.0, float("nan"))
    if p_threshold is None:
        return 1.0 / tl.maximum(n_patches, 1).to(tl.float32), poison
    else:
        return tl.load(p_threshold), poison


@triton.jit
def row_extrema(b_similarity, m_patches):
    """Minimum and maximum [L] of rows of similarities [L, P] over the valid patches; 0 and 0 if there is none."""
    b_min = tl.min(tl.where(m_patches[None, :], b_similarity, float("inf")), axis=1)
    b_max = tl.max(tl.where(m_patches[None, :], b_similarity, -float("inf")), axis=1)
    m_none = b_min > b_max
    return tl.where(m_none, 0.0, b_min), tl.where(m_none, 0.0, b_max)


@triton.jit
def row_range(b_min, b_max):
    """Range [L] of the rows, exactly 0 in flat ones: the rule of ``flatness.py``."""
    b_range = b_max - b_min
    return tl.where(b_range <= FLAT_RANGE * tl.maximum(tl.abs(b_min), tl.abs(b_max)), 0.0, b_range)


@triton.jit
def min_max_heights(b_similarity, b_min, b_max, m_patches):
    """H [L, P] and the range [L] of the row, 0 in flat rows.

    H replaces S and the masks in registers: S = m + (M - m) H, kept patches have H >= sigma, minima (and every patch of
    a flat row) H = 0, the maximum H = 1, masked patches H = -1.
    """
    b_range = row_range(b_min, b_max)
    b_height = (b_similarity - b_min[:, None]) * (1.0 / tl.where(b_range == 0.0, 1.0, b_range))[:, None]
    b_height = tl.where(b_similarity == b_max[:, None], 1.0, b_height)
    b_height = tl.where((b_range == 0.0)[:, None], 0.0, b_height)
    return tl.where(m_patches[None, :], b_height, -1.0), b_range


@triton.jit
def sparse_weights(b_height, b_range, sigma):
    """U [L, P] in units of the row's range: K * H, and 1 on every valid patch of a flat row.

    ``sigma`` is a scalar or [L, 1]. K is written as "not cut", so that a NaN is kept and seen.
    """
    m_flat = (b_range == 0.0)[:, None]
    b_weight = tl.where(m_flat, 1.0, b_height)
    return tl.where(b_height < tl.where(m_flat, 0.0, sigma), 0.0, b_weight)


@triton.jit
def grad_similarities(b_grad, b_height, b_range, sigma):
    """dS [L, P] from dU [L, P], U in units of the row's range: K dU, less its row sum at the minima; 0 in flat rows."""
    b_grad = tl.where(b_height < sigma, 0.0, b_grad)
    b_ties = tl.sum(tl.where(b_height == 0.0, 1.0, 0.0), axis=1)
    b_shared = tl.sum(b_grad, axis=1) / tl.maximum(b_ties, 1.0)
    b_inverse_range = tl.where(b_range == 0.0, 0.0, 1.0 / tl.where(b_range == 0.0, 1.0, b_range))
    b_grad = b_grad - tl.where(b_height == 0.0, b_shared[:, None], 0.0)
    return b_grad * b_inverse_range[:, None]

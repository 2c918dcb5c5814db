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
def row_extrema(b_similarity, m_patches, AXIS: tl.constexpr = 1):
    """Minimum and maximum [L] of similarities over the valid patches, which run along ``AXIS``; 0 and 0 without any."""
    m_similarity = tl.expand_dims(m_patches, 1 - AXIS)
    b_min = tl.min(tl.where(m_similarity, b_similarity, float("inf")), axis=AXIS)
    b_max = tl.max(tl.where(m_similarity, b_similarity, -float("inf")), axis=AXIS)
    m_none = b_min > b_max
    return tl.where(m_none, 0.0, b_min), tl.where(m_none, 0.0, b_max)


@triton.jit
def row_range(b_min, b_max):
    """Range [L] of the rows, exactly 0 in flat ones: the rule of ``flatness.py``."""
    b_range = b_max - b_min
    return tl.where(b_range <= FLAT_RANGE * tl.maximum(tl.abs(b_min), tl.abs(b_max)), 0.0, b_range)


@triton.jit
def min_max_heights(b_similarity, b_min, b_max, m_patches, AXIS: tl.constexpr = 1):
    """H [L, P], or [P, L] where patches run along ``AXIS`` 0, and the range [L] of the row, 0 in flat rows.

    H replaces S and the masks in registers: S = m + (M - m) H, kept patches have H >= sigma, minima (and every patch of
    a flat row) H = 0, the maximum H = 1, masked patches H = -1.
    """
    b_range = row_range(b_min, b_max)
    b_unit = 1.0 / tl.where(b_range == 0.0, 1.0, b_range)
    b_height = (b_similarity - tl.expand_dims(b_min, AXIS)) * tl.expand_dims(b_unit, AXIS)
    b_height = tl.where(b_similarity == tl.expand_dims(b_max, AXIS), 1.0, b_height)
    b_height = tl.where(tl.expand_dims(b_range == 0.0, AXIS), 0.0, b_height)
    return tl.where(tl.expand_dims(m_patches, 1 - AXIS), b_height, -1.0), b_range


@triton.jit
def sparse_weights(b_height, b_range, sigma, AXIS: tl.constexpr = 1):
    """U, of H's shape, in units of the row's range: K * H, and 1 on every valid patch of a flat row.

    ``sigma`` is a scalar or as ``b_range`` expanded. K is written as "not cut", so that a NaN is kept and seen.
    """
    m_flat = tl.expand_dims(b_range == 0.0, AXIS)
    b_weight = tl.where(m_flat, 1.0, b_height)
    return tl.where(b_height < tl.where(m_flat, 0.0, sigma), 0.0, b_weight)


@triton.jit
def grad_similarities(b_grad, b_height, b_range, sigma, AXIS: tl.constexpr = 1):
    """dS from dU, U in units of the row's range: K dU, less its row sum at the minima; 0 in flat rows."""
    b_grad = tl.where(b_height < sigma, 0.0, b_grad)
    b_ties = tl.sum(tl.where(b_height == 0.0, 1.0, 0.0), axis=AXIS)
    b_shared = tl.sum(b_grad, axis=AXIS) / tl.maximum(b_ties, 1.0)
    b_inverse_range = tl.where(b_range == 0.0, 0.0, 1.0 / tl.where(b_range == 0.0, 1.0, b_range))
    b_grad = b_grad - tl.where(b_height == 0.0, tl.expand_dims(b_shared, AXIS), 0.0)
    return b_grad * tl.expand_dims(b_inverse_range, AXIS)

# mypy: disable-error-code="no-untyped-def"
"""Device functions of the iterations: cosines of a pair, and its potentials from them (``MATH.md``).

A step costs one exponential an entry where it can: K = exp(t S + g + f) of the step before, whose
entries are the plan's times exp(S / beta), is in range where S / beta and the last changes of f do not vary by much;
the sums of its rows and columns then are those that the step needs, up to vectors. Elsewhere both sums are taken as
log-sum-exps, with their maxima.
"""

import triton
import triton.language as tl

from sparc_kernels.ops._triton.tiles import MIN_NORM, load_tile

NOTHING = tl.constexpr(-1e30)  # the logarithm of a scaling that is 0; far from overflow
# Entries of K that are less than e^-87 count as 0; in a step of linear scale they grow by at most e to this.
MOST_GROWTH = tl.constexpr(50.0)


@triton.jit
def inverse_norms(
    p_rows, o_rows, m_rows, stride_row, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr
):
    """1 / norm [ROWS], 1e12 for a zero vector, as in ``F.normalize``; and its square, 0 where the norm is clamped."""
    b_square = tl.zeros([o_rows.shape[0]], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        b_rows = load_tile(p_rows, o_rows, o_d, m_rows, D, stride_row, stride_d, UPCAST).to(tl.float32)
        b_square += tl.sum(b_rows * b_rows, axis=1)
    return inverse_of_square(b_square)


@triton.jit
def inverse_of_square(b_square):
    """1 / norm of its square, and the square of that, 0 where the norm is clamped."""
    b_norm = tl.sqrt(b_square)
    b_inverse = 1.0 / tl.where(b_norm < MIN_NORM, MIN_NORM, b_norm)  # NaN stays NaN
    return b_inverse, tl.where(b_norm > MIN_NORM, b_inverse * b_inverse, 0.0)


@triton.jit
def steepness(p_beta, step, PROXIMAL: tl.constexpr):
    """t of the kernel exp(t S) of a step."""
    b_unit = 1.0 / tl.load(p_beta)
    if PROXIMAL:
        b_unit = b_unit * step
    return b_unit


@triton.jit
def log_count(m_rows):
    """log of the number of valid rows, at least 1."""
    return tl.log(tl.maximum(tl.sum(m_rows.to(tl.int32), axis=0), 1).to(tl.float32))


@triton.jit
def negative_logsumexp(b_logits, AXIS: tl.constexpr):
    """- log sum exp of finite logits along an axis."""
    b_top = tl.max(b_logits, axis=AXIS)
    return -b_top - tl.log(tl.sum(tl.exp(b_logits - tl.expand_dims(b_top, AXIS)), axis=AXIS))


@triton.jit
def plan_of(b_s, b_f, b_g, t, m_l, m_p):
    """exp(t S + g + f) [L, P], in the order in which f was found; 0 where a token or patch is not valid."""
    return tl.where(m_l[:, None] & m_p[None, :], tl.exp((b_s * t + b_g[None, :]) + b_f[:, None]), 0.0)


@triton.jit
def iterate(b_s, m_l, m_p, p_beta, ITERATIONS: tl.constexpr, PROXIMAL: tl.constexpr):
    """f [L] and g [P] after all steps; NOTHING where not valid. S [L, P] is 0 there."""
    unit = 1.0 / tl.load(p_beta)
    m_tile = m_l[:, None] & m_p[None, :]
    most = tl.max(tl.where(m_tile, b_s, -float("inf")))
    reach = (most - tl.min(tl.where(m_tile, b_s, float("inf")))) * unit
    reach = reach if PROXIMAL else reach * 0.0
    shift = most * unit if PROXIMAL else most * 0.0
    log_l, log_p = log_count(m_l), log_count(m_p)
    b_f = tl.where(m_l, 0.0, NOTHING)
    b_g = tl.where(m_p, 0.0, NOTHING)
    # Of f in the last step. Not f of the step before: Triton 3.6 takes a name for a constant of the loop where the loop
    # sets it to a variable that it shared its first value with.
    b_change = tl.zeros([b_s.shape[0]], tl.float32)
    spread = reach * 0.0  # of that change
    t = unit
    for step in range(1, ITERATIONS + 1):
        if PROXIMAL:
            t = unit * step
        least_change = tl.min(tl.where(m_l, b_change, float("inf")))
        spread_before = spread
        spread = tl.max(tl.where(m_l, b_change, -float("inf"))) - least_change
        if (step > 1) & (2.0 * (reach + spread) + spread_before < MOST_GROWTH):
            b_k = tl.exp((b_s * t + (b_g - shift)[None, :]) + b_f[:, None])
            b_from = tl.exp(b_change - least_change) if PROXIMAL else tl.where(m_l, 1.0, 0.0)
            b_sum = tl.sum(b_k * b_from[:, None], axis=0)
            b_sum = tl.where(m_p, b_sum, 1.0)
            b_g = tl.where(m_p, b_g - shift - log_p - tl.log(b_sum), NOTHING)
            b_v = tl.where(m_p, 1.0 / b_sum, 0.0)
            b_sum = tl.where(m_l, tl.sum(b_k * b_v[None, :], axis=1), 1.0)
            b_next = tl.where(m_l, b_f - log_l + log_p - tl.log(b_sum), NOTHING)
        else:
            b_start = b_f + b_change if PROXIMAL else b_f
            b_g = tl.where(m_p, negative_logsumexp(b_s * t + b_start[:, None], 0) - log_p, NOTHING)
            b_next = tl.where(m_l, negative_logsumexp(b_s * t + b_g[None, :], 1) - log_l, NOTHING)
        b_change = tl.where(m_l, b_next - b_f, 0.0)
        b_f = b_next
    # Many steps of linear scale leave roundings in f: rows are to sum to 1 / n.
    return tl.where(m_l, negative_logsumexp(b_s * t + b_g[None, :], 1) - log_l, NOTHING), b_g

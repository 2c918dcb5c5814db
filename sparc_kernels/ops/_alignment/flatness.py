"""When a row of similarities counts as flat, for the eager definition and for the kernels."""

# A row is flat (MATH.md, degenerate rows), all its patches being equally similar up to rounding, where
# max - min <= FLAT_EPS * eps * max(|min|, |max|), eps that of the dtype in which similarities are summed.
FLAT_EPS = 16

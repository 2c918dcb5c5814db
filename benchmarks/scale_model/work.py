"""Products, bytes of the device's memory that they touch, and memory that a rank needs, by mode.

Products are of B x B x D multiply-adds over all ranks, two flop each. What one kernel reads again from the second-level
cache is not counted, so bytes are the least that is possible.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scale_model.problem import BACKWARD, FORWARD, PHASES, SIGMOID, SOFTMAX, Problem

# Rows of a matrix instruction: fewer cost as much.
LEAST_ROWS = 16
# Of sparc_kernels/ops/contrastive/config.py: the gradient operand G is made in blocks, partial results of the forward
# pass, both within a budget.
WORKSPACE, PARTIALS = 512 * 2**20, 64 * 2**20
# Numbers kept per row and per column between forward and backward, bytes of an id, and numbers kept per pair of the
# rank by the composition (tests/benchmarks/test_scale_model.py counts what is kept).
KEPT, ID, OF_PAIRS = 4, 8, 10
# In a ring a row and a column keep their log-sum-exp, and nobody merges the shares of ranks.
OF_PAIRS_OF_RING = 6

# Products of each pass: similarities; similarities again and two for the gradients.
TWO_SWEEPS = {FORWARD: 1, BACKWARD: 3}
# The sigmoid's gradient needs no statistic of a whole row: similarities and gradients in one sweep.
ONE_SWEEP = {FORWARD: 3, BACKWARD: 0}
GATHER_PRODUCTS = {SOFTMAX: TWO_SWEEPS, SIGMOID: ONE_SWEEP}
RING_PRODUCTS = {SOFTMAX: TWO_SWEEPS, SIGMOID: ONE_SWEEP}


@dataclass(frozen=True)
class Work:
    """Of one rank, in one pass."""

    flop: float
    memory_bytes: float
    """Read and written."""
    gradients: bool = False
    """Two of three products make gradients; else the similarities alone."""
    pairs: float = 0.0
    """Entries of stored matrices, once per direction that has its softmax; 0 where nothing is stored."""


def runs(rows: int, cols: int, itemsize: int) -> tuple[int, int]:
    """Of rows and of columns that G is cut into, as ``TileConfig.blocks`` does without its tiles: so that the least is
    added up in float32."""
    blocks = -(-rows * cols * itemsize // WORKSPACE)
    cuts = [(by_rows, -(-blocks // by_rows)) for by_rows in range(1, blocks + 1)]
    return min(cuts or [(1, 1)], key=lambda each: rows * each[1] + cols * each[0])


def _in_float32(rows: int, cols: int, itemsize: int) -> int:
    """Rows and columns whose gradients are in float32 at a time: a run of one side and all of the other."""
    by_rows, by_cols = runs(rows, cols, itemsize)
    return min(-(-rows // by_rows) + cols, rows + -(-cols // by_cols))


def fused(problem: Problem, products: dict[str, int], blocks: int) -> dict[str, Work]:
    """The streamed kernels on a rank's share of the matrix, cut into ``blocks`` blocks of columns."""
    b, cols, d, i = problem.local, problem.batch, problem.width, problem.itemsize
    similarities = (blocks * b + cols) * d * i
    # G is written and read twice; dX and dY in float32 are written, and read, by each block that adds to them.
    runs_of_rows, runs_of_cols = runs(b, cols // blocks, i)
    gradients = 3 * b * cols * i + (blocks * b + cols) * d * i
    gradients += 8 * runs_of_cols * blocks * b * d + 8 * runs_of_rows * cols * d
    found = {}
    for phase in PHASES:
        count = products[phase]
        swept = similarities * (count > 0) + gradients * (count > 1)
        found[phase] = Work(2.0 * count * b * cols * d, swept, count > 1)
    return found


def gather(problem: Problem) -> dict[str, Work]:
    return fused(problem, GATHER_PRODUCTS[problem.loss], 1)


def ring(problem: Problem) -> dict[str, Work]:
    return fused(problem, RING_PRODUCTS[problem.loss], problem.ranks)


def gather_kept(problem: Problem) -> int:
    """Between forward and backward, beyond the rank's embeddings: all texts, and the gradients that one sweep makes."""
    b, cols, w = problem.local, problem.batch, problem.wide
    rows = cols + (b + cols if GATHER_PRODUCTS[problem.loss] is ONE_SWEEP else 0)
    return rows * problem.width * problem.itemsize + _vectors(b, cols, w)


def gather_memory(problem: Problem) -> int:
    """What is kept, gradients of all texts as they are rounded, those that the op adds up, a block of G."""
    b, cols, d, w = problem.local, problem.batch, problem.width, problem.wide
    gradients = cols * d * problem.itemsize + _in_float32(b, cols, problem.itemsize) * d * w
    return gather_kept(problem) + gradients + min(WORKSPACE, b * cols * problem.itemsize) + PARTIALS


def ring_kept(problem: Problem) -> int:
    """Between forward and backward, beyond the rank's embeddings: vectors, and the gradients that one sweep makes."""
    b = problem.local
    rows = 2 * b if RING_PRODUCTS[problem.loss] is ONE_SWEEP else 0
    return rows * problem.width * problem.itemsize + 2 * b * (problem.wide + ID) + b * OF_PAIRS_OF_RING * problem.wide


def ring_memory(problem: Problem) -> int:
    """What is kept; a block of texts in use and one on its way, their gradients likewise, those of a block as the op
    adds them up and rounded, dX likewise and its sum, a block of G."""
    b, d, i, w = problem.local, problem.width, problem.itemsize, problem.wide
    blocks = 2 * b * d * i + 3 * b * d * w + 2 * b * d * (i + w)
    return ring_kept(problem) + blocks + min(WORKSPACE, b * b * i) + PARTIALS


def _vectors(rows: int, cols: int, wide: int) -> int:
    return (rows + cols) * (KEPT * wide + ID) + rows * OF_PAIRS * wide


def local_loss(problem: Problem, with_gradient: bool) -> dict[str, Work]:
    """open_clip's two blocks [b, B], one per direction."""
    b, cols, d = problem.local, problem.batch, problem.width
    product, pairs = 2.0 * b * cols * d, 2.0 * b * cols
    return {
        FORWARD: Work(2 * product, 0, False, pairs),
        BACKWARD: Work((4 if with_gradient else 2) * product, 0, True, pairs),
    }


def global_loss(problem: Problem) -> dict[str, Work]:
    """open_clip's whole matrix [B, B] on every rank, for both directions; gradients of all rows, too."""
    product, pairs = 2.0 * problem.batch**2 * problem.width, 2.0 * problem.batch**2
    return {FORWARD: Work(product, 0, False, pairs), BACKWARD: Work(2 * product, 0, True, pairs)}


# Under autocast, so that cross-entropies are of float32: logits, a copy in float32, two log-softmaxes.


def local_memory(problem: Problem) -> int:
    b, cols, d, i, w = problem.local, problem.batch, problem.width, problem.itemsize, problem.wide
    return 2 * (cols + b) * d * i + b * cols * (2 * i + 3 * w)


def global_memory(problem: Problem) -> int:
    cols, d, i, w = problem.batch, problem.width, problem.itemsize, problem.wide
    return 3 * cols * d * i + cols * cols * (i + 3 * w)

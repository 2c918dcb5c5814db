"""Triton's passes in float32 between products of a library (torch.bmm), whose code is not there to be run: by flop and
bytes."""

from __future__ import annotations

from tools.sass_model.chips import Chip
from tools.sass_model.launches import Shape

# Share of the float32 peak that such products reach: of those of the loss on an H100, both passes, 0.45 at the vendor's
# clock; and what its passes take over their bytes at DRAM's rate (benchmarks/results/nvidia-h100/fp32_pairs.txt).
PRODUCTS, PASSES = 0.45, 1.6
ITEM = 4  # bytes


def products(op: str, backward: bool, shape: Shape) -> list[tuple[int, int, int]]:
    """Rows, columns and depth of each (``ops/_alignment/loss_library.py``, ``ops/grouping/triton_library.py``)."""
    l, p, d = shape.tokens, shape.patches, shape.channels
    similarities, groups, gradients = (l, p, d), (l, d, p), (p, d, 2 * l)
    if op == "grouping":
        return [(2 * l, p, d), gradients, groups] if backward else [similarities, groups]
    forward = [similarities, groups, (l, l, d)]
    return [*forward, (l, p, l), similarities, (l, p, l), gradients, groups] if backward else forward


def numbers_of_passes(op: str, backward: bool, shape: Shape) -> int:
    """Read and written by the passes between them."""
    l, p, d = shape.tokens, shape.patches, shape.channels
    if op == "grouping":
        return 4 * l * d + 4 * l * p if backward else 2 * l * p
    return 5 * l * d + 7 * l * p + 2 * l * l if backward else 2 * l * d + 2 * l * p + l * l


def cycles(op: str, backward: bool, shape: Shape, chip: Chip) -> float:
    """Of a pair and multiprocessor."""
    flop = 256 / chip.float_cycles  # per cycle: four schedulers of 32 lanes
    total = PASSES * ITEM * numbers_of_passes(op, backward, shape) / chip.dram_bytes
    for rows, columns, depth in products(op, backward, shape):
        moved = ITEM * (rows * depth + depth * columns + rows * columns)
        total += max(2 * rows * columns * depth / (PRODUCTS * flop), moved / chip.dram_bytes)
    return total

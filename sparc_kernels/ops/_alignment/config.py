"""Tile sizes of the tiled path, which both rooms share, and arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TiledConfig:
    """Tiles of the matrix products [block_l, block_p, block_d], of passes over rows [row_l, row_p] and over [L, L]."""

    block_l: int = 64
    block_p: int = 64
    block_d: int = 64
    row_l: int = 16
    row_p: int = 64
    square_l: int = 16
    num_warps: int = 8
    pass_warps: int = 4
    num_stages: int = 2
    # Pairs are taken in groups whose workspaces fit here: of the order of an L2 cache, and independent of the batch.
    workspace_bytes: int = 64 * 2**20

    def groups(self, n_pairs: int, floats_per_pair: int) -> Iterator[slice]:
        """Slices of the batch, all of the first one's length but the last, whose workspaces fit."""
        step = max(1, self.workspace_bytes // (4 * floats_per_pair))
        return (slice(first, min(first + step, n_pairs)) for first in range(0, n_pairs, step))


def choose_tiled(itemsize: int) -> TiledConfig:
    """Tiles with which every kernel of the path compiles without a spill (``tests/test_triton_compile.py``).

    Half precision: [64, 64]; with 4 warps for 8, two of the backward's products spill. Float32: a quarter of that.
    """
    return TiledConfig() if itemsize == 2 else TiledConfig(block_l=32, block_p=32, block_d=32, num_stages=3)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def tiles(n: int, block: int) -> int:
    """How many blocks cover n."""
    return -(-n // block)

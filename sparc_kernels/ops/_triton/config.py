"""Tile sizes of the tiled path, which both rooms share, and arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TiledConfig:
    """Tiles of the matrix products [block_l, block_p, block_d], of the passes over rows [row_l, row_p]."""

    block_l: int = 64
    block_p: int = 64
    block_d: int = 64
    row_l: int = 16
    row_p: int = 128
    num_warps: int = 4
    num_stages: int = 2
    # Pairs are taken in groups whose workspaces fit here: of the order of an L2 cache, and independent of the batch.
    workspace_bytes: int = 64 * 2**20

    def groups(self, n_pairs: int, floats_per_pair: int) -> Iterator[slice]:
        """Slices of the batch, all of the first one's length but the last, whose workspaces fit."""
        step = max(1, self.workspace_bytes // (4 * floats_per_pair))
        return (slice(first, min(first + step, n_pairs)) for first in range(0, n_pairs, step))


def choose_tiled(itemsize: int) -> TiledConfig:
    """Tiles of 64 x 64; float32 operands take twice the shared memory, so half the channels per step."""
    return TiledConfig(block_d=64 if itemsize == 2 else 32)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def tiles(n: int, block: int) -> int:
    """How many blocks cover n."""
    return -(-n // block)

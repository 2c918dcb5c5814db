"""Tile sizes of the Triton kernels of this room and the rule that chooses them."""

from __future__ import annotations

from dataclasses import dataclass

from .._triton.config import TiledConfig, choose_tiled, next_power_of_2


@dataclass(frozen=True)
class PairConfig:
    """One program per image-text pair: its S tile is [block_l, block_p], channels come in chunks of block_d."""

    block_l: int
    block_p: int
    block_d: int
    num_warps: int
    num_stages: int


def choose(n_tokens: int, n_patches: int, n_channels: int, itemsize: int, backward: bool) -> PairConfig:
    block_l = max(16, next_power_of_2(n_tokens))
    block_p = max(16, next_power_of_2(n_patches))
    block_d = min(64, max(16, next_power_of_2(n_channels)))
    return PairConfig(block_l, block_p, block_d, 8, 2)

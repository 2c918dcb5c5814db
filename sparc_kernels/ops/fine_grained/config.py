"""Tile sizes of the Triton kernels of this room and the rule that chooses them.

The figures are from the compiler (registers, spills, shared memory: ``tests/test_triton_compile.py`` prints them), not
from timings.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._triton.config import TiledConfig, choose_tiled, next_power_of_2

__all__ = ["PairConfig", "TiledConfig", "choose"]


@dataclass(frozen=True)
class PairConfig:
    """One program per image-text pair: its S tile is [block_l, block_p], channels come in chunks of block_d."""

    block_l: int
    block_p: int
    block_d: int
    num_warps: int = 8
    num_stages: int = 2


def choose(n_tokens: int, n_patches: int, n_channels: int, itemsize: int, capability: int) -> PairConfig | TiledConfig:
    """The path and its tiles for captions of n_tokens, images of n_patches, elements of itemsize bytes.

    ``capability`` is ten times the major plus the minor compute capability of the device.
    """
    block_l = max(16, next_power_of_2(n_tokens))
    block_p = max(16, next_power_of_2(n_patches))
    # S [64, 256] in float32 is 64 registers of a thread with 8 warps: twice as much spills in every variant. Float32
    # operands double what the products hold besides: [64, 64] is what fits, and tf32x3 also needs their two halves.
    largest = 64 * 256 if itemsize == 2 else 64 * 64
    if block_l > 64 or block_l * block_p > largest:
        return choose_tiled(itemsize)
    # mma.sync (8.x, 12.x) takes operands through registers, so half the channels at a time: the forward of [64, 256]
    # then has no spill, and the backward 92 kB of shared memory, which every chip has. wgmma and tcgen05 read theirs
    # from shared memory: 64 channels, 128 bytes, is the widest swizzle.
    from_registers = capability < 90 or capability >= 120
    block_d = 32 if itemsize == 4 or (from_registers and block_p > 64) else 64
    return PairConfig(block_l, block_p, min(block_d, max(16, next_power_of_2(n_channels))))

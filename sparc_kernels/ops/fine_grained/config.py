"""Tile sizes of the Triton kernels of this room and the rule that chooses them.

The figures are from the compiler (registers, spills, shared memory: ``tests/test_triton_compile.py`` prints them), not
from timings.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class PairConfig:
    """One program per image-text pair: its S tile is [block_l, block_p], channels come in chunks of block_d."""

    block_l: int
    block_p: int
    block_d: int
    num_warps: int = 8
    num_stages: int = 2


def choose(n_tokens: int, n_patches: int, n_channels: int, itemsize: int, capability: int) -> PairConfig | None:
    """Tiles for captions of n_tokens, images of n_patches, itemsize bytes an element; None where the tiled path serves.

    ``capability`` is ten times the major plus the minor compute capability of the device.
    """
    block_l = max(16, triton.next_power_of_2(n_tokens))
    block_p = max(16, triton.next_power_of_2(n_patches))
    # S [64, 256] in float32 is 64 registers of a thread with 8 warps: twice as much spills in every variant. Float32
    # operands double what the products hold besides, and tf32x3 holds both their halves: its [64, 64] spills.
    largest = 64 * 256 if itemsize == 2 else 32 * 64
    if block_l > 64 or block_l * block_p > largest:
        return None
    # mma.sync (8.x, 12.x) takes operands through registers: 32 channels at a time leave the forward [64, 256] without
    # a spill, and its backward 92 kB of shared memory, which every chip has. wgmma and tcgen05 read theirs from shared
    # memory: 64 channels are 128 bytes, the widest swizzle.
    from_registers = capability < 90 or capability >= 120
    block_d = 32 if itemsize == 4 or from_registers else 64
    return PairConfig(block_l, block_p, min(block_d, max(16, triton.next_power_of_2(n_channels))))

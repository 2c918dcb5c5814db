"""Tile sizes of the Triton kernels of this room and the rule that chooses them."""

from __future__ import annotations

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class RowConfig:
    """One program per block_l tokens of a pair (backward: per pair), whose similarities [block_l, block_p] it holds."""

    block_l: int
    block_p: int
    block_d: int
    num_warps: int = 8
    num_stages: int = 2


def choose(
    n_tokens: int, n_patches: int, n_channels: int, itemsize: int, capability: int, backward: bool
) -> RowConfig | None:
    """Tiles for n_tokens per caption, n_patches per image, itemsize bytes an element; None where the tiled path serves.

    ``capability`` is ten times the major plus the minor compute capability of the device. The bounds are those of
    ``fine_grained/config.py``; rows do not see each other, so only the backward (dV sums over all of them) bounds
    n_tokens.
    """
    block_l = max(16, triton.next_power_of_2(n_tokens))
    block_p = max(16, triton.next_power_of_2(n_patches))
    if not backward:
        block_l = min(64, block_l)
    largest = 64 * 256 if itemsize == 2 else 32 * 64
    if block_l > 64 or block_l * block_p > largest:
        return None
    from_registers = capability < 90 or capability >= 120
    block_d = 32 if itemsize == 4 or from_registers else 64
    return RowConfig(block_l, block_p, min(block_d, max(16, triton.next_power_of_2(n_channels))))

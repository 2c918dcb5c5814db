"""Tile sizes of the Triton kernels over patches and tokens, and the rules that choose them.

The figures are from the compiler (registers, spills, shared memory: ``tests/test_triton_compile.py`` prints them); the
pair path's on compute capability 9.0 are timed too.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

from sparc_kernels.ops._triton.products import ProductTiles


@dataclass(frozen=True)
class PairConfig:
    """A program holds the similarities [block_l, block_p] of tokens of one pair with all its patches.

    Channels come in chunks of block_d. ``grads_together``: one launch makes the loss's gradients of patches
    and of tokens, which share their operands; otherwise each has one of its own. ``described``: the loss's backward
    copies unmasked patches by tensor descriptors.
    """

    block_l: int
    block_p: int
    block_d: int
    num_warps: int = 8
    num_stages: int = 2
    grads_together: bool = True
    described: bool = False


@dataclass(frozen=True)
class TiledConfig:
    """Tiles of the matrix products [block_l, block_p, block_d], passes along rows [pass_l, pass_p] and over [L, L].

    With these every kernel of the path compiles without a spill in half precision (``tests/test_triton_compile.py``);
    with 4 warps for 8, two of the backward's products spill.
    """

    block_l: int = 64
    block_p: int = 64
    block_d: int = 64
    pass_l: int = 16
    pass_p: int = 64
    square_l: int = 16
    num_warps: int = 8
    pass_warps: int = 4
    square_warps: int = 4
    num_stages: int = 2
    # Pairs are taken in micro-batches whose workspaces fit here: of the order of an L2 cache, and independent of B.
    workspace_bytes: int = 64 * 2**20

    @property
    def product(self) -> ProductTiles:
        """Those of the matrix products."""
        return ProductTiles(self.block_l, self.block_p, self.block_d, self.num_warps, self.num_stages)


@dataclass(frozen=True)
class LibraryConfig(TiledConfig):
    """The tiled path with products of a library; what stands between them are passes over rows held whole.

    A pass takes ``row_block`` numbers at a time, in whole rows of similarities (one at least) or of channels.
    """

    square_l: int = 64
    square_warps: int = 16
    row_block: int = 2048
    # A product of few pairs leaves multiprocessors idle at its end. On an H100 64 MB take 1.12 of the time forward and
    # 1.24 backward, 256 MB 1.02 and 0.97.
    workspace_bytes: int = 128 * 2**20

    def rows(self, width: int) -> int:
        """How many rows of that many numbers, a power of two, go into one block."""
        return min(16, max(1, self.row_block // width))


Config = PairConfig | TiledConfig


def choose(n_tokens: int, n_patches: int, n_channels: int, itemsize: int, capability: int) -> Config:
    """The path for n_tokens at once, images of n_patches, itemsize bytes an element, and its tiles."""
    if itemsize == 4:
        # Triton's own products took 6 times as long forward and 5 backward on an H100.
        return LibraryConfig()
    return choose_pair(n_tokens, n_patches, n_channels, capability) or TiledConfig()


def choose_pair(n_tokens: int, n_patches: int, n_channels: int, capability: int) -> PairConfig | None:
    """Tiles for n_tokens at once and images of n_patches in half precision; None where the tiled path serves.

    ``capability`` is ten times the major plus the minor compute capability of the device.
    """
    block_l = max(16, triton.next_power_of_2(n_tokens))
    block_p = max(16, triton.next_power_of_2(n_patches))
    # S [64, 256] in float32 is 64 registers of a thread with 8 warps: twice as much spills in every variant.
    if block_l > 64 or block_l * block_p > 64 * 256:
        return None
    # mma.sync (8.x, 12.x) takes operands through registers: 32 channels at a time. The loss's backward [64, 256] then
    # takes 116 kB of shared memory, or 84 with a launch for each gradient; 8.6, 8.9 and 12.x have 99. wgmma and tcgen05
    # read theirs from shared memory: 64 channels are 128 bytes, the widest swizzle. On an H200 the fine-grained loss in
    # bfloat16 takes 1.5 times as long (backward: 1.4) with 32 channels, 1.2 (1.8) with 16 warps and 1.1 (1.15) with two
    # stages; with two stages 4 warps for 8 take 1.3 (2.1) times as long.
    from_registers = capability < 90 or capability >= 120
    block_d = 32 if from_registers else 64
    num_stages = 3 if capability == 90 else 2
    block_d = min(block_d, max(16, triton.next_power_of_2(n_channels)))
    together = not (from_registers and capability not in (80, 87) and block_l * block_p > 64 * 128)
    # On an H100 the backward at [64, 256] takes 0.88 of the time with descriptors, which leave registers for what
    # spilled; the forward gains nothing.
    return PairConfig(
        block_l, block_p, block_d, num_stages=num_stages, grads_together=together, described=capability == 90
    )

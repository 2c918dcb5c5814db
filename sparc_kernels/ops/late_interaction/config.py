"""Tile sizes of the kernels and the rules that choose them.

Those of sm_90 with cosines in half precision were measured. All others are from the compiler (registers, spills, shared
memory: ``tests/test_triton_compile.py`` looks at them) and from counting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TileConfig:
    """Tiles of ``block_p`` patches by ``granules`` of 16 tokens, whose channels come ``block_d`` at a time.

    A program owns an image and a run of captions.
    """

    block_p: int = 128
    granules: int = 8
    block_d: int = 64
    parts: int = 1  # of a tile's columns, one after the other
    num_warps: int = 4
    num_stages: int = 3
    most_captions: int = 64  # of a run, whose last tile may be half empty
    # Runs are halved until there are as many programs: 24 for each of 132 multiprocessors.
    enough_programs: int = 24 * 132
    # Whether the products are a library's, float32 and so many bytes at a time.
    library: bool = False
    library_bytes: int = 128 * 2**20
    # Whether patches stay in shared memory (``triton_resident.py``), in slices of ``block_d`` channels.
    resident: bool = False
    # Whether they do so in a kernel of CUDA C++ (``native.py``); then ``block_p`` is one of its instances.
    native: bool = False
    # The one-hot matrix of the backward pass is made so many tokens at a time, and in blocks that fit here.
    block_n: int = 32
    workspace_bytes: int = 256 * 2**20  # resident tiles: of keys, too

    def cut(self, n_patches: int, n_channels: int) -> TileConfig:
        """For a small problem: no tile much larger than an image, no block wider than the channels."""
        if self.native:
            return self
        least = 16  # of a matrix instruction
        return replace(
            self,
            block_p=min(self.block_p, max(least, _power_of_two(n_patches))),
            block_d=min(self.block_d, max(least, _power_of_two(n_channels))),
        )

    def captions(self, n_images: int, n_captions: int) -> int:
        """Captions of a run, a power of two."""
        run = self.most_captions
        while run > 1 and n_images * -(-n_captions // run) < self.enough_programs:
            run //= 2
        return run

    def block(self, n_tokens: int, n_images: int, n_patches: int, itemsize: int) -> tuple[int, int]:
        """Tokens and images of a block of the one-hot matrix, about as many tokens as patches."""
        entries = max(1, self.workspace_bytes // itemsize)
        tokens = min(max(1, n_tokens), -(-int(entries**0.5) // self.block_n) * self.block_n)
        return tokens, min(max(1, n_images), max(1, entries // (tokens * n_patches)))


def choose_resident(n_channels: int) -> TileConfig | None:
    """Tiles for cosines in half precision on sm_90 whose patches stay in shared memory; None where they do not fit.

    64 kB of patches and two slices of tokens let two programs share a multiprocessor. The fastest of seven at 256
    channels and of three at 512 (docs/performance_log.md).
    """
    if n_channels > 512:
        return None
    return TileConfig(128 if n_channels <= 256 else 64, num_stages=2, resident=True)


def choose_native(n_patches: int, n_channels: int, columns: int = 0) -> TileConfig | None:
    """Tiles of the kernel in CUDA C++ (sm_90a), with so many ``columns`` of patches where that is not 0; None where
    nothing fits.

    The fewest columns, padding included, if each chunk of patches counts for 16 more, since tokens are read once for
    each: of the widths that fit, the fastest in all six shapes measured. Longer runs than Triton's: a block alone on
    its multiprocessor waits for its patches.
    """
    panels = -(-n_channels // 64)
    room = 227 * 1024 - 2 * 3 * 8192  # three stages of tokens for each of two warpgroups
    fitting = [n for n in (104, 128, 200, 256) if panels * n * 128 + 4 * n <= room and columns in (0, n)]
    if n_channels > 512 or n_channels % 8 or not fitting:
        return None
    best = min(fitting, key=lambda n: -(-n_patches // n) * (n + 16))
    return TileConfig(best, resident=True, native=True, most_captions=128, enough_programs=8 * 132)


def choose_faster_native(n_patches: int, n_channels: int) -> TileConfig | None:
    """Tiles of the kernel in CUDA C++ where it is faster than Triton's with patches in shared memory; else None.

    That is where it multiplies no more columns of patches, padding included: on an H100 0.50 to 0.88 of the time of the
    whole forward pass in nine shapes of that kind, and 1.34 to 1.42 of it in three of at most 64 patches, of which
    Triton's makes 64 columns and this one 104 (docs/performance_log.md).
    """
    resident, found = choose_resident(n_channels), choose_native(n_patches, n_channels)
    if resident is None or found is None:
        return None
    own, others = (-(-n_patches // n) * n for n in (found.block_p, resident.cut(n_patches, n_channels).block_p))
    return found if own <= others else None


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def choose(itemsize: int, capability: int, exact: bool) -> TileConfig:
    """Tiles for elements of ``itemsize`` bytes on a device of ``capability`` (ten times major plus minor).

    ``exact``: keys of 64 bits.
    """
    if itemsize == 4:
        return TileConfig(64, parts=2, library=True)  # a library's float32 products are the faster ones
    if exact:
        return TileConfig(64, parts=2)  # keys take twice the registers
    if capability < 90 or capability >= 120:
        # mma.sync takes operands through registers: 32 channels at a time leave room for the rest.
        return TileConfig(64, block_d=32)
    if capability < 100:
        # Where patches do not stay in shared memory. Two programs of 4 warps to a multiprocessor: the fastest of
        # thirteen on an H100 (docs/performance_log.md), although it spills some words outside of its loop; two parts
        # took 1.19 and four 1.40 times as long.
        return TileConfig()
    return TileConfig(parts=4)

"""Tile sizes of the Triton kernels and the rules that choose them.

Chosen by counting and by what the compiler says (registers, spills, shared memory: ``tests/test_triton_compile.py``
looks at them). Those of sm_90 were timed on an H100 (docs/performance_log.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

MOST_FUSED = 256  # patches of an image whose similarities fit a tile
MULTIPROCESSORS = 132  # of an H100; the fused kernels run one program on each


@dataclass(frozen=True)
class Tiles:
    """``block_r`` tokens by all patches of an image, whose channels come ``block_d`` at a time."""

    block_r: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class OwnProducts:
    """Tiles of the products that stop behind the last valid token: [block_m, block_n], block_k of the depth at a time,
    of a Gram matrix [block_p, block_p], by ``num_warps``."""

    block_m: int = 128
    block_n: int = 256
    block_p: int = 128
    block_k: int = 64
    num_warps: int = 8
    num_stages: int = 3

    def parts(self, tiles: int, programs: int, most: int) -> int:
        """How many programs share the depth of a tile: the fewest that leave the least idle."""
        waste = {n: -(-tiles * n // programs) * programs / (tiles * n) for n in range(1, most + 1)}
        return min(waste, key=lambda n: (round(waste[n], 1), n))


@dataclass(frozen=True)
class TileConfig:
    """How both passes go through images and tokens."""

    forward: Tiles = Tiles(128, 64, 8, 3)
    backward: Tiles = Tiles(128, 64, 8, 2)
    # Similarities by products of a library, with passes of ours between them, instead of tiles in registers.
    library: bool = False
    # Products of the backward pass by our kernels instead of a library's, where tokens and patches have descriptors.
    own: OwnProducts | None = None
    again: bool = False  # the backward pass computes similarities a second time instead of keeping them in registers
    block_r: int = 8  # tokens of a program of those passes
    block_p: int = 256  # and their patches at a time
    workspace_bytes: int = 256 * 2**20
    programs: int = MULTIPROCESSORS

    def cut(self, n_channels: int) -> TileConfig:
        """For few channels: no block much wider than they are."""
        most = max(16, 1 << (n_channels - 1).bit_length())
        return replace(
            self,
            forward=replace(self.forward, block_d=min(self.forward.block_d, most)),
            backward=replace(self.backward, block_d=min(self.backward.block_d, most)),
        )

    def runs(self, n_images: int, tiles: int, waves: int = 1) -> int:
        """Programs of an image, to fill the multiprocessors ``waves`` times; more than once only where each then has 8
        tiles for the Gram matrix that it loads."""
        once = max(1, self.programs // max(1, n_images))
        return min(tiles, max(once, min(waves * once, tiles // 8)))

    def images(self, n_images: int, bytes_of_an_image: int) -> int:
        """Images at a time, if that many bytes are needed for each."""
        return min(max(1, n_images), max(1, self.workspace_bytes // max(1, bytes_of_an_image)))

    def block(self, n_tokens: int, n_images: int, n_patches: int, entry_bytes: int) -> tuple[int, int]:
        """Tokens and images of a block of matrices, of so many bytes per token and patch.

        A program keeps an image's Gram matrix and wants many tokens, and the programs of a launch should fill the
        multiprocessors: so an image has a whole number of programs, or a program one image.
        """
        entries = max(1, self.workspace_bytes // entry_bytes)
        images = entries // max(1, n_tokens * n_patches)
        if images < self.programs:
            parts = next((n for n in (2, 3, 4) if self.programs // n <= images), 4)
            images = self.programs // parts
        else:
            images -= images % self.programs
        images = min(max(1, n_images), max(1, images))
        step = self.backward.block_r
        tokens = max(1, entries // (images * n_patches) // step) * step
        return min(max(1, n_tokens), tokens), images


def pieces(n_patches: int) -> tuple[int, int, int]:
    """Widths of up to three pieces that hold an image's patches, powers of two of at least 16; the least in all, then
    the fewest."""
    widths = [0, *(1 << n for n in range(4, 9))]
    found = (x for x in product(widths, repeat=3) if x[0] >= x[1] >= x[2] and sum(x) >= n_patches)
    first, second, third = min(found, key=lambda x: (sum(x), -x[0], -x[1]))
    return first, second, third


def choose(itemsize: int, capability: int, n_patches: int, words: bool) -> TileConfig:
    """For elements of ``itemsize`` bytes on a device of ``capability`` (ten times major plus minor); ``words``: the
    weights of a token depend on the other tokens of its caption."""
    if itemsize == 4:
        return TileConfig(library=True)  # a library's float32 products are the faster ones
    if words or n_patches > MOST_FUSED:
        return TileConfig(library=True)
    hopper = 90 <= capability < 120
    width = sum(pieces(n_patches))
    if width > 128:
        if not hopper:
            return TileConfig(library=True)  # spills, and the Gram matrix fills shared memory
        # G takes 2 width^2 bytes of 227 kB, and a stage 128 (128 + width).
        stages = 3 if width <= 208 else 2
        rows = 128 if capability < 100 else 64  # less spills there; nothing of sm_100 was timed
        return TileConfig(Tiles(128, 64, 8, stages), Tiles(rows, 64, 8, 2), own=OwnProducts(), again=True)
    if not hopper:
        # mma.sync takes operands through registers
        return TileConfig(forward=Tiles(64, 32, 4, 2), backward=Tiles(64, 32, 8, 2), programs=2 * MULTIPROCESSORS)
    return TileConfig(backward=Tiles(64, 64, 4, 2), own=OwnProducts(), programs=2 * MULTIPROCESSORS)

"""Tile sizes of the Triton kernels and the rules that choose them.

Those of sm_90 in bfloat16, and the library's products for float32, are the fastest of some forty that an H200 ran
(docs/performance_log.md). All others are from the compiler (registers, spills, shared memory:
``tests/test_triton_compile.py`` looks at them) and from counting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LANES = 16  # G's rows start at multiples of it, so that they are stored and read 16 bytes at a time


def _cdiv(n: int, block: int) -> int:
    return -(-n // block)


def width(n: int) -> int:
    """Columns of G with their padding."""
    return _cdiv(n, LANES) * LANES


@dataclass(frozen=True)
class Blocks:
    """Sides of the blocks in which the gradient operand G is made; those at its end may be smaller."""

    rows: int
    cols: int
    tiles: tuple[int, int]  # of a program in such a block, along rows and along columns

    def added(self, shape: tuple[int, int], wanted: tuple[bool, bool]) -> int:
        """How often a row of the rows' or columns' gradient, D numbers of float32, is written or read while blocks add
        to it; ``wanted``: which of both gradients are.

        Each block of a row's run of blocks writes it, and all but the first read it before.
        """
        m, n = shape
        return wanted[0] * m * (2 * _cdiv(n, self.cols) - 1) + wanted[1] * n * (2 * _cdiv(m, self.rows) - 1)


@dataclass(frozen=True)
class TileConfig:
    """Tiles [block_m, block_n] of the matrix, whose channels come block_d at a time.

    A program owns a supertile: ``most_tiles`` by ``most_tiles`` tiles or fewer. It keeps the running numbers of a row
    in registers, those of a column in its own part of the partial results.
    """

    block_m: int
    block_n: int
    block_d: int
    parts: int = 4  # of a tile's columns, one after the other: 1, 2, 4 or 8
    num_warps: int = 8
    num_stages: int = 3
    most_tiles: int = 32
    # A forward pass leaves a few numbers per row and run of columns, and per column and run of rows.
    partial_bytes: int = 64 * 2**20
    # The gradient operand G is made in blocks that fit here.
    workspace_bytes: int = 512 * 2**20
    # Supertiles grow until there are no more programs: 24 for each of 132 multiprocessors, whose last round then costs
    # 4 % at most.
    most_programs: int = 24 * 132
    # Whether the products of rows and columns are a library's, float32 and so many bytes at a time, and the kernels
    # read them instead of computing their own.
    library: bool = False
    library_bytes: int = 128 * 2**20
    # Whether tiles of the embeddings are copied by the tensor memory accelerator, where their layout allows it. Only
    # then are supertiles in which every pair takes part looked for.
    described: bool = False
    # Whether the sweep is a kernel's of CUDA C++ (``native.py``) that keeps block_n columns, one of its instances; rows
    # pass by in tiles of block_m.
    native: bool = False

    def cut(self, n_rows: int, n_cols: int, n_channels: int) -> TileConfig:
        """For a small problem: no tile much larger than the matrix."""
        if self.native:
            return self
        least = 16  # of a matrix instruction
        block_n = min(self.block_n, max(least, _power_of_two(n_cols)))
        return replace(
            self,
            block_m=min(self.block_m, max(least, _power_of_two(n_rows))),
            block_n=block_n,
            parts=min(self.parts, block_n // least),
            block_d=min(self.block_d, max(least, _power_of_two(n_channels))),
        )

    def supertile(self, n_rows: int, n_cols: int, numbers: int) -> tuple[int, int]:
        """Tiles of a program along rows and along columns, where each leaves ``numbers`` floats a row and a column.

        One, doubled until there are few enough programs and the partial results fit. Of the native kernel one: it goes
        along rows by itself.
        """
        if self.native:
            return 1, 1
        tiles_m, tiles_n = _cdiv(n_rows, self.block_m), _cdiv(n_cols, self.block_n)
        along_m = along_n = 1
        while along_m * along_n < self.most_tiles**2:
            groups_m, groups_n = _cdiv(tiles_m, along_m), _cdiv(tiles_n, along_n)
            size = 4 * numbers * (groups_m * n_cols + groups_n * n_rows)
            if size <= self.partial_bytes and groups_m * groups_n <= self.most_programs:
                break
            if along_m * self.block_m <= along_n * self.block_n:
                along_m *= 2
            else:
                along_n *= 2
        return along_m, along_n

    def blocks(self, n_rows: int, n_cols: int, itemsize: int, wanted: tuple[bool, bool]) -> Blocks:
        """Blocks of G, of ``itemsize`` bytes a number, that fit the workspace (one tile at least) and of all such add
        the least to gradients; ``wanted``: of rows, of columns. All of G where no gradient is, which then is not made.

        Where both are, blocks are about square; where one is, they hold whole rows or whole columns, and add nothing.
        """
        whole = Blocks(max(n_rows, 1), max(n_cols, 1), self.supertile(n_rows, n_cols, 1))
        most = self.workspace_bytes // itemsize
        if not any(wanted) or n_rows * width(n_cols) <= most:
            return whole
        tiles_m, tiles_n = _cdiv(n_rows, self.block_m), _cdiv(n_cols, self.block_n)
        found = []
        # Runs of rows: from as few as let a block hold all columns to one. Fewer runs of rows are more of columns.
        for cuts in range(_cdiv(tiles_m, max(1, most // width(n_cols) // self.block_m)), 0, -1):
            rows = min(n_rows, _cdiv(tiles_m, cuts) * self.block_m)
            fitting = tiles_n if rows * width(n_cols) <= most else most // rows // self.block_n
            if fitting > 0 or rows <= self.block_m:
                runs = _cdiv(tiles_n, max(1, fitting))  # as long as each other
                found.append(Blocks(rows, min(n_cols, _cdiv(tiles_n, runs) * self.block_n), (1, 1)))
        best = min(found, key=lambda each: each.added((n_rows, n_cols), wanted))
        return self._in_supertiles(best, n_rows, n_cols, most)

    def _in_supertiles(self, found: Blocks, n_rows: int, n_cols: int, most: int) -> Blocks:
        """Blocks of whole supertiles, in no more runs, where these fit: one that a block's end cuts has masks."""
        tiles = self.supertile(found.rows, found.cols, 1)
        rows, cols = (
            min(n, _cdiv(side, along * block) * along * block)
            for n, side, along, block in (
                (n_rows, found.rows, tiles[0], self.block_m),
                (n_cols, found.cols, tiles[1], self.block_n),
            )
        )
        if rows * width(found.cols) > most:
            rows = found.rows
        if rows * width(cols) > most:
            cols = found.cols
        return Blocks(rows, cols, tiles)

    def library_chunk(self, n_rows: int, row_bytes: int, step: int) -> int:
        """Rows of the library's products at a time: whole supertiles of ``step`` rows, one at least."""
        return min(max(n_rows, 1), max(1, self.library_bytes // max(1, row_bytes) // step) * step)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


# Behind a library's products a kernel only reads: many warps with few registers (no spills, and 16 warps to a
# multiprocessor). 64 rows to a column's partial result; one tile to a program, as a chunk has few.
READING = TileConfig(64, 128, 64, parts=2, library=True, most_programs=2**20)


def choose_native(n_channels: int, columns: int = 0) -> TileConfig | None:
    """Tiles of the sigmoid's sweep in CUDA C++ (sm_90a) for embeddings in half precision, with so many ``columns`` to a
    block where that is not 0; None where nothing fits.

    The most columns that fit: rows are read once for each block of them. Counted, not timed (docs/performance_log.md):
    ``choose`` does not take them.
    """
    room = 227 * 1024 - 4 * 8192  # four stages of 64 rows and 64 channels
    panels = max(2, -(-n_channels // 64))
    fitting = [n for n in (192, 128, 96) if panels * n * 128 + 4 * n <= room and columns in (0, n)]
    if n_channels < 1 or n_channels % 8 or n_channels > 1024 or not fitting:
        return None
    return TileConfig(64, fitting[0], 64, native=True)


def runs_of_rows(n_rows: int, blocks: int, multiprocessors: int) -> int:
    """Runs of rows of the native kernel, for each of which there are so many blocks of columns, one to a multiprocessor
    at a time: what takes the least time by count.

    A block takes as long as 3 tiles of 64 rows for its columns, 197 kB at 28 bytes a cycle, and for its first rows and
    last sums.
    """
    start, tiles = 3, _cdiv(n_rows, 64)

    def time(runs: int) -> int:
        return _cdiv(blocks * runs, multiprocessors) * (_cdiv(tiles, runs) + start)

    return min(range(1, max(1, tiles) + 1), key=time)


def choose(itemsize: int, capability: int, demanding: bool, guided: bool) -> TileConfig:
    """Tiles for elements of ``itemsize`` bytes on a device of ``capability`` (ten times major plus minor).

    ``demanding``: a backward pass, or ids that name targets: more is held beside the similarities. ``guided``: so are a
    guide's similarities.
    """
    if itemsize == 4:
        if guided:
            # Operands take twice the room, and tf32x3 holds both their halves.
            return TileConfig(64, 64, 32, parts=2)
        return READING  # Triton's float32 products reach 14 Tflop/s on an H200, the library's 50
    if capability < 90 or capability >= 120:
        # mma.sync takes operands through registers: 32 channels at a time, and 64 sums a thread, leave room for the
        # rest. Three stages of both operands are 48 kB, within the 99 kB of the smallest chip.
        return TileConfig(128, 64, 32, parts=2) if guided else TileConfig(128, 128, 32)
    # wgmma and tcgen05 read operands from shared memory: 64 channels are 128 bytes, the widest swizzle.
    if guided:
        return TileConfig(128, 64, 64, parts=2, described=capability < 100)
    if capability < 100:
        # Two programs of 4 warps to a multiprocessor: one has products to add while the other takes exponentials. Of 8
        # warps there is one, and nothing runs beside its exponentials: the fastest of them was 17 % slower forward and
        # 12 % backward on an H200 (bfloat16, 16384 items, 768 channels), 5 % for softplus sums. float16: not measured.
        return TileConfig(128, 128, 64, parts=4 if demanding else 2, num_warps=4, described=True)
    return TileConfig(128, 128, 64)  # [256, 128] spills: 312 bytes a thread on sm_100

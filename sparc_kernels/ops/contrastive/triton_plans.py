"""What the launches of this room have in common: the inputs as kernels know them, products, gradients in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product, starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparc_kernels.ops._triton.launch import (
    Launch,
    Step,
    capability,
    cdiv,
    describable,
    product_precision,
    strides,
    upcast,
)
from sparc_kernels.ops._triton.products import Product
from sparc_kernels.ops.contrastive.config import LANES, Blocks, TileConfig, choose, width
from sparc_kernels.ops.contrastive.schema import STATS
from sparc_kernels.ops.contrastive.triton_rows import (
    grad_rows_kernel,
    inverse_norms_kernel,
    merge_sums_kernel,
    total_kernel,
)

VECTOR_BLOCK = 1024


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


class Block(NamedTuple):
    """A part of the matrix."""

    rows: slice
    cols: slice


@dataclass(frozen=True)
class Side:
    """What belongs to the rows, or to the columns: [n] vectors, contiguous, and [n, D]."""

    embeds: Tensor
    ids: Tensor | None
    guide: Tensor | None
    stats: Tensor  # [STATS, n]

    def stat(self, name: str) -> Tensor:
        """[n] of ``STATS``."""
        return self.stats[STATS.index(name)]

    def of(self, part: slice) -> Side:
        """That of some items."""
        ids, guide = (None if x is None else x[part] for x in (self.ids, self.guide))
        return Side(self.embeds[part], ids, guide, self.stats[:, part])


@dataclass(frozen=True)
class Problem:
    """The inputs of a pass. ``arguments`` are the kernel parameters that stand for them."""

    row: Side
    col: Side
    indptr: Tensor | None
    indices: Tensor | None
    threshold: Tensor | None
    kept: Tensor | None  # [M, N]: raw products, from the forward pass to the backward pass
    ids_exclude: bool
    float32_precision: str
    backward: bool
    given: TileConfig | None = None  # instead of the chosen tiles
    first_col: int = 0  # of a block: among the columns that ``indices`` count

    @classmethod
    def of_arguments(
        cls,
        tensors: tuple[Any, ...],
        stats: Tensor,
        flags: tuple[bool, bool],
        float32_precision: str,
        backward: bool,
        config: TileConfig | None,
    ) -> Problem:
        """From rows, cols, row_ids, col_ids, indptr, indices, guide_rows, guide_cols, threshold; and from
        ids_exclude, keep_similarities."""
        ids_exclude, keep = flags
        rows, cols, row_ids, col_ids, indptr, indices, guide_rows, guide_cols, threshold = tensors
        m, n, k = rows.shape[0], cols.shape[0], len(STATS)
        row_stats, col_stats, kept = stats.split([k * m, k * n, stats.shape[0] - k * (m + n)])
        return cls(
            Side(rows, _vector(row_ids), guide_rows, row_stats.view(k, m)),
            Side(cols, _vector(col_ids), guide_cols, col_stats.view(k, n)),
            _vector(indptr),
            _vector(indices),
            _vector(threshold),
            kept.view(m, n) if keep else None,
            ids_exclude,
            float32_precision,
            backward,
            config,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)"""
        return self.row.embeds.shape[0], self.col.embeds.shape[0]

    @cached_property
    def config(self) -> TileConfig:
        """Tiles."""
        rows = self.row.embeds
        demanding = self.backward or (self.row.ids is not None and not self.ids_exclude)
        guided = self.row.guide is not None
        chosen = self.given or choose(rows.element_size(), capability(rows), demanding, guided)
        return chosen.cut(*self.shape, rows.shape[1])

    def of(self, block: Block) -> Problem:
        """That of a block, in the tiles of the whole."""
        rows, cols = block
        indptr = None if self.indptr is None else self.indptr[rows.start : rows.stop + 1]
        threshold = self.threshold[rows] if self.threshold is not None and self.threshold.dim() else self.threshold
        return replace(
            self,
            row=self.row.of(rows),
            col=self.col.of(cols),
            indptr=indptr,
            threshold=threshold,
            kept=None if self.kept is None else self.kept[rows, cols],
            given=self.config,
            first_col=cols.start,
        )

    def blocks(self, wanted: tuple[bool, bool]) -> Blocks:
        """Of G, for the gradients of rows and of columns that are wanted."""
        return self.config.blocks(*self.shape, self.row.embeds.element_size(), wanted)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A workspace."""
        return self.row.embeds.new_empty(shape, dtype=dtype)

    def arguments(self) -> dict[str, Any]:
        """Kernel arguments."""
        row, col, config = self.row, self.col, self.config
        m, n = self.shape
        k = 0 if row.guide is None else row.guide.shape[1]
        return {
            "p_rows": row.embeds,
            "p_cols": col.embeds,
            "p_row_inverse": row.stat("inverse_norm"),
            "p_col_inverse": col.stat("inverse_norm"),
            "p_row_ids": row.ids,
            "p_col_ids": col.ids,
            "p_indptr": self.indptr,
            "p_indices": self.indices,
            "p_guide_rows": row.guide,
            "p_guide_cols": col.guide,
            "p_guide_row_inverse": None if row.guide is None else row.stat("guide_inverse_norm"),
            "p_guide_col_inverse": None if row.guide is None else col.stat("guide_inverse_norm"),
            "p_threshold": self.threshold,
            **strides(row.embeds, "stride_m", "stride_md"),
            **strides(col.embeds, "stride_n", "stride_nd"),
            **strides(row.guide, "stride_um", "stride_uk"),
            **strides(col.guide, "stride_vn", "stride_vk"),
            "M": m,
            "N": n,
            "N_PAIRS": 0 if self.indices is None else self.indices.shape[0],
            "FIRST_COL": self.first_col,
            "D": row.embeds.shape[1],
            "K": k,
            "THRESHOLDS": self.threshold is not None and self.threshold.dim() == 1,
            "IDS_EXCLUDE": self.ids_exclude,
            "EVEN": n % LANES == 0,
            "DESCRIBED": config.described and all(map(describable, (row.embeds, col.embeds))),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_D": config.block_d,
            "BLOCK_K": config.cut(m, n, k).block_d,
            "PARTS": config.parts,
            "PRECISION": product_precision(row.embeds.dtype, self.float32_precision),
            "UPCAST": upcast(row.embeds.dtype),
        }

    def _only_ids_exclude(self) -> bool:
        """Whether nothing else excludes a pair or is summed, so that most supertiles have all of theirs."""
        labelled = self.row.ids is not None and not self.ids_exclude
        return not (labelled or self.indptr is not None or self.row.guide is not None or self.kept is not None)

    def products(self, n_rows: int, tiles: tuple[int, int]) -> Tensor | None:
        """A workspace of ``sweep`` over ``n_rows`` or fewer, for products of a library that are not kept."""
        n = self.shape[1]
        if not self.config.library or self.kept is not None or 0 in (n_rows, n):
            return None
        return self.new(self._library_chunk(n_rows, tiles), width(n))

    def _library_chunk(self, n_rows: int, tiles: tuple[int, int]) -> int:
        return self.config.library_chunk(n_rows, width(self.shape[1]) * 4, tiles[0] * self.config.block_m)

    def sweep(self, kernel: Any, tiles: tuple[int, int], known: dict[str, Any], products: Tensor | None) -> list[Step]:
        """Launches over supertiles of that many tiles; behind products that a library makes where it is asked to."""
        (m, n), config = self.shape, self.config
        if config.native:
            raise NotImplementedError(
                "the native kernel of the sigmoid loss takes pairs of which (i, i) alone are left out"
            )
        groups_m, groups_n = self.groups(tiles)
        by_library = config.library and n > 0 and not (self.backward and self.kept is not None)
        given = by_library or (self.backward and self.kept is not None)
        own = {"TILES_M": tiles[0], "TILES_N": tiles[1], "GROUPS_M": groups_m, "GROUPS_N": groups_n, "GIVEN": given}
        every = self.arguments() | own | known
        every["DESCRIBED"] = every["DESCRIBED"] and not given
        every["WHOLE"] = every["DESCRIBED"] and self._only_ids_exclude() and every.get("SAME_SCALE", True)
        length = max(m, 1)
        if by_library:
            length = self._library_chunk(m, tiles) if products is None else min(length, products.shape[0])
        steps: list[Step] = []
        for first in range(0, m, length):
            part = slice(first, min(first + length, m))
            n_rows = part.stop - first
            of_part = products if self.kept is None else self.kept[part]
            if by_library:
                assert of_part is not None
                steps.append(Product(of_part[:n_rows, :n], self.row.embeds[part], self.col.embeds.T))
            every |= {"p_products": of_part, "stride_p": 0 if of_part is None else of_part.stride(0)}
            every |= {"FIRST": first, "ROWS": n_rows}
            groups = cdiv(n_rows, tiles[0] * config.block_m) * groups_n
            steps.append(Launch.of(kernel, groups, every, {}, config.num_warps, config.num_stages))
        return steps

    def groups(self, tiles: tuple[int, int]) -> tuple[int, int]:
        """Runs of rows and runs of columns."""
        (m, n), (along_m, along_n) = self.shape, tiles
        return cdiv(m, along_m * self.config.block_m), cdiv(n, along_n * self.config.block_n)

    def norms(self) -> list[Launch]:
        """Into the statistics, whose other vectors become 0: some of them no kernel writes."""
        launches = []
        (m, n), row, col = self.shape, self.row, self.col
        for rows, cols, name in (
            (row.embeds, col.embeds, "inverse_norm"),
            (row.guide, col.guide, "guide_inverse_norm"),
        ):
            if rows is not None and cols is not None:
                known: dict[str, Any] = {"p_rows": rows, "p_cols": cols}
                known |= {"p_row_stats": row.stats, "p_col_stats": col.stats}
                known |= {**strides(rows, "stride_m", "stride_md"), **strides(cols, "stride_n", "stride_nd")}
                known |= {"M": m, "N": n, "FIELD": STATS.index(name), "FIELDS": len(STATS)}
                every = row_blocks(rows) | known
                programs = cdiv(m, every["BLOCK"]) + cdiv(n, every["BLOCK"])
                launches.append(Launch.of(inverse_norms_kernel, programs, every, {}, 4, 2))
        return launches


def row_blocks(rows: Tensor) -> dict[str, Any]:
    d = rows.shape[1]
    return {"D": d, "BLOCK": 8, "BLOCK_D": min(512, max(16, 1 << (d - 1).bit_length())), "UPCAST": upcast(rows.dtype)}


def along_rows(kernel: Any, rows: Tensor, known: dict[str, Any]) -> Launch:
    """A launch over the rows of [n, D], a few to a program."""
    n = rows.shape[0]
    every = row_blocks(rows) | {"N": n}
    return Launch.of(kernel, cdiv(n, every["BLOCK"]), every | known, {}, 4, 2)


def merge_sums(partials: Tensor, sums: Tensor, add: bool = False) -> Launch:
    """sums [fields, n] of partials [fields, groups, n], added to what they hold where ``add``; rows of the sums may lie
    apart."""
    fields, groups, n = partials.shape
    blocks = cdiv(n, 256)
    known = {"p_partials": partials, "p_sums": sums, "stride_s": sums.stride(0), "LATER": int(add)}
    known |= {"N": n, "GROUPS": groups, "BLOCKS": blocks, "BLOCK": 256}
    return Launch.of(merge_sums_kernel, fields * blocks, known, {}, 4, 2)


def total(vector: Tensor, number: Tensor, weights: Tensor | None = None) -> Launch:
    """number [] = the (weighted) sum of a vector, in a fixed order."""
    known: dict[str, Any] = {"p_vector": vector, "p_weights": weights, "p_total": number}
    known |= {"N": vector.shape[0], "BLOCK": VECTOR_BLOCK}
    return Launch.of(total_kernel, 1, known, {}, 4, 2)


class OfPairs(NamedTuple):
    """Cosines of row i and column i that have gradients of their own, beside those that come through the matrix."""

    cosines: Tensor  # [M]
    grads: Tensor  # [M]


def _in_order(shape: tuple[int, int], blocks: Blocks, by_rows: bool) -> Iterator[Block]:
    """Blocks, those of a run of rows, or of columns, one after the other."""
    rows, cols = (
        [slice(first, min(first + side, n)) for first in range(0, n, side)]
        for n, side in zip(shape, (blocks.rows, blocks.cols))
    )
    return starmap(Block, product(rows, cols)) if by_rows else (Block(row, col) for col, row in product(cols, rows))


@dataclass(frozen=True)
class Gradients:
    """Gradients of rows and columns to be written, None where not wanted."""

    rows: Tensor | None  # [M, D]
    cols: Tensor | None  # [N, D]
    power: Tensor | None  # [2], float16 only
    pairs: OfPairs | None = None

    @property
    def wanted(self) -> bool:
        """Whether any is."""
        return self.rows is not None or self.cols is not None

    def blocks(self, problem: Problem) -> Blocks:
        """Those of G."""
        return problem.blocks((self.rows is not None, self.cols is not None))

    def steps(
        self, problem: Problem, blocks: Blocks, sweep: Callable[[Problem, Block, Tensor | None], list[Step]]
    ) -> Iterator[Step]:
        """G in blocks, as ``sweep(problem of the block, block, G)`` makes it, and its products."""
        (m, n), d = problem.shape, problem.row.embeds.shape[1]
        dtype = problem.row.embeds.dtype
        gradient = problem.new(blocks.rows, width(blocks.cols), dtype=dtype) if self.wanted else None
        # The sums of one side's run of blocks are there at a time, and all of the other's.
        by_rows = blocks.rows + n <= m + blocks.cols
        row_sums = problem.new(blocks.rows if by_rows else m, d) if self.rows is not None else None
        col_sums = problem.new(n if by_rows else blocks.cols, d) if self.cols is not None else None
        for block in _in_order(problem.shape, blocks, by_rows):
            part, (rows, cols) = problem.of(block), block
            g = None if gradient is None else gradient[: rows.stop - rows.start, : cols.stop - cols.start]
            yield from sweep(part, block, g)
            if g is not None and row_sums is not None and self.rows is not None:
                sums = row_sums[: len(g)] if by_rows else row_sums[rows]
                yield Product(sums, g, part.col.embeds, add=cols.start > 0)
                if cols.stop == n:
                    yield self._finish(part.row, problem.col, rows, sums, self.rows[rows])
            if g is not None and col_sums is not None and self.cols is not None:
                sums = col_sums[cols] if by_rows else col_sums[: g.shape[1]]
                yield Product(sums, g.T, part.row.embeds, add=rows.start > 0)
                if rows.stop == m:
                    yield self._finish(part.col, problem.row, cols, sums, self.cols[cols])

    def _finish(self, side: Side, other: Side, part: slice, product: Tensor, grad: Tensor) -> Launch:
        known: dict[str, Any] = {
            "p_rows": side.embeds,
            "p_product": product,
            "p_inverse": side.stat("inverse_norm"),
            "p_power": self.power,
            "p_grad": grad,
            **strides(side.embeds, "stride_n", "stride_d"),
        }
        partners = None if self.pairs is None else other.embeds[part]
        known |= {"p_partners": partners, **strides(partners, "stride_o", "stride_od")}
        known |= dict.fromkeys(("p_of_cosines", "p_cosines", "p_partner_inverse"))
        if self.pairs is not None:
            known |= {"p_of_cosines": self.pairs.grads[part], "p_cosines": self.pairs.cosines[part]}
            known |= {"p_partner_inverse": other.stat("inverse_norm")[part]}
        return along_rows(grad_rows_kernel, side.embeds, known)

"""What the launches of this room have in common: the inputs as kernels know them, products, gradients in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
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
from sparc_kernels.ops.contrastive.config import TileConfig, choose
from sparc_kernels.ops.contrastive.schema import STATS
from sparc_kernels.ops.contrastive.triton_rows import (
    grad_rows_kernel,
    inverse_norms_kernel,
    merge_sums_kernel,
    total_kernel,
)

LANES = 16  # G's rows start at multiples of it, so that they are stored and read 16 bytes at a time
VECTOR_BLOCK = 1024


def _width(n: int) -> int:
    return cdiv(n, LANES) * LANES


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


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

    def of(self, part: slice) -> Problem:
        """That of some rows, in the tiles of the whole."""
        indptr = None if self.indptr is None else self.indptr[part.start : part.stop + 1]
        threshold = self.threshold[part] if self.threshold is not None and self.threshold.dim() else self.threshold
        kept = None if self.kept is None else self.kept[part]
        return replace(self, row=self.row.of(part), indptr=indptr, threshold=threshold, kept=kept, given=self.config)

    def chunk(self, of_embeds: bool) -> int:
        """Rows at a time in a backward pass: all where gradients of embeddings are not wanted."""
        m, n = self.shape
        return self.config.chunk(m, _width(n) * self.row.embeds.element_size()) if of_embeds else m

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
        return self.new(self._library_chunk(n_rows, tiles), _width(n))

    def _library_chunk(self, n_rows: int, tiles: tuple[int, int]) -> int:
        return self.config.library_chunk(n_rows, _width(self.shape[1]) * 4, tiles[0] * self.config.block_m)

    def sweep(self, kernel: Any, tiles: tuple[int, int], known: dict[str, Any], products: Tensor | None) -> list[Step]:
        """Launches over supertiles of that many tiles; behind products that a library makes where it is asked to."""
        (m, n), config = self.shape, self.config
        groups_m, groups_n = self.groups(tiles)
        by_library = config.library and n > 0 and not (self.backward and self.kept is not None)
        given = by_library or (self.backward and self.kept is not None)
        own = {"TILES_M": tiles[0], "TILES_N": tiles[1], "GROUPS_M": groups_m, "GROUPS_N": groups_n, "GIVEN": given}
        every = self.arguments() | own | known
        every["DESCRIBED"] = every["DESCRIBED"] and not given
        every["WHOLE"] = every["DESCRIBED"] and self._only_ids_exclude() and every.get("SAME_SCALE", True)
        length = self._library_chunk(m, tiles) if by_library else max(m, 1)
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


def merge_sums(partials: Tensor, sums: Tensor) -> Launch:
    """sums [fields, n] of partials [fields, groups, n]; rows of the sums may lie apart."""
    fields, groups, n = partials.shape
    blocks = cdiv(n, 256)
    known = {"p_partials": partials, "p_sums": sums, "stride_s": sums.stride(0)}
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

    def steps(self, problem: Problem, sweep: Callable[[Problem, slice, Tensor | None], list[Step]]) -> Iterator[Step]:
        """G in chunks of rows, as ``sweep(problem of the chunk, which rows, G)`` makes it, and its products."""
        m, n = problem.shape
        rows, cols = problem.row.embeds, problem.col.embeds
        length = problem.chunk(self.wanted)
        gradient = problem.new(length, _width(n), dtype=rows.dtype)[:, :n] if self.wanted else None
        row_product = problem.new(length, rows.shape[1]) if self.rows is not None else None
        col_product = problem.new(n, rows.shape[1]) if self.cols is not None else None
        for start in range(0, m, length):
            part = slice(start, min(start + length, m))
            chunk = problem.of(part)
            g = None if gradient is None else gradient[: part.stop - start]
            yield from sweep(chunk, part, g)
            if g is not None and self.rows is not None and row_product is not None:
                product = row_product[: part.stop - start]
                yield Product(product, g, cols)
                yield self._finish(chunk.row, problem.col, part, product, self.rows[part])
            if g is not None and col_product is not None:
                yield Product(col_product, g.T, chunk.row.embeds, add=start > 0)
        if col_product is not None and self.cols is not None:
            yield self._finish(problem.col, problem.row, slice(0, n), col_product, self.cols)

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

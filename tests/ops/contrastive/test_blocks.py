"""Blocks of the gradient operand G: what their sides cost, and that plans cover every pair once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparc_kernels.ops._triton.launch import Launch
from sparc_kernels.ops._triton.products import Product
from sparc_kernels.ops.contrastive import triton_losses
from sparc_kernels.ops.contrastive.config import Blocks, TileConfig, choose, width
from sparc_kernels.ops.contrastive.triton_softplus import softplus_kernel

NEEDS = ((True, True), (True, False), (False, True))
H100 = choose(2, 90, True, False)
SHAPES = (
    (65536, 65536),
    (32768, 32768),
    (50000, 50000),
    (23170, 23170),
    (4096, 524288),
    (524288, 4096),
    (16384, 131072),
    (1_000_003, 999_990),
)


def added_by_rows(config: TileConfig, shape: tuple[int, int], itemsize: int, wanted: tuple[bool, bool]) -> int | None:
    """What blocks of rows beside all columns add to gradients, as many rows of tiles as fit; None where none do."""
    rows = config.workspace_bytes // itemsize // width(shape[1]) // config.block_m * config.block_m
    return Blocks(rows, shape[1], (1, 1)).added(shape, wanted) if rows else None


@pytest.mark.parametrize("wanted", NEEDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_never_more_is_added_than_by_blocks_of_rows(shape: tuple[int, int], wanted: tuple[bool, bool]) -> None:
    blocks = H100.blocks(*shape, 2, wanted)
    assert blocks.rows * width(blocks.cols) * 2 <= H100.workspace_bytes
    for side, n, block in zip((blocks.rows, blocks.cols), shape, (H100.block_m, H100.block_n)):
        assert 0 < side <= n
        assert side == n or side % block == 0
    by_rows = added_by_rows(H100, shape, 2, wanted)
    assert by_rows is None or blocks.added(shape, wanted) <= by_rows


@pytest.mark.parametrize("wanted", NEEDS, ids=str)
@pytest.mark.parametrize("budget", [100, 300, 700, 1500, 2600])
def test_nothing_that_fits_adds_less(budget: int, wanted: tuple[bool, bool]) -> None:
    """Of all sides in tiles."""
    config = TileConfig(16, 16, 16, most_tiles=1, workspace_bytes=4 * budget)
    for shape in ((50, 50), (20, 75), (75, 20), (1, 200), (40, 41)):
        blocks = config.blocks(*shape, 4, wanted)
        sides = [[min(n, side) for side in range(16, n + 16, 16)] for n in shape]
        fitting = [Blocks(r, c, (1, 1)) for r in sides[0] for c in sides[1] if r * width(c) <= budget]
        least = min((each.added(shape, wanted) for each in fitting), default=None)
        if least is None:
            assert max(blocks.rows, blocks.cols) <= 16  # one tile, whatever it takes
        else:
            assert blocks.rows * width(blocks.cols) <= budget
            assert blocks.added(shape, wanted) == least


def test_blocks_at_the_sizes_of_the_log() -> None:
    """docs/performance_log.md has their bytes."""
    square = (65536, 65536)
    assert H100.blocks(*square, 2, (True, True)) == Blocks(16384, 16384, (4, 2))
    assert H100.blocks(*square, 2, (True, False)) == Blocks(4096, 65536, (4, 2))
    assert H100.blocks(*square, 2, (False, True)) == Blocks(65536, 4096, (4, 2))
    assert H100.blocks(16384, 16384, 2, (True, True)) == Blocks(16384, 16384, (4, 2))  # all of G
    assert H100.blocks(*square, 2, (False, False)) == Blocks(*square, H100.supertile(*square, 1))  # there is no G
    supertiles = H100.blocks(50000, 50000, 2, (True, True))
    assert supertiles.rows % (128 * supertiles.tiles[0]) == supertiles.cols % (128 * supertiles.tiles[1]) == 0


def plan_of_sigmoid(size: int, needs: tuple[bool, bool]) -> list[Any]:
    rows, cols = (torch.empty(size, 768, dtype=torch.bfloat16, device="meta") for _ in range(2))
    scale, bias = (torch.empty((), device="meta") for _ in range(2))
    _, steps = triton_losses.sigmoid_forward_plan(rows, cols, scale, bias, True, *needs, True, True, "highest")
    return list(steps)


@pytest.mark.parametrize("needs, memory", list(zip(NEEDS, (65536 + 16384, 4096, 4096))), ids=str)
def test_plan_of_a_large_batch(needs: tuple[bool, bool], memory: int) -> None:
    """Every pair is swept once; each product goes to a run of rows or columns, is added to what the run holds from its
    second block on, and all of them are in no more rows of float32 than ``memory``."""
    size = 65536
    steps = plan_of_sigmoid(size, needs)
    sweeps = [step.arguments for step in steps if isinstance(step, Launch) and step.kernel is softplus_kernel]
    assert sum(each["M"] * each["N"] for each in sweeps) == size * size
    products = [step for step in steps if isinstance(step, Product)]
    assert len(products) == sum(needs) * len(sweeps)
    writes = sum(step.result.shape[0] for step in products)
    reads = sum(step.result.shape[0] for step in products if step.add)
    assert writes + reads == H100.blocks(size, size, 2, needs).added((size, size), needs)
    storages = [step.result.untyped_storage() for step in products]
    stored = {each._cdata: each.nbytes() for each in storages}
    assert sum(stored.values()) == 4 * 768 * memory

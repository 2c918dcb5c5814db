"""Sweeps over the matrix and its gradients as steps of a plan: what the launchers of the ops (``triton``) and of whole
losses (``triton_losses``) are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._triton.launch import Launch, Step, cdiv
from sparc_kernels.ops.contrastive import native
from sparc_kernels.ops.contrastive.triton_logsumexp import FIELDS, logsumexp_kernel, logsumexp_merge_kernel
from sparc_kernels.ops.contrastive.triton_logsumexp_grad import logsumexp_gradient_kernel
from sparc_kernels.ops.contrastive.triton_paired import softplus_totals_kernel
from sparc_kernels.ops.contrastive.triton_plans import (
    VECTOR_BLOCK,
    Block,
    Gradients,
    OfPairs,
    Problem,
    merge_sums,
)
from sparc_kernels.ops.contrastive.triton_rows import power_kernel, top_scale_kernel
from sparc_kernels.ops.contrastive.triton_softplus import softplus_kernel

Steps = list[Step]

GRADS = tuple(f"p_grad_{side}_{name}" for side in ("row", "col") for name in ("lse", "target", "soft"))


def scales_of(row: Tensor, col: Tensor) -> dict[str, Any]:
    """Kernel arguments; whether both directions have one scale is a question of identity, not of values."""
    row, col = row.contiguous(), col.contiguous()
    same = row is col or (not row.is_meta and row.data_ptr() == col.data_ptr())
    return {
        "p_row_scale": row,
        "p_col_scale": col,
        "ROW_SCALES": row.dim() == 1,
        "COL_SCALES": col.dim() == 1,
        "SAME_SCALE": row.dim() == col.dim() == 0 and same,
    }


def logsumexp_sweep(
    problem: Problem, scales: dict[str, Any], guide_scale: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[dict[str, Any], Steps]:
    """Partial results by rows and by columns as ``logsumexp_merge`` knows them, and the steps that make them."""
    (m, n), soft = problem.shape, guide_scale is not None
    labelled = problem.row.ids is not None and not problem.ids_exclude
    numbers = len(FIELDS) if soft else 3 if labelled else 2
    tiles = problem.config.supertile(m, n, numbers)
    groups_m, groups_n = problem.groups(tiles)
    row_partials = problem.new(numbers, groups_n, m) if wanted[0] else None
    col_partials = problem.new(numbers, groups_m, n) if wanted[1] else None
    top, find_top = _top_scale(problem, scales, wanted)
    partials = {"p_row_partials": row_partials, "p_col_partials": col_partials}
    known = partials | scales | {"p_guide_scale": guide_scale, "p_top_scale": top}
    sweep = problem.sweep(logsumexp_kernel, tiles, known, problem.products(m, tiles))
    return partials | {"GROUPS_M": groups_m, "GROUPS_N": groups_n}, [*find_top, *sweep]


def logsumexp_merge(problem: Problem, merged: dict[str, Any], wanted: tuple[bool, bool]) -> Launch:
    """Results of rows and columns from their partial results: those ``merged`` names."""
    (m, n), block = problem.shape, 256
    names = ("p_row_target", "p_col_target", "p_row_soft", "p_col_soft")
    known: dict[str, Any] = dict.fromkeys(names) | merged
    rows, cols = (cdiv(size, block) if want else 0 for size, want in zip((m, n), wanted))
    for name, side in (("row", problem.row), ("col", problem.col)):
        known |= {f"p_{name}_stat_lse": side.stat("lse"), f"p_{name}_stat_guide_lse": side.stat("guide_lse")}
    known |= {"M": m, "N": n, "BLOCKS": rows, "BLOCK": block}
    return Launch.of(logsumexp_merge_kernel, rows + cols, known, {}, 4, 2)


def logsumexp_gradients(
    problem: Problem,
    upstream: tuple[dict[str, Tensor | None], dict[str, Tensor | None]],
    scales: dict[str, Any],
    guide_scale: Tensor | None,
    results: tuple[Tensor, ...],
    needs: Sequence[bool],
    pairs: OfPairs | None = None,
    both: Tensor | None = None,
) -> tuple[Steps, Tensor | None, Tensor | None]:
    """Gradients of rows, cols and scales, from those of the rows' and columns' results; and vectors whose sums are
    those of the scales, where they are single numbers: [M] of the rows, [M] or [N] of the columns. ``both``
    [2 or more, M]: where these vectors are to be. ``pairs``: gradients that come in addition."""
    m, n = problem.shape
    of_rows, of_cols = upstream
    of_items = scales["COL_SCALES"]
    row_sums, col_sums = (
        _scale_sums(problem, need, known, grad, size)
        for need, known, grad, size in (
            (needs[2], of_rows, results[2], m),
            (needs[3], of_cols, results[3], n if of_items else m),
        )
    )
    if both is not None:
        row_sums, col_sums = both[0], both[1]
    power = problem.new(2) if problem.row.embeds.dtype == torch.float16 else None
    out = Gradients(results[0] if needs[0] else None, results[1] if needs[1] else None, power, pairs)
    blocks = out.blocks(problem)
    tiles = blocks.tiles
    first = problem.of(Block(slice(0, blocks.rows), slice(0, blocks.cols)))  # the largest
    groups_m, groups_n = first.groups(tiles)
    # one run of columns after the other, which all blocks of it add to
    col_space = problem.new(groups_m, n) if col_sums is not None and of_items else None
    shared = scales | {"p_guide_scale": guide_scale, "p_power": power, "GROUPS_M": groups_m}
    products = first.products(blocks.rows, tiles)
    # a single scale of the columns is summed along rows, too
    along_rows = (row_sums, None if of_items else col_sums)
    fields = sum(x is not None for x in along_rows)
    space = problem.new(fields * groups_n, blocks.rows) if fields else None

    def sweep(part: Problem, block: Block, gradient: Tensor | None) -> Steps:
        partials = _of_fields(space, fields, part.groups(tiles)[1], block)
        of_each = [None if sums is None else partials[min(i, fields - 1)] for i, sums in enumerate(along_rows)]
        known = _of_sides(scales, (of_rows, of_cols), part, block) | _of_gradient(gradient)
        of_run = _of_run(col_space, block.cols)
        known |= {"p_row_partials": of_each[0], "p_col_partials": of_run if of_items else of_each[1]}
        steps: Steps = part.sweep(logsumexp_gradient_kernel, tiles, shared | known, products)
        rows, add = block.rows, block.cols.start > 0
        if both is not None:
            steps.append(merge_sums(partials, both[:2, rows], add))
        else:
            steps += [
                merge_sums(some[None], sums[None, rows], add)
                for some, sums in zip(of_each, along_rows)
                if some is not None and sums is not None
            ]
        if of_run is not None and col_sums is not None and rows.stop == m:
            steps.append(merge_sums(of_run[None], col_sums[None, block.cols]))
        return steps

    steps: Steps = [] if power is None else [_power(problem, scales | of_rows | of_cols, power)]
    steps += out.steps(problem, blocks, sweep)
    return steps, row_sums, col_sums


def softplus_gradients(
    problem: Problem,
    numbers: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, ...],
    needs: Sequence[bool],
    found: Tensor | None,
    pairs: OfPairs | None = None,
) -> Steps:
    """Gradients of rows, cols, scale and bias; ``numbers`` are scale, bias and what each row's sum is multiplied with.
    ``found`` []: the sum of all these, to be computed in the same sweep. ``pairs``: of cosines whose weighted
    softplus(-(scale * cosine + bias)) comes in addition, and which are all the pairs that take no part else."""
    scale, bias, upstream = numbers
    m = problem.shape[0]
    power = problem.new(2) if problem.row.embeds.dtype == torch.float16 else None
    out = Gradients(results[0] if needs[0] else None, results[1] if needs[1] else None, power, pairs)
    blocks = out.blocks(problem)
    tiles = blocks.tiles
    fields = 3 if found is not None else 2 if any(needs[2:]) else 0
    sums = problem.new(fields, m)
    first = problem.of(Block(slice(0, blocks.rows), slice(0, blocks.cols)))  # the largest
    space = problem.new(fields * first.groups(tiles)[1], blocks.rows) if fields else None
    products = first.products(blocks.rows, tiles)

    def sweep(part: Problem, block: Block, gradient: Tensor | None) -> Steps:
        partials = None if space is None else _of_fields(space, fields, part.groups(tiles)[1], block)
        own = {"p_scale": scale, "p_bias": bias, "p_grad_row_sum": upstream[block.rows], "p_power": power}
        own |= _of_gradient(gradient) | {"p_row_partials": partials, "ONE_SWEEP": found is not None}
        steps: Steps
        if problem.config.native and pairs is not None:
            steps = [_native_sweep(part, block, own)]
        else:
            steps = part.sweep(softplus_kernel, tiles, own, products)
        if partials is not None:
            steps.append(merge_sums(partials, sums[:, block.rows], block.cols.start > 0))
        return steps

    steps: Steps = []
    if power is not None:
        of_power = scales_of(scale, scale) | dict.fromkeys(GRADS) | {"p_grad_row_lse": upstream}
        steps.append(_power(problem, of_power, power))
    steps += out.steps(problem, blocks, sweep)
    if not fields:
        return steps
    of_scale, of_bias = (x if need else None for x, need in zip(results[2:], needs[2:]))
    known: dict[str, Any] = {"p_grad_scale": of_scale, "p_grad_bias": of_bias, "p_total": found}
    known |= {"p_sums": sums, "p_weights": upstream, "p_scale": scale, "p_bias": bias}
    known |= {"p_cosines": None if pairs is None else pairs.cosines, "N": m, "BLOCK": 4 * VECTOR_BLOCK}
    return [*steps, Launch.of(softplus_totals_kernel, fields, known, {}, 8, 2)]


def _scale_sums(
    problem: Problem, need: bool, of_side: dict[str, Tensor | None], grad: Tensor, size: int
) -> Tensor | None:
    """[size] where the derivatives of a side's logits by their scale are summed: the gradient itself where there is a
    scale per item. None, and a gradient of 0, where nothing flows."""
    if not need:
        return None
    if all(x is None for x in of_side.values()):
        grad.zero_()
        return None
    return grad if grad.dim() == 1 else problem.new(size)


def _of_fields(space: Tensor | None, fields: int, groups: int, block: Block) -> Any:
    """Partial results [fields, groups, rows of the block] in a workspace that all blocks use in turn; none of them
    without a workspace."""
    if space is None:
        return ()
    n = block.rows.stop - block.rows.start
    return space.flatten()[: fields * groups * n].view(fields, groups, n)


def _native_sweep(part: Problem, block: Block, known: dict[str, Any]) -> native.Sweep:
    """The sweep over a block in CUDA C++; ``known``: what Triton's kernel would take."""
    rows, cols, columns = part.row.embeds, part.col.embeds, part.config.block_n
    if (reason := native.refusal(rows, cols, columns)) is not None:
        raise NotImplementedError(reason)
    return native.Sweep.of(
        columns,
        block.rows.start - block.cols.start,
        rows=rows,
        cols=cols,
        row_inverse=part.row.stat("inverse_norm"),
        col_inverse=part.col.stat("inverse_norm"),
        scale=known["p_scale"],
        bias=known["p_bias"],
        weights=known["p_grad_row_sum"],
        power=known["p_power"],
        gradient=known["p_gradient"],
        partials=known["p_row_partials"],
    )


def _of_run(space: Tensor | None, part: slice) -> Tensor | None:
    """Partial results [groups, columns of the run] in a workspace [groups, n] in which runs follow each other."""
    if space is None:
        return None
    groups = space.shape[0]
    return space.flatten()[groups * part.start : groups * part.stop].view(groups, part.stop - part.start)


def _of_gradient(gradient: Tensor | None) -> dict[str, Any]:
    return {"p_gradient": gradient, "stride_g": 0 if gradient is None else gradient.stride(0)}


def _of_sides(
    scales: dict[str, Any],
    upstream: tuple[dict[str, Tensor | None], dict[str, Tensor | None]],
    part: Problem,
    block: Block,
) -> dict[str, Any]:
    """Kernel arguments that have a number per row or per column, of a block."""
    known: dict[str, Any] = {"LATER": int(block.rows.start > 0)}
    for name, side, grads, of_side in zip(("row", "col"), (part.row, part.col), upstream, block):
        known |= {each: None if grad is None else grad[of_side] for each, grad in grads.items()}
        known |= {f"p_{name}_lse": side.stat("lse"), f"p_guide_{name}_lse": side.stat("guide_lse")}
        if scales[f"{name.upper()}_SCALES"]:
            known[f"p_{name}_scale"] = scales[f"p_{name}_scale"][of_side]
    return known


def _top_scale(problem: Problem, scales: dict[str, Any], wanted: tuple[bool, bool]) -> tuple[Tensor, list[Launch]]:
    """The largest of all scales, and what finds it: nothing where there is but one."""
    if scales["SAME_SCALE"]:
        return scales["p_row_scale"], []
    top = problem.new()
    row, col = (scales[name] if want else None for name, want in zip(("p_row_scale", "p_col_scale"), wanted))
    known = {"p_row_scale": row, "p_col_scale": col, "p_top": top, "BLOCK": VECTOR_BLOCK}
    known |= {name: 0 if x is None else x.numel() for name, x in (("M", row), ("N", col))}
    return top, [Launch.of(top_scale_kernel, 1, known, {}, 4, 2)]


def _power(problem: Problem, known: dict[str, Any], power: Tensor) -> Launch:
    every = problem.arguments() | known | {"p_power": power, "BLOCK": VECTOR_BLOCK}
    return Launch.of(power_kernel, 1, every, {}, 4, 2)

"""Launchers of the Triton kernels of ``contrastive``, behind ``sparc_kernels::similarity_*_triton`` and, from
``triton_paired``, ``sparc_kernels::paired_cosines_*_triton``.

They take the arguments of ``schema.py`` in its order and, for tests and tuning, a ``config``. Their plans build outputs
and launches and run nothing: compile-time tests use them on meta tensors. Nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Launch, Step, cdiv
from sparc_kernels.ops._triton.replay import Plan, run_plan
from sparc_kernels.ops.contrastive.config import TileConfig
from sparc_kernels.ops.contrastive.schema import (
    fake_logsumexp_backward,
    fake_logsumexp_forward,
    fake_softplus_backward,
    fake_softplus_forward,
    fake_softplus_total_backward,
    fake_softplus_total_forward,
)
from sparc_kernels.ops.contrastive.triton_logsumexp import FIELDS, logsumexp_kernel, logsumexp_merge_kernel
from sparc_kernels.ops.contrastive.triton_logsumexp_grad import logsumexp_gradient_kernel
from sparc_kernels.ops.contrastive.triton_paired import (
    paired_backward,
    paired_backward_plan,
    paired_forward,
    paired_forward_plan,
    softplus_totals_kernel,
)
from sparc_kernels.ops.contrastive.triton_plans import (
    VECTOR_BLOCK,
    Block,
    Gradients,
    OfPairs,
    Problem,
    merge_sums,
    row_blocks,
    total,
)
from sparc_kernels.ops.contrastive.triton_rows import power_kernel, scaled_kernel, top_scale_kernel
from sparc_kernels.ops.contrastive.triton_softplus import softplus_kernel

__all__ = [
    "logsumexp_backward",
    "logsumexp_backward_plan",
    "logsumexp_forward",
    "logsumexp_forward_plan",
    "paired_backward",
    "paired_backward_plan",
    "paired_forward",
    "paired_forward_plan",
    "softplus_backward",
    "softplus_backward_plan",
    "softplus_forward",
    "softplus_forward_plan",
    "softplus_total_backward",
    "softplus_total_backward_plan",
    "softplus_total_forward",
    "softplus_total_forward_plan",
]

Steps = list[Step]


def logsumexp_forward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``logsumexp_forward``, not yet computed, and the steps that compute them."""
    rows, cols, row_scale, col_scale, *scope, guide_scale, threshold = args[:12]
    by_rows, by_cols, ids_exclude, keep, precision = args[12:]
    results = fake_logsumexp_forward(*args)
    row_lse, stats, col_lse, row_target, col_target, row_soft, col_soft = results
    problem = Problem.of_arguments(
        (rows, cols, *scope, threshold), stats, (ids_exclude, keep), precision, False, config
    )
    labelled = scope[0] is not None and not ids_exclude
    known, sweep = logsumexp_sweep(problem, scales_of(row_scale, col_scale), guide_scale, (by_rows, by_cols))
    merged = known | {"p_row_lse": row_lse, "p_col_lse": col_lse}
    if labelled:
        merged |= {"p_row_target": row_target, "p_col_target": col_target}
    if guide_scale is not None:
        merged |= {"p_row_soft": row_soft, "p_col_soft": col_soft}
    return results, [*problem.norms(), *sweep, logsumexp_merge(problem, merged, (by_rows, by_cols))]


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


def logsumexp_backward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``logsumexp_backward``, not yet computed, and the steps that compute them."""
    grads, (rows, cols, row_scale, col_scale, *scope, guide_scale, threshold) = args[:6], args[6:18]
    stats, ids_exclude, keep, need_rows, need_cols, need_row_scale, need_col_scale, precision = args[18:]
    results = fake_logsumexp_backward(*args)
    problem = Problem.of_arguments((rows, cols, *scope, threshold), stats, (ids_exclude, keep), precision, True, config)
    if 0 in problem.shape or all(grad is None for grad in grads):
        return _zeros(results), []
    of_rows = dict(zip(GRADS[:3], grads[::2]))
    of_cols = dict(zip(GRADS[3:], grads[1::2]))
    scales = scales_of(row_scale, col_scale)
    needs = (need_rows, need_cols, need_row_scale, need_col_scale)
    steps, row_sums, col_sums = logsumexp_gradients(problem, (of_rows, of_cols), scales, guide_scale, results, needs)
    for sums, grad in ((row_sums, results[2]), (col_sums, results[3])):
        if sums is not None and sums is not grad:
            steps.append(total(sums, grad))
    return results, steps


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


def softplus_forward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``softplus_forward``, not yet computed, and the steps that compute them."""
    rows, cols, scale, bias, *scope = args[:11]
    ids_exclude, keep, precision = args[11:]
    row_sum, stats = fake_softplus_forward(*args)
    problem = Problem.of_arguments((rows, cols, *scope), stats, (ids_exclude, keep), precision, False, config)
    m, n = problem.shape
    tiles = problem.config.supertile(m, n, 1)
    partials = problem.new(problem.groups(tiles)[1], m)
    known = {"p_scale": scale, "p_bias": bias, "p_row_partials": partials, "stride_g": 0, "ONE_SWEEP": False}
    known |= dict.fromkeys(("p_grad_row_sum", "p_power", "p_gradient"))
    sweep = problem.sweep(softplus_kernel, tiles, known, problem.products(m, tiles))
    steps: Steps = [*problem.norms(), *sweep, merge_sums(partials[None], row_sum[None])]
    return (row_sum, stats), steps


def softplus_backward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``softplus_backward``, not yet computed, and the steps that compute them."""
    grad_row_sum, rows, cols, scale, bias, *scope = args[:12]
    stats, ids_exclude, keep, *needs, precision = args[12:]
    results = fake_softplus_backward(*args)
    problem = Problem.of_arguments((rows, cols, *scope), stats, (ids_exclude, keep), precision, True, config)
    if 0 in problem.shape:
        return _zeros(results), []
    return results, softplus_gradients(problem, (scale, bias, grad_row_sum), results, needs, None)


def softplus_total_forward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``softplus_total_forward``, not yet computed, and the steps that compute them."""
    rows, cols, scale, bias, row_weights, *scope = args[:12]
    ids_exclude, *keeps, precision = args[12:]
    results = fake_softplus_total_forward(*args)
    found, stats, *kept = results
    row_weights = row_weights.contiguous()
    if not any(keeps):
        arguments = (rows, cols, scale, bias, *scope, ids_exclude, False, precision)
        (row_sum, stats), forward = softplus_forward_plan(*arguments, config=config)
        return (found, stats, *kept), [*forward, total(row_sum, found, row_weights)]
    problem = Problem.of_arguments((rows, cols, *scope), stats, (ids_exclude, False), precision, True, config)
    if 0 in problem.shape:
        stats.zero_()
        _zeros((found, *kept))
        return results, []
    steps: Steps = [*problem.norms()]
    return results, steps + softplus_gradients(problem, (scale, bias, row_weights), tuple(kept), keeps, found)


def softplus_total_backward_plan(*args: Any) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``softplus_total_backward``, not yet computed, and the steps that compute them."""
    grad_total, kept = args[0], args[2:6]
    results = fake_softplus_total_backward(*args)
    rows, cols = (x if x.numel() else None for x in kept[:2])
    m, n = (0 if x is None else x.shape[0] for x in (rows, cols))
    names = ("rows", "cols", "first", "second")
    known: dict[str, Any] = {"p_factor": grad_total, "M": m, "N": n}
    for name, values, scaled in zip(names, kept, results, strict=True):
        there = values.numel() > 0
        known |= {f"p_{name}": values if there else None, f"p_scaled_{name}": scaled if there else None}
    every = row_blocks(args[1]) | known
    programs = max(1, cdiv(m, every["BLOCK"]) + cdiv(n, every["BLOCK"]))
    return results, [Launch.of(scaled_kernel, programs, every, {}, 4, 2)]


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
    softplus(-(scale * cosine + bias)) comes in addition."""
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
        steps: Steps = part.sweep(softplus_kernel, tiles, own, products)
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


def _zeros(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    for x in results:
        x.zero_()
    return results


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


def _run(plan: Plan, args: tuple[Any, ...], rows: Tensor, config: TileConfig | None) -> tuple[Tensor, ...]:
    with without_autocast(rows.device.type):  # products of float32 stay such
        return run_plan(plan, args, rows, config)


def logsumexp_forward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """row_lse [M], stats, col_lse [N], row_target, col_target, row_soft, col_soft; [0] for what is not asked for."""
    return _run(logsumexp_forward_plan, args, args[0], config)


def logsumexp_backward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """Gradients of rows, cols and both scales; [0] for one that is not needed."""
    return _run(logsumexp_backward_plan, args, args[6], config)


def softplus_forward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """row_sum [M] and stats."""
    return _run(softplus_forward_plan, args, args[0], config)


def softplus_backward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """Gradients of rows, cols, scale and bias; [0] for one that is not needed."""
    return _run(softplus_backward_plan, args, args[1], config)


def softplus_total_forward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """total [], stats, and the gradients that are to be kept; [0] for one that is not."""
    return _run(softplus_total_forward_plan, args, args[0], config)


def softplus_total_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of rows, cols, scale and bias; [0] for one that was not kept."""
    return _run(softplus_total_backward_plan, args, args[1], None)

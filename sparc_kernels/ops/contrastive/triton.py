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
from sparc_kernels.ops._triton.launch import Launch, Step, cdiv, strides
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
)
from sparc_kernels.ops.contrastive.triton_plans import (
    VECTOR_BLOCK,
    Gradients,
    Problem,
    along_rows,
    merge_sums,
    total,
)
from sparc_kernels.ops.contrastive.triton_rows import power_kernel, scaled_rows_kernel, top_scale_kernel
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
    (m, n), soft = problem.shape, guide_scale is not None
    labelled = scope[0] is not None and not ids_exclude
    numbers = len(FIELDS) if soft else 3 if labelled else 2
    tiles = problem.config.supertile(m, n, numbers)
    groups_m, groups_n = problem.groups(tiles)
    row_partials = problem.new(numbers, groups_n, m) if by_rows else None
    col_partials = problem.new(numbers, groups_m, n) if by_cols else None
    scales = _scales(row_scale, col_scale)
    top, find_top = _top_scale(problem, scales, (by_rows, by_cols))
    known = {"p_row_partials": row_partials, "p_col_partials": col_partials, "p_guide_scale": guide_scale}
    steps: Steps = [
        *problem.norms(),
        *find_top,
        *problem.sweep(logsumexp_kernel, tiles, known | scales | {"p_top_scale": top}, problem.products(m, tiles)),
    ]
    merged = {name: x for name, x in known.items() if name.endswith("partials")} | {
        "p_row_lse": row_lse,
        "p_col_lse": col_lse,
        "p_row_target": row_target if labelled else None,
        "p_col_target": col_target if labelled else None,
        "p_row_soft": row_soft if soft else None,
        "p_col_soft": col_soft if soft else None,
        "GROUPS_M": groups_m,
        "GROUPS_N": groups_n,
    }
    return results, [*steps, _merge(problem, merged, (by_rows, by_cols))]


def logsumexp_backward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``logsumexp_backward``, not yet computed, and the steps that compute them."""
    grads, (rows, cols, row_scale, col_scale, *scope, guide_scale, threshold) = args[:6], args[6:18]
    stats, ids_exclude, keep, need_rows, need_cols, need_row_scale, need_col_scale, precision = args[18:]
    results = fake_logsumexp_backward(*args)
    problem = Problem.of_arguments((rows, cols, *scope, threshold), stats, (ids_exclude, keep), precision, True, config)
    m, n = problem.shape
    of_rows = dict(zip(("p_grad_row_lse", "p_grad_row_target", "p_grad_row_soft"), grads[::2]))
    of_cols = dict(zip(("p_grad_col_lse", "p_grad_col_target", "p_grad_col_soft"), grads[1::2]))
    scales = _scales(row_scale, col_scale)
    row_sums, col_sums = (
        _scale_sums(problem, need, known, grad, size)
        for need, known, grad, size in (
            (need_row_scale, of_rows, results[2], m),
            (need_col_scale, of_cols, results[3], n if col_scale.dim() else m),
        )
    )
    if 0 in (m, n) or all(grad is None for grad in grads):
        return _zeros(results), []
    power = problem.new(2) if rows.dtype == torch.float16 else None
    out = Gradients(results[0] if need_rows else None, results[1] if need_cols else None, power)
    length = problem.chunk(out.wanted)
    tiles = problem.config.supertile(length, n, 1)
    block_m, block_n = problem.config.block_m, problem.config.block_n
    groups_m = cdiv(length, tiles[0] * block_m)
    of_items = scales["COL_SCALES"]
    col_partials = problem.new(groups_m, n) if col_sums is not None and of_items else None
    shared = scales | of_cols | {
        "p_col_lse": problem.col.stat("lse"),
        "p_guide_col_lse": problem.col.stat("guide_lse"),
        "p_guide_scale": guide_scale,
        "p_col_partials": col_partials,
        "p_power": power,
        "GROUPS_M": groups_m,
    }  # fmt: skip

    products = problem.products(length, tiles)
    # a single scale of the columns is summed along rows, too
    along_rows = (row_sums, None if of_items else col_sums)
    spaces = [None if sums is None else problem.new(cdiv(n, tiles[1] * block_n), length) for sums in along_rows]

    def sweep(chunk: Problem, part: slice, gradient: Tensor | None) -> Steps:
        partials = [None if space is None else _of_chunk(space, part) for space in spaces]
        known = _of_rows(scales, of_rows, chunk, part) | _of_gradient(gradient) | {"p_row_partials": partials[0]}
        if not of_items:
            known["p_col_partials"] = partials[1]
        steps: Steps = chunk.sweep(logsumexp_gradient_kernel, tiles, shared | known, products)
        for of_chunk, sums in zip(partials, along_rows):
            if of_chunk is not None and sums is not None:
                steps.append(merge_sums(of_chunk, sums[part]))
        return steps

    steps: Steps = [] if power is None else [_power(problem, scales | of_rows | of_cols, power)]
    steps += out.steps(problem, sweep)
    if col_partials is not None and col_sums is not None:
        steps.append(merge_sums(col_partials, col_sums))
    for sums, grad in ((row_sums, results[2]), (col_sums, results[3])):
        if sums is not None and sums is not grad:
            steps.append(total(sums, grad))
    return results, steps


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
    steps: Steps = [*problem.norms(), *sweep, merge_sums(partials, row_sum)]
    return (row_sum, stats), steps


def softplus_backward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``softplus_backward``, not yet computed, and the steps that compute them."""
    grad_row_sum, rows, cols, scale, bias, *scope = args[:12]
    stats, ids_exclude, keep, *needs, precision = args[12:]
    results = fake_softplus_backward(*args)
    problem = Problem.of_arguments((rows, cols, *scope), stats, (ids_exclude, keep), precision, True, config)
    if 0 in problem.shape:
        return _zeros(results), []
    return results, _softplus_gradients(problem, (scale, bias, grad_row_sum), results, needs, None)


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
    stats.zero_()  # vectors that no kernel writes
    steps: Steps = [*problem.norms()]
    if 0 in problem.shape:
        _zeros((found, *kept))
        return results, steps
    row_sum = problem.new(rows.shape[0])
    steps += _softplus_gradients(problem, (scale, bias, row_weights), tuple(kept), keeps, row_sum)
    return results, [*steps, total(row_sum, found, row_weights)]


def softplus_total_backward_plan(*args: Any) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``softplus_total_backward``, not yet computed, and the steps that compute them."""
    grad_total, kept = args[0], args[2:6]
    results = fake_softplus_total_backward(*args)
    steps: Steps = []
    for values, scaled in zip(kept, results, strict=True):
        if values.numel():
            values = values if values.dim() == 2 else values.view(1, 1)
            known = {"p_rows": values, "p_factor": grad_total, "p_scaled": scaled}
            steps.append(along_rows(scaled_rows_kernel, values, known | strides(values, "stride_n", "stride_d")))
    return results, steps


def _softplus_gradients(
    problem: Problem,
    numbers: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, ...],
    needs: Sequence[bool],
    row_sum: Tensor | None,
) -> Steps:
    """Gradients of rows, cols, scale and bias; ``numbers`` are scale, bias and what each row's sum is multiplied with.
    ``row_sum`` [M]: to be computed in the same sweep."""
    scale, bias, upstream = numbers
    m, n = problem.shape
    power = problem.new(2) if problem.row.embeds.dtype == torch.float16 else None
    out = Gradients(results[0] if needs[0] else None, results[1] if needs[1] else None, power)
    tiles = problem.config.supertile(problem.chunk(out.wanted), n, 1)
    fields = 3 if row_sum is not None else 2 if any(needs[2:]) else 0
    sums: list[Tensor] = [problem.new(m) for _ in range(min(fields, 2))]
    sums += [] if row_sum is None else [row_sum]
    groups_n = problem.groups(tiles)[1]
    space = problem.new(fields * groups_n, problem.chunk(out.wanted)) if sums else None
    products = problem.products(problem.chunk(out.wanted), tiles)

    def sweep(chunk: Problem, part: slice, gradient: Tensor | None) -> Steps:
        partials = None if space is None else _of_chunk(space, part).view(fields, groups_n, part.stop - part.start)
        known = {"p_scale": scale, "p_bias": bias, "p_grad_row_sum": upstream[part], "p_power": power}
        known |= _of_gradient(gradient) | {"p_row_partials": partials, "ONE_SWEEP": row_sum is not None}
        steps: Steps = chunk.sweep(softplus_kernel, tiles, known, products)
        if partials is not None:
            steps += [merge_sums(some, whole[part]) for some, whole in zip(partials, sums, strict=True)]
        return steps

    steps: Steps = []
    if power is not None:
        known = _scales(scale, scale) | dict.fromkeys(_GRADS) | {"p_grad_row_lse": upstream}
        steps.append(_power(problem, known, power))
    steps += out.steps(problem, sweep)
    return steps + [total(sums[i], results[2 + i]) for i, need in enumerate(needs[2:]) if need]


_GRADS = tuple(f"p_grad_{side}_{name}" for side in ("row", "col") for name in ("lse", "target", "soft"))


def _scales(row: Tensor, col: Tensor) -> dict[str, Any]:
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


def _of_chunk(space: Tensor, part: slice) -> Tensor:
    """Partial results [groups, rows of the chunk] in a workspace [groups, most rows] that all chunks use in turn."""
    groups, n = space.shape[0], part.stop - part.start
    return space.flatten()[: groups * n].view(groups, n)


def _of_gradient(gradient: Tensor | None) -> dict[str, Any]:
    return {"p_gradient": gradient, "stride_g": 0 if gradient is None else gradient.stride(0)}


def _of_rows(scales: dict[str, Any], of_rows: dict[str, Tensor | None], chunk: Problem, part: slice) -> dict[str, Any]:
    """Kernel arguments that have a number per row, of a chunk."""
    known: dict[str, Any] = {name: None if grad is None else grad[part] for name, grad in of_rows.items()}
    known |= {"p_row_lse": chunk.row.stat("lse"), "p_guide_row_lse": chunk.row.stat("guide_lse")}
    if scales["ROW_SCALES"]:
        known["p_row_scale"] = scales["p_row_scale"][part]
    return known | {"LATER": int(part.start > 0)}


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


def _merge(problem: Problem, known: dict[str, Any], wanted: tuple[bool, bool]) -> Launch:
    (m, n), block = problem.shape, 256
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

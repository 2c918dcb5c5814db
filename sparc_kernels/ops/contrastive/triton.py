"""Launchers of the Triton kernels of ``contrastive``, behind ``sparc_kernels::similarity_*_triton`` and, from
``triton_paired``, ``sparc_kernels::paired_cosines_*_triton``.

They take the arguments of ``schema.py`` in its order and, for tests and tuning, a ``config``. Their plans build outputs
and launches and run nothing: compile-time tests use them on meta tensors. Nothing is read back from the device.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Launch, cdiv
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
from sparc_kernels.ops.contrastive.triton_paired import (
    paired_backward,
    paired_backward_plan,
    paired_forward,
    paired_forward_plan,
)
from sparc_kernels.ops.contrastive.triton_plans import (
    Problem,
    merge_sums,
    row_blocks,
    total,
)
from sparc_kernels.ops.contrastive.triton_rows import scaled_kernel
from sparc_kernels.ops.contrastive.triton_softplus import softplus_kernel
from sparc_kernels.ops.contrastive.triton_sweeps import (
    GRADS,
    Steps,
    logsumexp_gradients,
    logsumexp_merge,
    logsumexp_sweep,
    scales_of,
    softplus_gradients,
)

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


def _zeros(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    for x in results:
        x.zero_()
    return results


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

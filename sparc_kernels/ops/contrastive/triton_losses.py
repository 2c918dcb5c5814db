"""Losses of pairs (i, i) on the Triton kernels: value and gradients of a whole loss in a plan each way.

What the registered ops give are vectors, and the losses are made of them by a few dozen operators of [M] numbers. At
everyday batches the host takes longer to queue these than the device to run them. Here the positives' cosines come with
the norms, their gradients with the end of the embeddings', and sums in a launch: nothing is left for PyTorch to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Launch, cdiv
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.contrastive import native
from sparc_kernels.ops.contrastive.config import TileConfig, choose_native
from sparc_kernels.ops.contrastive.schema import STATS, fake_logsumexp_forward, kept_dtype
from sparc_kernels.ops.contrastive.triton import softplus_total_backward
from sparc_kernels.ops.contrastive.triton_paired import (
    mean_softmax_gradient_kernel,
    mean_softmax_kernel,
    paired_kernel,
    paired_launch,
)
from sparc_kernels.ops.contrastive.triton_plans import VECTOR_BLOCK, OfPairs, Problem, total
from sparc_kernels.ops.contrastive.triton_sweeps import (
    GRADS,
    Steps,
    logsumexp_gradients,
    logsumexp_merge,
    logsumexp_sweep,
    scales_of,
    softplus_gradients,
)

_NOTHING = (None,) * 5  # excluded pairs, a guide, its threshold


def _problem(
    embeds: tuple[Tensor, Tensor], ids: Tensor, stats: Tensor, keep: bool, precision: str, backward: bool, config: Any
) -> Problem:
    """Pairs of equal id take no part; ids are 0 to M - 1, which a kernel writes."""
    return Problem.of_arguments((*embeds, ids, ids, *_NOTHING), stats, (True, keep), precision, backward, config)


def _pairs(problem: Problem, cosines: Tensor, own: dict[str, Any]) -> Launch:
    """Cosines, norms and ids, and what else is asked for."""
    known: dict[str, Any] = {
        "p_cosines": cosines,
        "p_row_inverse": problem.row.stat("inverse_norm"),
        "p_col_inverse": problem.col.stat("inverse_norm"),
        "p_kept_cosines": None,
        "p_ids": problem.row.ids,
        **dict.fromkeys(("p_weights", "p_of_cosines", "p_scale", "p_bias")),
        "MEAN": False,
    }
    return paired_launch(paired_kernel, problem.row.embeds, problem.col.embeds, known | own)


def softmax_forward_plan(
    rows: Tensor, cols: Tensor, scale: Tensor, keep: bool, precision: str, config: TileConfig | None = None
) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``softmax_forward``, not yet computed, and the steps that compute them."""
    ids = rows.new_empty(rows.shape[0], dtype=torch.int64)
    arguments = (rows, cols, scale, scale, *(None,) * 8, True, True, True, keep, precision)
    stats = fake_logsumexp_forward(*arguments)[1]
    problem = _problem((rows, cols), ids, stats, keep, precision, False, config)
    cosines, loss = problem.new(rows.shape[0]), problem.new()
    row_lse, col_lse = (side.stat("lse") for side in (problem.row, problem.col))
    known, sweep = logsumexp_sweep(problem, scales_of(scale, scale), None, (True, True))
    merged = known | {"p_row_lse": row_lse, "p_col_lse": col_lse}
    of_loss: dict[str, Any] = {
        "p_row_lse": row_lse,
        "p_col_lse": col_lse,
        "p_cosines": cosines,
        "p_scale": scale,
        "p_loss": loss,
    }
    of_loss |= {"N": rows.shape[0], "BLOCK": 4 * VECTOR_BLOCK}
    steps: Steps = [
        _pairs(problem, cosines, {}),
        *sweep,
        logsumexp_merge(problem, merged, (True, True)),
        Launch.of(mean_softmax_kernel, 1, of_loss, {}, 8, 2),
    ]
    return (loss, cosines, stats), steps


def softmax_backward_plan(
    grad_loss: Tensor,
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    cosines: Tensor,
    stats: Tensor,
    keep: bool,
    need_rows: bool,
    need_cols: bool,
    need_scale: bool,
    precision: str,
    config: TileConfig | None = None,
) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``softmax_backward``, not yet computed, and the steps that compute them."""
    m = rows.shape[0]
    needs = (need_rows, need_cols, need_scale, need_scale)
    grads = tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip((rows, cols, scale), needs))
    ids = rows.new_empty(m, dtype=torch.int64)
    problem = _problem((rows, cols), ids, stats, keep, precision, True, config)
    of_rows, of_cols, of_cosines = (problem.new(m) for _ in range(3))
    sums = problem.new(3, m)
    known: dict[str, Any] = {
        "p_grad_loss": grad_loss,
        "p_row_lse": problem.row.stat("lse"),
        "p_col_lse": problem.col.stat("lse"),
        "p_cosines": cosines,
        "p_scale": scale,
        "p_grad_row_lse": of_rows,
        "p_grad_col_lse": of_cols,
        "p_of_cosines": of_cosines,
        "p_of_scale": sums[2],
        "p_ids": ids,
        "N": m,
        "BLOCK": 256,
    }
    by_rows: dict[str, Tensor | None] = dict.fromkeys(GRADS[:3])
    by_cols: dict[str, Tensor | None] = dict.fromkeys(GRADS[3:])
    upstream = (by_rows | {"p_grad_row_lse": of_rows}, by_cols | {"p_grad_col_lse": of_cols})
    pairs, both = OfPairs(cosines, of_cosines), sums if need_scale else None
    results = (*grads, grads[2])
    steps: Steps = [Launch.of(mean_softmax_gradient_kernel, cdiv(m, 256), known, {}, 4, 2)]
    steps += logsumexp_gradients(problem, upstream, scales_of(scale, scale), None, results, needs, pairs, both)[0]
    return grads, [*steps, total(sums.view(-1), grads[2])] if need_scale else steps


def sigmoid_forward_plan(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: bool,
    keep_rows: bool,
    keep_cols: bool,
    keep_scale: bool,
    keep_bias: bool,
    precision: str,
    config: TileConfig | None = None,
) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``sigmoid_forward``, not yet computed, and the steps that compute them."""
    m = rows.shape[0]
    keeps = (keep_rows, keep_cols, keep_scale, keep_bias)
    kept = tuple(
        x.new_empty(x.shape if keep else (0,), dtype=kept_dtype(x.dtype))
        for x, keep in zip((rows, cols, scale, bias), keeps)
    )
    stats, ids = rows.new_empty(2 * m * len(STATS), dtype=torch.float32), rows.new_empty(m, dtype=torch.int64)
    problem = _problem((rows, cols), ids, stats, False, precision, True, config)
    cosines, weights, of_cosines, loss = problem.new(m), problem.new(m), problem.new(m), problem.new()
    known = {"p_weights": weights, "p_of_cosines": of_cosines, "p_scale": scale, "p_bias": bias, "MEAN": mean}
    pairs = OfPairs(cosines, of_cosines)
    steps = softplus_gradients(problem, (scale, bias, weights), kept, keeps, loss, pairs)
    return (loss, *kept), [_pairs(problem, cosines, known), *steps]


def native_sigmoid_forward_plan(*arguments: Any) -> tuple[tuple[Tensor, ...], Steps]:
    """As ``sigmoid_forward_plan``, with the sweep in CUDA C++."""
    tiles: dict[str, Any] = {"config": choose_native(arguments[0].shape[1])}
    return sigmoid_forward_plan(*arguments, **tiles)


def _run(plan: Any, args: tuple[Any, ...], rows: Tensor) -> tuple[Tensor, ...]:
    with without_autocast(rows.device.type):  # products of float32 stay such
        return run_plan(plan, args, rows)


def softmax_forward(*args: Any) -> tuple[Tensor, ...]:
    """The mean over rows and columns of the cross-entropy of pair (i, i); cosines and statistics for the gradients."""
    return _run(softmax_forward_plan, args, args[0])


def softmax_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of rows, cols and scale; [0] for one that is not needed."""
    return _run(softmax_backward_plan, args, args[1])


def sigmoid_forward(*args: Any) -> tuple[Tensor, ...]:
    """The sigmoid loss of pairs (i, i), and its gradients by rows, cols, scale and bias; [0] for one not to be kept."""
    plan = native_sigmoid_forward_plan if native.wanted(*args[:2]) else sigmoid_forward_plan
    return _run(plan, args, args[0])


def sigmoid_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of rows, cols, scale and bias: what ``sigmoid_forward`` has kept, times an upstream gradient."""
    return softplus_total_backward(*args)

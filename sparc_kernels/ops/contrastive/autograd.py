"""Statistics of a similarity matrix as ``torch.autograd.Function``s over the registered kernels."""

from __future__ import annotations

import importlib
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from sparc_kernels.ops._registration import (
    apply,
    asked_for,
    call_forward,
    differentiated_once,
    float32_precision,
    function_context,
    keep_tensors,
    kept_tensors,
    kernel,
    launch_backward,
    run_op,
)
from sparc_kernels.ops.contrastive.schema import SOFTPLUS_TOTAL_KEPT


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


def logsumexp_derivative(
    ctx: Any, grad_row_lse: Tensor | None, grad_stats: None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    grads = (grad_row_lse, *others)
    if all(grad is None for grad in grads):
        return (None,) * len(ctx.needs_input_grad)
    *_, ids_exclude, keep_similarities = ctx.flags
    found = run_op(
        kernel("similarity_logsumexp_backward", ctx.backend),
        *map(_contiguous, grads),
        *kept_tensors(ctx),
        ids_exclude,
        keep_similarities,
        *ctx.needs_input_grad[:4],
        ctx.float32_precision,
    )
    return asked_for(ctx, found)


def softplus_derivative(ctx: Any, grad_row_sum: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
    """As :func:`logsumexp_derivative`."""
    if grad_row_sum is None:
        return (None,) * len(ctx.needs_input_grad)
    found = run_op(
        kernel("similarity_softplus_backward", ctx.backend),
        grad_row_sum.contiguous(),
        *kept_tensors(ctx),
        *ctx.flags,
        *ctx.needs_input_grad[:4],
        ctx.float32_precision,
    )
    return asked_for(ctx, found)


def softplus_total_derivative(ctx: Any, grad_total: Tensor | None, *of_kept: None) -> tuple[Tensor | None, ...]:
    """As :func:`logsumexp_derivative`: what the forward pass kept, times a number; computed now where it kept less."""
    needed = ctx.needs_input_grad
    if grad_total is None:
        return (None,) * len(needed)
    tensors = kept_tensors(ctx)
    rows, cols, scale, bias, row_weights, *scope = tensors[:-SOFTPLUS_TOTAL_KEPT]
    stats, *kept = tensors[-SOFTPLUS_TOTAL_KEPT:]
    inputs = (rows, cols, scale, bias, *scope)
    ids_exclude, *was_kept = ctx.flags
    if all(there or not need for there, need in zip(was_kept, needed)):
        upstream = differentiated_once("similarity_softplus_total_backward", grad_total, *inputs, row_weights)
        backward = kernel("similarity_softplus_total_backward", ctx.backend)
        found = run_op(backward, upstream, rows, *kept, ctx.float32_precision)
    else:
        found = run_op(
            kernel("similarity_softplus_backward", ctx.backend),
            grad_total * row_weights,
            *inputs,
            stats,
            ids_exclude,
            False,
            *needed[:4],
            ctx.float32_precision,
        )
    if not needed[4]:
        return asked_for(ctx, found)
    forward = "similarity_softplus_forward"
    row_sum, _ = apply(SimilaritySoftplusFunction, forward, *inputs, ids_exclude, False, ctx.backend)
    return asked_for(ctx, (*found, grad_total * row_sum))


def paired_cosines_derivative(ctx: Any, grad_cosines: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
    """As :func:`logsumexp_derivative`."""
    if grad_cosines is None:
        return (None,) * len(ctx.needs_input_grad)
    found = run_op(
        kernel("paired_cosines_backward", ctx.backend),
        grad_cosines.contiguous(),
        *kept_tensors(ctx),
        *ctx.needs_input_grad[:2],
        ctx.float32_precision,
    )
    return asked_for(ctx, found)


class SimilarityLogsumexpFunction(Function):
    """Log-sum-exp over rows and columns of a matrix of scaled cosines that is never stored.

    ``apply(rows, cols, row_scale, col_scale, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows,
    guide_cols, guide_scale, guide_threshold, by_rows, by_cols, ids_exclude, keep_similarities, backend)``; shapes and
    meanings are in ``MATH.md``, backend is ``"triton"`` or ``"cpu"``. Arguments are not validated here:
    ``similarity_logsumexp`` does that.

    Returns ``(row_lse, stats, col_lse, row_target, col_target, row_soft, col_soft)``, [0] where not asked for.
    Gradients flow to rows, cols and both scales, and cost nothing for those that need none. ``torch.func`` can
    transform it. Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return call_forward("similarity_logsumexp_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(logsumexp_derivative)


class SimilaritySoftplusFunction(Function):
    """Row sums of softplus over a matrix of scaled and shifted cosines that is never stored.

    ``apply(rows, cols, scale, bias, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows, guide_cols,
    guide_threshold, ids_exclude, keep_similarities, backend)``; otherwise as :class:`SimilarityLogsumexpFunction`.

    Returns ``(row_sum, stats)``. Gradients flow to rows, cols, scale and bias.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return call_forward("similarity_softplus_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(softplus_derivative)


class SimilaritySoftplusTotalFunction(Function):
    """The weighted sum of the row sums of :class:`SimilaritySoftplusFunction`, with its gradients from the same sweep.

    ``apply(rows, cols, scale, bias, row_weights, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows,
    guide_cols, guide_threshold, ids_exclude, keep_rows, keep_cols, keep_scale, keep_bias, backend)``; otherwise as
    :class:`SimilarityLogsumexpFunction`. What is to be kept is a hint: the gradient of an input that was left out is
    computed in the backward pass, which then takes the similarities once more, and so is that of ``row_weights``.

    Returns ``(total, stats, kept_rows, kept_cols, kept_scale, kept_bias)``. Gradients flow to rows, cols, scale, bias
    and row_weights.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return call_forward("similarity_softplus_total_forward", *inputs)

    setup_context = staticmethod(partial(function_context, kept=SOFTPLUS_TOTAL_KEPT))
    backward = staticmethod(softplus_total_derivative)


class PairedCosinesFunction(Function):
    """Cosines of row i and column i.

    ``apply(rows, cols, backend)``; otherwise as :class:`SimilarityLogsumexpFunction`. Returns ``(cosines, stats)``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return call_forward("paired_cosines_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(paired_cosines_derivative)


class MeanSoftmaxLossFunction(Function):
    """The mean over rows and columns of the cross-entropy of pair (i, i): equation 1 of Bica et al. (2024).

    ``apply(rows [M, D], cols [M, D], scale, keep_similarities, backend)``. Returns [], 0 for M = 0. Two ops and
    softplus(lse - scale * cosine) in one node. ``torch.func`` cannot transform it. Gradients flow to rows, cols and
    scale; differentiating twice raises RuntimeError, since the ops do.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cols: Tensor, scale: Tensor, keep_similarities: bool, backend: str) -> Tensor:
        precision = float32_precision()
        ids = torch.arange(rows.shape[0], device=rows.device)
        cosines, paired_stats = run_op(kernel("paired_cosines_forward", backend), rows, cols, precision)
        left_out = _left_out(ids)
        row_lse, stats, col_lse, *_ = run_op(
            kernel("similarity_logsumexp_forward", backend), rows, cols, scale, scale, *left_out, True, True, True,
            keep_similarities, precision,
        )  # fmt: skip
        margins = torch.stack((row_lse, col_lse)) - scale * cosines  # [2, M]
        keep_tensors(ctx, [rows, cols, ids, scale, cosines, paired_stats, stats, margins])
        ctx.flags = (backend, keep_similarities, precision)
        # PyTorch's own threshold of 20 would cut 2e-9 off
        return F.softplus(margins, threshold=40.0).mean() if margins.numel() else margins.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, ids, scale, cosines, paired_stats, stats, margins = kept_tensors(ctx)
        backend, keep_similarities, precision = ctx.flags
        need_rows, need_cols, need_scale = ctx.needs_input_grad[:3]
        shares = margins.sigmoid() * (grad / max(margins.numel(), 1))
        of_rows, of_cols = shares
        of_logits = shares.sum(0).neg()
        found = run_op(
            kernel("similarity_logsumexp_backward", backend), of_rows, of_cols, *(None,) * 4, rows, cols, scale, scale,
            *_left_out(ids), stats, True, keep_similarities, need_rows, need_cols, need_scale, need_scale, precision,
        )  # fmt: skip
        backward = kernel("paired_cosines_backward", backend)
        direct = run_op(backward, of_logits * scale, rows, cols, paired_stats, need_rows, need_cols, precision)
        return (
            found[0] + direct[0] if need_rows else None,
            found[1] + direct[1] if need_cols else None,
            found[2] + found[3] + (of_logits * cosines).sum() if need_scale else None,
            None,
            None,
        )


class TritonSoftmaxLossFunction(Function):
    """As :class:`MeanSoftmaxLossFunction`, of one pair or more, in one plan of launches each way.

    ``apply(rows, cols, scale, keep_similarities)``.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cols: Tensor, scale: Tensor, keep_similarities: bool) -> Tensor:
        ctx.flags = (keep_similarities, float32_precision())
        loss, *kept = _losses().softmax_forward(rows, cols, scale, *ctx.flags)
        keep_tensors(ctx, [rows, cols, scale, *kept])
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        keep_similarities, precision = ctx.flags
        needed = ctx.needs_input_grad[:3]
        launcher, kept = _losses().softmax_backward, kept_tensors(ctx)
        found = launch_backward(launcher, grad, *kept, keep_similarities, *needed, precision)
        return asked_for(ctx, found)


class TritonSigmoidLossFunction(Function):
    """The sigmoid loss of the pairs (i, i), one or more, in one plan of launches each way: equation 1 of Zhai et al.
    (2023). The forward pass keeps its gradients.

    ``apply(rows [M, D], cols [M, D], scale, bias, mean)``. Returns []: the sum over all pairs, over M for a ``mean``.
    Gradients flow to rows, cols, scale and bias. ``torch.func`` cannot transform it; differentiating twice raises
    RuntimeError.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, mean: bool) -> Tensor:
        ctx.precision = float32_precision()
        loss, *kept = _losses().sigmoid_forward(rows, cols, scale, bias, mean, *ctx.needs_input_grad[:4], ctx.precision)
        keep_tensors(ctx, [rows, cols, scale, bias, *kept])
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, scale, bias, *kept = kept_tensors(ctx)
        upstream = differentiated_once("sigmoid_backward", grad, rows, cols, scale, bias)
        found = launch_backward(_losses().sigmoid_backward, upstream, rows, *kept, ctx.precision)
        return asked_for(ctx, found)


@cache
def _losses() -> Any:
    """The plans of whole losses, which need Triton."""
    return importlib.import_module(".triton_losses", __package__)


def _left_out(ids: Tensor) -> tuple[Tensor | None, ...]:
    """Arguments from ``row_ids`` to ``guide_threshold``: pairs of equal id take no part."""
    return ids, ids, *(None,) * 6

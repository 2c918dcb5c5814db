"""Statistics of a similarity matrix as ``torch.autograd.Function``s over the registered kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from sparc_kernels.ops._registration import (
    asked_for,
    call_backward,
    call_forward,
    function_context,
    kept_tensors,
    kernel,
)


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
    found = call_backward(
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
    found = call_backward(
        kernel("similarity_softplus_backward", ctx.backend),
        grad_row_sum.contiguous(),
        *kept_tensors(ctx),
        *ctx.flags,
        *ctx.needs_input_grad[:4],
        ctx.float32_precision,
    )
    return asked_for(ctx, found)


def paired_cosines_derivative(ctx: Any, grad_cosines: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
    """As :func:`logsumexp_derivative`."""
    if grad_cosines is None:
        return (None,) * len(ctx.needs_input_grad)
    found = call_backward(
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

"""Weighted dot products as a ``torch.autograd.Function`` over the registered kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from sparc_kernels.ops._registration import call_forward, function_context, kept_tensors, kernel, run_op


def derivative(ctx: Any, grad_out: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    left, right, weight, stats = kept_tensors(ctx)
    need_left, need_right, need_weight = ctx.needs_input_grad[:3]
    grad_left = grad_right = grad_weight = None
    if grad_out is not None and need_weight:
        grad_weight = (grad_out * stats[0]).sum()
    if grad_out is not None and (need_left or need_right):
        grad_left, grad_right = run_op(
            kernel("paired_dot_backward", ctx.backend),
            *(grad_out, left, right, weight, need_left, need_right, ctx.float32_precision),
        )
    return (
        grad_left if need_left else None,
        grad_right if need_right else None,
        grad_weight,
        *(None,) * (len(ctx.needs_input_grad) - 3),
    )


class PairedDotFunction(Function):
    """Weighted dot products [B, N], fused.

    ``apply(left, right, weight, backend)``: left and right [B, N, D] of one floating dtype, weight [] of the
    accumulation dtype. Returns ``(out [B, N], stats [1, B, N])``. Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return call_forward("paired_dot_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(derivative)

"""Optimal transport within pairs as a ``torch.autograd.Function`` over the registered kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Function

from sparc_kernels.ops._registration import (
    asked_for,
    call_forward,
    function_context,
    kept_tensors,
    kernel,
    run_op,
)
from sparc_kernels.ops.optimal_transport.schema import KEPT


def derivative(
    ctx: Any, grad_costs: Tensor | None, grad_potentials: None, grad_plan: None
) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    needed = ctx.needs_input_grad
    if grad_costs is None or not any(needed[:2]):
        return (None,) * len(needed)
    *inputs, potentials, _ = kept_tensors(ctx)
    iterations, proximal, _ = ctx.flags
    backward = kernel("transport_backward", ctx.backend)
    found = run_op(backward, grad_costs, *inputs, potentials, iterations, proximal, *needed[:2], ctx.float32_precision)
    return asked_for(ctx, found)


class TransportFunction(Function):
    """What it costs to transport each token of a text to the tokens of its image, fused.

    ``apply(image_tokens, text_tokens, image_mask, text_mask, beta, iterations, proximal, with_plan, backend)``; shapes
    and meanings are in ``MATH.md``, backend is ``"triton"`` or ``"cpu"``. Arguments are not validated here:
    ``optimal_transport_distance`` does that.

    Returns ``(costs, potentials, plan)``, the plan [0] without ``with_plan``. Gradients flow to both kinds of tokens
    from the costs alone, with the plan as a constant. ``torch.func`` can transform it. Differentiating twice raises
    RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return call_forward("transport_forward", *inputs)

    setup_context = staticmethod(partial(function_context, kept=KEPT))
    backward = staticmethod(derivative)

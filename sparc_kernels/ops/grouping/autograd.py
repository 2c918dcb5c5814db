"""Language-grouped embeddings and alignment weights as ``torch.autograd.Function``s over the registered kernels."""

from __future__ import annotations

from collections.abc import Callable
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


def _derivative_of(op: str) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
        """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        backward_op = kernel(f"{op}_backward", ctx.backend)
        needed = ctx.needs_input_grad[:2]
        return asked_for(ctx, run_op(backward_op, grad, *kept_tensors(ctx), *needed, ctx.float32_precision))

    return backward


embeddings_derivative = _derivative_of("grouped_embeddings")
weights_derivative = _derivative_of("alignment_weights")


class LanguageGroupedEmbeddingsFunction(Function):
    """Language-grouped vision embeddings [B, L, D] (eq 5 of Bica et al., 2024), fused.

    ``apply(patch_embeds, token_embeds, patch_mask, similarity_threshold, backend)``: patch_embeds [B, P, D] and
    token_embeds [B, L, D] of one floating dtype, patch_mask [B, P] bool or None, similarity_threshold [] of the
    accumulation dtype (float64 for float64 embeddings, else float32) or None (1 / number of valid patches), backend
    ``"cuda"``, ``"triton"`` or ``"cpu"``. Arguments are not validated here: ``language_grouped_embeddings`` does that.

    Returns ``(embeddings [B, L, D], stats [3, B, L])``. Between forward and backward it keeps the inputs and three
    numbers per token; nothing is computed for a gradient that nobody asked for. ``torch.func`` can transform it.
    Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return call_forward("grouped_embeddings_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(embeddings_derivative)


class AlignmentWeightsFunction(Function):
    """Alignment weights [B, L, P] (eq 4 of Bica et al., 2024), fused.

    The same arguments and the same memory as :class:`LanguageGroupedEmbeddingsFunction`; the weights themselves are not
    kept. Returns ``(weights [B, L, P], stats [3, B, L])``. Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return call_forward("alignment_weights_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(weights_derivative)

"""Attention-pooled scores of all pairs, as a ``torch.autograd.Function`` over the registered kernels."""

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
from sparc_kernels.ops.attention_pooling.schema import KEPT


def derivative(ctx: Any, grad_scores: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    needed = ctx.needs_input_grad
    if grad_scores is None or not any(needed[:2]):
        return (None,) * len(needed)
    found = run_op(
        kernel("attention_pooled_backward", ctx.backend),
        grad_scores.contiguous(),
        *kept_tensors(ctx),
        *ctx.flags,
        *needed[:2],
        ctx.float32_precision,
    )
    return asked_for(ctx, found)


class AttentionPooledFunction(Function):
    """Scores of all pairs of images and captions: cosines of tokens with what they attend to, pooled over tokens.

    ``apply(image_tokens, text_tokens, image_mask, text_mask, text_offsets, max_tokens, normalize, weights,
    attention_scale, pooling, pooling_scale, backend)``; shapes and meanings are in ``MATH.md``, backend is ``"triton"``
    or ``"cpu"``. Arguments are not validated here: ``attention_pooled_scores`` does that.

    Returns ``(scores, stats, levels)``. Gradients flow to both kinds of tokens, and cost nothing for one that needs
    none. The backward pass computes the similarities again. ``torch.func`` can transform it. Differentiating twice
    raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return call_forward("attention_pooled_forward", *inputs)

    setup_context = staticmethod(partial(function_context, kept=KEPT))
    backward = staticmethod(derivative)

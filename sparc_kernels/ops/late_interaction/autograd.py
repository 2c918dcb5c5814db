"""Scores of all pairs by maxima over tokens, as a ``torch.autograd.Function`` over the registered kernels."""

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
from sparc_kernels.ops.late_interaction.schema import KEPT


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


def derivative(ctx: Any, grad_image_scores: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    *_, grad_text_scores = others
    needed = ctx.needs_input_grad
    if (grad_image_scores is None and grad_text_scores is None) or not any(needed[:2]):
        return (None,) * len(needed)
    tensors = kept_tensors(ctx)
    inputs, kept = tensors[:-KEPT], tensors[-KEPT:]
    max_tokens, normalize, average, by_image, by_text, keep = ctx.flags
    if not keep:
        flags = (max_tokens, normalize, average, by_image, by_text, True)
        forward = kernel("max_similarity_forward", ctx.backend)
        kept = run_op(forward, *inputs, *flags, ctx.float32_precision)[1 : 1 + KEPT]
    found = run_op(
        kernel("max_similarity_backward", ctx.backend),
        _contiguous(grad_image_scores),
        _contiguous(grad_text_scores),
        *inputs,
        *kept,
        max_tokens,
        normalize,
        average,
        *needed[:2],
        ctx.float32_precision,
    )
    return asked_for(ctx, found)


class MaxSimilarityFunction(Function):
    """Scores of all pairs of images and captions from the best partner of each of their tokens.

    ``apply(image_tokens, text_tokens, image_mask, text_mask, text_offsets, max_tokens, normalize, average, by_image,
    by_text, keep, backend)``; shapes and meanings are in ``MATH.md``, backend is ``"triton"`` or ``"cpu"``. Arguments
    are not validated here: ``late_interaction_scores`` does that.

    Returns ``(image_scores, stats, best_token, best_patch, text_scores)``, [0] where not asked for. Gradients flow to
    both kinds of tokens, and cost nothing for one that needs none. Without ``keep`` the backward pass runs the forward
    pass again. ``torch.func`` can transform it. Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return call_forward("max_similarity_forward", *inputs)

    setup_context = staticmethod(partial(function_context, kept=KEPT))
    backward = staticmethod(derivative)

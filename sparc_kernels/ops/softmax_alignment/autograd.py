"""The loss of tokens against their attention as a ``torch.autograd.Function`` over the registered kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from sparc_kernels.ops._registration import (
    call_forward,
    differentiated_once,
    function_context,
    kept_tensors,
    kernel,
    run_op,
)
from sparc_kernels.ops.softmax_alignment import schema


def derivative(ctx: Any, grad_token_loss: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    rest = (None,) * (len(ctx.needs_input_grad) - 5)
    if grad_token_loss is None:
        return (None,) * len(ctx.needs_input_grad)
    *inputs, stats = kept_tensors(ctx)
    need_patches, need_tokens, _, _, need_scale = ctx.needs_input_grad[:5]
    grad_patches = grad_tokens = grad_scale = None
    if need_scale:
        upstream = differentiated_once("softmax_alignment_backward", grad_token_loss, *inputs)
        grad_scale = (upstream * stats[schema.STATS.index("scale_derivative")]).sum()
    if need_patches or need_tokens:
        backward = kernel("softmax_alignment_backward", ctx.backend)
        grad_patches, grad_tokens = run_op(
            backward, grad_token_loss, *inputs, stats, need_patches, need_tokens, ctx.float32_precision
        )
    return (grad_patches if need_patches else None, grad_tokens if need_tokens else None, None, None, grad_scale, *rest)


class SoftmaxAlignmentFunction(Function):
    """Loss of each token [B, L] against its attention over the patches, fused; 0 at padded tokens.

    ``apply(patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, attention_scale, backend)``: patch_embeds
    [B, P, D] and token_embeds [B, L, D] of one floating dtype, token_mask [B, L] and patch_mask [B, P] bool or None,
    logit_scale [] and attention_scale [] of the accumulation dtype (float64 for float64 embeddings, else float32) on
    the same device, backend ``"triton"`` or ``"cpu"``. Arguments are not validated here: ``mgca_local_loss`` does that.

    Returns ``(token_loss [B, L], stats [7, B, L])`` (``MATH.md``) in the accumulation dtype. Gradients flow to
    patch_embeds, token_embeds and logit_scale. Between forward and backward it keeps the inputs and seven numbers per
    token. ``torch.func`` can transform it. Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return call_forward("softmax_alignment_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(derivative)

"""The fine-grained loss as a ``torch.autograd.Function`` over the registered kernels."""

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
from sparc_kernels.ops.fine_grained import schema


def derivative(
    ctx: Any,
    grad_token_loss: Tensor | None,
    grad_stats: None,
    grad_pooled_patches: Tensor | None,
    grad_pooled_tokens: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
    patch_embeds, token_embeds, token_mask, patch_mask, scale, threshold, stats = kept_tensors(ctx)
    need_patches, need_tokens, _, _, need_scale = ctx.needs_input_grad[:5]
    grad_patches = grad_tokens = grad_scale = None
    if grad_token_loss is None:  # only the pooled embeddings were used
        if need_patches and grad_pooled_patches is not None:
            grad_patches = _spread(grad_pooled_patches, patch_embeds, patch_mask)
        if need_tokens and grad_pooled_tokens is not None:
            grad_tokens = _spread(grad_pooled_tokens, token_embeds, token_mask)
    else:
        if need_scale:
            upstream = differentiated_once("fine_grained_backward", grad_token_loss, patch_embeds, token_embeds, scale)
            grad_scale = (upstream * stats[schema.STATS.index("scale_derivative")]).sum()
        if need_patches or need_tokens:
            grad_patches, grad_tokens = run_op(
                kernel("fine_grained_backward", ctx.backend),
                grad_token_loss,
                None if grad_pooled_patches is None or not need_patches else grad_pooled_patches.contiguous(),
                None if grad_pooled_tokens is None or not need_tokens else grad_pooled_tokens.contiguous(),
                patch_embeds,
                token_embeds,
                token_mask,
                patch_mask,
                scale,
                threshold,
                stats,
                need_patches,
                need_tokens,
                ctx.float32_precision,
            )
    return (
        grad_patches if need_patches else None,
        grad_tokens if need_tokens else None,
        None,
        None,
        grad_scale,
        *(None,) * (len(ctx.needs_input_grad) - 5),
    )


def _spread(grad_pooled: Tensor, embeds: Tensor, mask: Tensor | None) -> Tensor:
    """The gradient [B, N, D] of a mean over the valid rows from that of the mean [B, D]."""
    if mask is None:
        return (grad_pooled / embeds.shape[1])[:, None].expand_as(embeds)
    per_row = grad_pooled / mask.sum(1, keepdim=True).clamp(min=1)
    return (per_row[:, None] * mask[..., None]).to(embeds.dtype)


class FineGrainedLossFunction(Function):
    """Per-token fine-grained loss [B, L] (eq 2-6 of Bica et al., 2024), fused; 0 at padded tokens.

    ``apply(patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, similarity_threshold, pool_patches,
    pool_tokens, backend)``: patch_embeds [B, P, D] and token_embeds [B, L, D] of one floating dtype, token_mask [B, L]
    and patch_mask [B, P] bool or None, logit_scale [] and similarity_threshold [] (or None: 1 / number of valid
    patches) of the accumulation dtype (float64 for float64 embeddings, else float32) on the same device, pool_patches
    and pool_tokens whether the means of the valid patches and tokens are wanted, backend ``"cuda"``, ``"triton"`` or
    ``"cpu"``. Arguments are not validated here: ``fine_grained_loss`` does that.

    Returns ``(token_loss [B, L], stats [7, B, L], pooled_patches [B, D], pooled_tokens [B, D])``: losses and statistics
    (``MATH.md``) in the accumulation dtype, means in that of the embeddings, or [0] where they are not wanted.

    Gradients flow to patch_embeds, token_embeds and logit_scale, and cost nothing for those that need none. Between
    forward and backward it keeps the inputs and seven numbers per token; it allocates nothing of size B x L x P or
    B x L x D. ``torch.func`` can transform it. Differentiating twice raises RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return call_forward("fine_grained_forward", *inputs)

    setup_context = staticmethod(function_context)
    backward = staticmethod(derivative)

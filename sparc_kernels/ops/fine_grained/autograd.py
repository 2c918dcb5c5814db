"""The fine-grained loss as a ``torch.autograd.Function`` over the registered kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype


def _kernels(backend: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward and backward ops of a backend."""
    if backend == "triton":
        from sparc_kernels.ops.fine_grained import triton  # noqa: F401  (registers the ops)

        ops = torch.ops.sparc_kernels
        return ops.fine_grained_forward_triton, ops.fine_grained_backward_triton
    if backend in ("cpu", "cuda"):
        from sparc_kernels.ops.fine_grained import native

        return native.fine_grained_forward, native.fine_grained_backward
    raise ValueError(f"backend must be 'cuda', 'triton' or 'cpu', got {backend!r}")


class FineGrainedLossFunction(torch.autograd.Function):
    """Per-token fine-grained loss [B, L] (eq 2-6 of Bica et al., 2024), fused; 0 at padded tokens.

    ``apply(patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, similarity_threshold, backend)``:
    patch_embeds [B, P, D] and token_embeds [B, L, D] of one floating dtype, token_mask [B, L] and patch_mask [B, P]
    bool or None, logit_scale a 0-dim tensor on the same device, similarity_threshold a float or None (1 / number of
    valid patches), backend ``"cuda"``, ``"triton"`` or ``"cpu"``. Arguments are not validated here:
    ``fine_grained_loss`` does that.

    The result has the accumulation dtype (float64 for float64 inputs, else float32). Gradients flow to patch_embeds,
    token_embeds and logit_scale. Between forward and backward it keeps the inputs and six numbers per token; it
    allocates nothing of size B x L x P or B x L x D. Differentiating twice raises RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any,
        patch_embeds: Tensor,
        token_embeds: Tensor,
        token_mask: Tensor | None,
        patch_mask: Tensor | None,
        logit_scale: Tensor,
        similarity_threshold: float | None,
        backend: str,
    ) -> Tensor:
        kernel, _ = _kernels(backend)
        scale = logit_scale.to(accumulation_dtype(patch_embeds.dtype))
        token_loss, stats = kernel(patch_embeds, token_embeds, token_mask, patch_mask, scale, similarity_threshold)
        ctx.save_for_backward(patch_embeds, token_embeds, token_mask, patch_mask, scale, stats)
        ctx.similarity_threshold, ctx.backend, ctx.scale_dtype = similarity_threshold, backend, logit_scale.dtype
        return token_loss

    @staticmethod
    def backward(ctx: Any, grad_token_loss: Tensor) -> tuple[Tensor | None, ...]:
        _, kernel = _kernels(ctx.backend)
        patch_embeds, token_embeds, token_mask, patch_mask, scale, stats = ctx.saved_tensors
        grad_patches, grad_tokens, grad_scale = kernel(
            grad_token_loss,
            patch_embeds,
            token_embeds,
            token_mask,
            patch_mask,
            scale,
            stats,
            ctx.similarity_threshold,
        )
        return grad_patches, grad_tokens, None, None, grad_scale.sum().to(ctx.scale_dtype), None, None

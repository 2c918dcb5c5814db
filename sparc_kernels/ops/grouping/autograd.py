"""Language-grouped embeddings and alignment weights as ``torch.autograd.Function``s over the registered kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _kernels(backend: str, op: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward and backward ops of a backend; ``op`` is ``grouped_embeddings`` or ``alignment_weights``."""
    if backend == "triton":
        from sparc_kernels.ops.grouping import triton  # noqa: F401  (registers the ops)

        ops = torch.ops.sparc_kernels
        return getattr(ops, f"{op}_forward_triton"), getattr(ops, f"{op}_backward_triton")
    if backend in ("cpu", "cuda"):
        from sparc_kernels.ops.grouping import native

        return getattr(native, f"{op}_forward"), getattr(native, f"{op}_backward")
    raise ValueError(f"backend must be 'cuda', 'triton' or 'cpu', got {backend!r}")


def _forward(
    ctx: Any,
    op: str,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
    backend: str,
) -> Tensor:
    kernel, _ = _kernels(backend, op)
    output, stats = kernel(patch_embeds, token_embeds, patch_mask, similarity_threshold)
    ctx.save_for_backward(patch_embeds, token_embeds, patch_mask, stats)
    ctx.similarity_threshold, ctx.backend = similarity_threshold, backend
    return output


def _backward(ctx: Any, op: str, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, kernel = _kernels(ctx.backend, op)
    patch_embeds, token_embeds, patch_mask, stats = ctx.saved_tensors
    grad_patches, grad_tokens = kernel(grad, patch_embeds, token_embeds, patch_mask, stats, ctx.similarity_threshold)
    return grad_patches, grad_tokens, None, None, None


class LanguageGroupedEmbeddingsFunction(torch.autograd.Function):
    """Language-grouped vision embeddings [B, L, D] (eq 5 of Bica et al., 2024), fused.

    ``apply(patch_embeds, token_embeds, patch_mask, similarity_threshold, backend)``: patch_embeds [B, P, D] and
    token_embeds [B, L, D] of one floating dtype, patch_mask [B, P] bool or None, similarity_threshold a float or None
    (1 / number of valid patches), backend ``"cuda"``, ``"triton"`` or ``"cpu"``. Arguments are not validated here:
    ``language_grouped_embeddings`` does that.

    Between forward and backward it keeps the inputs and three numbers per token. Differentiating twice raises
    RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any,
        patch_embeds: Tensor,
        token_embeds: Tensor,
        patch_mask: Tensor | None,
        similarity_threshold: float | None,
        backend: str,
    ) -> Tensor:
        return _forward(
            ctx, "grouped_embeddings", patch_embeds, token_embeds, patch_mask, similarity_threshold, backend
        )

    @staticmethod
    def backward(ctx: Any, grad_embeddings: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, "grouped_embeddings", grad_embeddings)


class AlignmentWeightsFunction(torch.autograd.Function):
    """Alignment weights [B, L, P] (eq 4 of Bica et al., 2024), fused.

    The same arguments and the same memory as :class:`LanguageGroupedEmbeddingsFunction`; the weights themselves are not
    kept. Differentiating twice raises RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any,
        patch_embeds: Tensor,
        token_embeds: Tensor,
        patch_mask: Tensor | None,
        similarity_threshold: float | None,
        backend: str,
    ) -> Tensor:
        return _forward(ctx, "alignment_weights", patch_embeds, token_embeds, patch_mask, similarity_threshold, backend)

    @staticmethod
    def backward(ctx: Any, grad_weights: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, "alignment_weights", grad_weights)

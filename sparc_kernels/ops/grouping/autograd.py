"""Language-grouped embeddings and alignment weights as ``torch.autograd.Function``s over the registered kernels, and
their registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from sparc_kernels import _native
from sparc_kernels.ops._registration import (
    call_backward,
    call_forward,
    complete,
    define_triton,
    function_context,
    kept_tensors,
    kernel,
    op_context,
)
from sparc_kernels.ops.grouping import schema


def _backward_of(op: str) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor | None, grad_stats: None) -> tuple[Tensor | None, ...]:
        """Gradients of the forward op's inputs; nothing is computed for one that nobody asked for."""
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        needed = ctx.needs_input_grad[:2]
        backward_op = kernel(f"{op}_backward", ctx.backend)
        grads = call_backward(backward_op, grad, *kept_tensors(ctx), *needed, ctx.float32_precision)
        return (
            *(found if need else None for found, need in zip(grads, needed)),
            *(None,) * (len(ctx.needs_input_grad) - 2),
        )

    return backward


_embeddings_backward = _backward_of("grouped_embeddings")
_weights_backward = _backward_of("alignment_weights")


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
    backward = staticmethod(_embeddings_backward)


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
    backward = staticmethod(_weights_backward)


_FORWARD_DIMS = ((0, 0, 0, None, None), (0, 1))
_BACKWARD_DIMS = ((0, 0, 0, 0, None, 1, None, None, None), (0, 0))


def _register(suffix: str, backend: str) -> None:
    for op, fake_forward, backward, flops in (
        (
            "grouped_embeddings",
            schema.fake_embeddings_forward,
            _embeddings_backward,
            (schema.embeddings_forward_flops, schema.embeddings_backward_flops),
        ),
        (
            "alignment_weights",
            schema.fake_weights_forward,
            _weights_backward,
            (schema.weights_forward_flops, schema.weights_backward_flops),
        ),
    ):
        complete(f"{op}_forward{suffix}", fake_forward, flops[0], _FORWARD_DIMS, (op_context(backend), backward))
        complete(f"{op}_backward{suffix}", schema.fake_backward, flops[1], _BACKWARD_DIMS)


_TRITON = "sparc_kernels.ops.grouping.triton"
define_triton("grouped_embeddings_forward_triton", schema.EMBEDDINGS_FORWARD, _TRITON, "embeddings_forward")
define_triton("grouped_embeddings_backward_triton", schema.EMBEDDINGS_BACKWARD, _TRITON, "embeddings_backward")
define_triton("alignment_weights_forward_triton", schema.WEIGHTS_FORWARD, _TRITON, "weights_forward")
define_triton("alignment_weights_backward_triton", schema.WEIGHTS_BACKWARD, _TRITON, "weights_backward")
_register("_triton", "triton")
if _native.cpu_reason() is None:  # the library declares its ops
    _register("", "cpu")

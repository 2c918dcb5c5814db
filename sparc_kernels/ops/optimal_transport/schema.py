"""Signatures of the op and what it returns, shared by every backend that registers it (``MATH.md``)."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

_TENSORS = "Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, Tensor? text_mask, Tensor beta"
FORWARD = (
    f"({_TENSORS}, SymInt iterations, bool proximal, bool with_plan, str float32_precision) -> "
    "(Tensor costs, Tensor potentials, Tensor plan)"
)
BACKWARD = (
    f"(Tensor grad_costs, {_TENSORS}, Tensor potentials, SymInt iterations, bool proximal, bool need_image_tokens, "
    "bool need_text_tokens, str float32_precision) -> (Tensor grad_image_tokens, Tensor grad_text_tokens)"
)

KEPT = 2  # results without gradient: potentials, and the plan where it is wanted


def fake_forward(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    beta: Tensor,
    iterations: int,
    proximal: bool,
    with_plan: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of ``transport_forward``."""
    b, p, _ = image_tokens.shape
    l = text_tokens.shape[1]
    dtype = accumulation_dtype(image_tokens.dtype)
    return (
        image_tokens.new_empty((b, l), dtype=dtype),
        image_tokens.new_empty((b, l + p), dtype=dtype),
        image_tokens.new_empty((b, l, p) if with_plan else (0,), dtype=dtype),
    )


def fake_backward(
    grad_costs: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    beta: Tensor,
    potentials: Tensor,
    iterations: int,
    proximal: bool,
    need_image_tokens: bool,
    need_text_tokens: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``transport_backward``."""
    return (
        image_tokens.new_empty(image_tokens.shape if need_image_tokens else (0,)),
        text_tokens.new_empty(text_tokens.shape if need_text_tokens else (0,)),
    )


def _product(image_tokens: Tensor, text_tokens: Tensor) -> int:
    """Flop of one product over tokens and patches."""
    b, l, d = text_tokens.shape
    return 2 * b * l * image_tokens.shape[1] * d


def forward_flops(image_tokens: Tensor, text_tokens: Tensor, *rest: object) -> int:
    """The similarities; the iterations are no products of matrices."""
    return _product(image_tokens, text_tokens)


def backward_flops(grad_costs: Tensor, image_tokens: Tensor, text_tokens: Tensor, *rest: object) -> int:
    """The similarities once more, and a product for each needed gradient."""
    return _product(image_tokens, text_tokens) * (1 + sum(1 for need in rest[-3:-1] if need))

"""Signatures of the op and what it returns, shared by every backend that registers it."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype

FORWARD = "(Tensor left, Tensor right, Tensor weight, str float32_precision) -> (Tensor out, Tensor stats)"
BACKWARD = (
    "(Tensor grad_out, Tensor left, Tensor right, Tensor weight, bool need_left, bool need_right, "
    "str float32_precision) -> (Tensor grad_left, Tensor grad_right)"
)


def fake_forward(left: Tensor, right: Tensor, weight: Tensor, float32_precision: str) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``paired_dot_forward``."""
    b, n, _ = left.shape
    dtype = accumulation_dtype(left.dtype)
    return left.new_empty((b, n), dtype=dtype), left.new_empty((1, b, n), dtype=dtype)


def fake_backward(
    grad_out: Tensor,
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    need_left: bool,
    need_right: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``paired_dot_backward``."""
    return (
        left.new_empty(left.shape if need_left else (0,)),
        right.new_empty(right.shape if need_right else (0,)),
    )


def forward_flops(left: Tensor, *rest: object) -> int:
    """s."""
    return 2 * left.numel()


def backward_flops(grad_out: Tensor, left: Tensor, *rest: object) -> int:
    """dX and dY."""
    need_left, need_right = rest[-3:-1]
    return left.numel() * (bool(need_left) + bool(need_right))

"""Weighted dot products of paired rows."""

from __future__ import annotations

from sparc_kernels.ops.paired_dot.autograd import PairedDotFunction
from sparc_kernels.ops.paired_dot.reference import paired_dot_reference
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.functional._common import autocast, recordable, scalar
from sparc_kernels.ops._registration import apply


def paired_dot(left: Tensor, right: Tensor, *, weight: float | Tensor = 1.0, backend: str = "auto") -> Tensor:
    """Weighted dot products of paired rows.

    Args:
        left: [B, N, D]; float16, bfloat16, float32 or float64.
        right: [B, N, D], of the same dtype and device.
        weight: a number or a one-element tensor (which receives a gradient in its shape).
        backend: ``"auto"``, ``"triton"`` or ``"eager"``; an explicit one never falls back.

    Returns:
        [B, N] in float32 (float64 for float64 rows). Differentiable once (the eager backend: any number of times).

    Raises:
        TypeError, ValueError: arguments that do not fit.
        NotImplementedError: a backend that cannot serve this dtype, device or machine.
    """
    _validate.embeddings("left", left, "[B, N, D]")
    _validate.embeddings("right", right, "[B, N, D]")
    left, right = autocast(left, right)
    _validate.same("right", right, "left", left, {"B": 0, "N": 1, "D": 2})
    _validate.scalar("weight", weight, "left", left)
    backend = resolve("paired_dot", backend, left.device, left.dtype)
    inputs = (left, right, scalar(weight, left))
    if backend == "eager":
        return paired_dot_reference(*map(recordable, inputs))
    return apply(PairedDotFunction, "paired_dot_forward", *inputs, backend)[0]

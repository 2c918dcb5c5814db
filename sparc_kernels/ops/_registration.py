"""What every registered op gets, whichever backend implements it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def complete(qualified_name: str, fake: Callable[..., Any]) -> None:
    """Give a defined op its fake implementation, and an error where somebody differentiates it.

    The derivatives stand in the rooms' ``autograd.py``. An op reached with tensors that want a gradient is one that is
    differentiated around them: a second derivative, or a direct call. Neither may pass for a zero.
    """

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{qualified_name} is not differentiable: the fused kernels have first derivatives only, through the "
            "functions of sparc_kernels; for second derivatives use backend='eager'"
        )

    torch.library.register_fake(qualified_name, fake)
    torch.library.register_autograd(qualified_name, refuse)


@torch.compiler.assume_constant_result
def float32_precision() -> str:
    """What ``torch.set_float32_matmul_precision`` set: ``"highest"``, ``"high"`` or ``"medium"``. Code that
    ``torch.compile`` compiled keeps what held when it was compiled."""
    return torch.get_float32_matmul_precision()


def native_schema(schema: str) -> str:
    """The schema of an op of the native library: one more argument, ``torch.get_float32_matmul_precision()``, which C++
    cannot read on the stable ABI."""
    return schema.replace("float? similarity_threshold)", "float? similarity_threshold, str float32_precision)")

"""Shapes that the family's Triton kernels are compiled for."""

from __future__ import annotations

from typing import Any

import torch

# name -> (P, L, D) of the pairs
SHAPES = {
    "paper": [(49, 55, 512), (196, 55, 512), (256, 55, 512)],
    "large": [(1024, 256, 1024)],
}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(steps: list[Any]) -> list[Any]:
    """Without the products that a library computes."""
    from sparc_kernels.ops._triton.launch import Launch

    return [step for step in steps if isinstance(step, Launch)]

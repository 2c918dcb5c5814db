"""On a GPU ``backend="auto"`` takes CUDA C++, or Triton where this table says so: the one place that decides.

Reasons, predicted and measured, stand in docs/cuda_resources.md, "What auto takes", which
``python -m tools.sass_model --write`` makes from this table and a test compares with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

HELD = "held"  # half precision, and a program of the Triton kernels holds all similarities of a pair
TILED = "tiled"  # half precision, more than that
SINGLE = "float32"  # whose products the Triton kernels leave to a library

# Compute capability -> kinds of calls for which Triton's kernels are faster.
TRITON_FIRST: dict[tuple[int, int], frozenset[str]] = {(9, 0): frozenset({HELD, SINGLE})}


def kind_of(dtype: torch.dtype, tokens: int, patches: int) -> str | None:
    """Of a call with captions of so many tokens and images of so many patches; None where Triton has no kernel."""
    if dtype == torch.float32:
        return SINGLE
    if dtype.itemsize != 2:
        return None
    return HELD if tokens <= 64 and patches <= 256 else TILED


def kind_of_call(patch_embeds: Tensor, token_embeds: Tensor) -> str | None:
    """``kind_of`` a call on [B, P, D] and [B, L, D]. Sizes are asked for where they decide only, since a compiler has
    to watch them then."""
    if patch_embeds.dtype == torch.float32:
        return SINGLE
    if not patch_embeds.is_cuda:
        return None
    return kind_of(patch_embeds.dtype, token_embeds.shape[1], patch_embeds.shape[1])

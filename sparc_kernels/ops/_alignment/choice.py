"""On a GPU ``backend="auto"`` takes CUDA C++, or Triton where this table says so: the one place that decides.

Reasons, predicted and measured, stand in docs/cuda_resources.md, "What auto takes", which
``python -m tools.sass_model --write`` makes from this table and a test compares with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Kinds of calls. In half precision, captions of up to 64 tokens, by patches of an image:
FEW = "few"  # up to 64: two blocks of the path by warpgroups share a multiprocessor
HELD = "held"  # up to 224: registers of two warpgroups hold all similarities of a pair
BROAD = "broad"  # up to 256: those of a program of the Triton kernels do, too
TILED = "tiled"  # more than that
LONG = "long"  # longer captions: where a mask leaves 64 tokens or fewer, CUDA C++ takes them for such, Triton does not
SINGLE = "float32"  # whose products the Triton kernels leave to a library

# Op -> compute capability -> kinds of calls for which Triton's kernels are faster.
TRITON_FIRST: dict[str, dict[tuple[int, int], frozenset[str]]] = {
    "fine_grained": {(9, 0): frozenset({BROAD, TILED, SINGLE})},
    "grouping": {(9, 0): frozenset({FEW, HELD, BROAD, SINGLE})},
}


def kind_of(dtype: torch.dtype, tokens: int, patches: int) -> str | None:
    """Of a call with captions of so many tokens and images of so many patches; None where Triton has no kernel."""
    if dtype == torch.float32:
        return SINGLE
    if dtype.itemsize != 2:
        return None
    if tokens > 64:
        return LONG
    if patches > 256:
        return TILED
    if patches > 224:
        return BROAD
    return HELD if patches > 64 else FEW


def kind_of_call(patch_embeds: Tensor, token_embeds: Tensor) -> str | None:
    """``kind_of`` a call on [B, P, D] and [B, L, D]. Sizes are asked for where they decide only, since a compiler has
    to watch them then."""
    if patch_embeds.dtype == torch.float32:
        return SINGLE
    if not patch_embeds.is_cuda:
        return None
    return kind_of(patch_embeds.dtype, token_embeds.shape[1], patch_embeds.shape[1])

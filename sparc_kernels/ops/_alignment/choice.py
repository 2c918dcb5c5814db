"""On a GPU ``backend="auto"`` takes CUDA C++, or Triton where this table says so: the one place that decides.

Reasons, predicted and measured, stand in docs/cuda_resources.md, "What auto takes", which
``python -m tools.sass_model --write`` makes from this table and a test compares with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Kinds of calls. In half precision:
PAIRS = "pairs"  # captions of up to 64 tokens, images of up to 256 patches: a pair is held by a block or program
WEIGHTS = "weights"  # the same, of which alignment weights are wanted
TILED = "tiled"  # larger ones
LONG = "long"  # longer captions under a mask: CUDA C++ takes those of up to 64 valid tokens for such, Triton does not
# In float32:
SINGLE = "float32"  # whose products the Triton kernels leave to a library

# Op -> compute capability -> kinds of calls for which Triton's kernels are faster.
TRITON_FIRST: dict[str, dict[tuple[int, int], frozenset[str]]] = {
    "fine_grained": {(9, 0): frozenset({TILED, SINGLE})},
    "grouping": {(9, 0): frozenset({WEIGHTS, SINGLE})},
}


def kind_of(dtype: torch.dtype, tokens: int, patches: int, masked: bool = False, weights: bool = False) -> str | None:
    """Of a call with captions of so many tokens, under a mask or not, and images of so many patches; None where Triton
    has no kernel."""
    if dtype == torch.float32:
        return SINGLE
    if dtype.itemsize != 2:
        return None
    if tokens > 64:
        return LONG if masked else TILED
    if patches > 256:
        return TILED
    return WEIGHTS if weights else PAIRS


def kind_of_call(
    patch_embeds: Tensor, token_embeds: Tensor, token_mask: Tensor | None = None, weights: bool = False
) -> str | None:
    """``kind_of`` a call on [B, P, D] and [B, L, D]. Sizes are asked for where they decide only, since a compiler has
    to watch them then."""
    if patch_embeds.dtype == torch.float32:
        return SINGLE
    if not patch_embeds.is_cuda:
        return None
    sizes = token_embeds.shape[1], patch_embeds.shape[1]
    return kind_of(patch_embeds.dtype, *sizes, masked=token_mask is not None, weights=weights)

"""On a GPU ``backend="auto"`` takes CUDA C++, or Triton where this table says so: the one place that decides.

Reasons, forecast and measured, stand in docs/cuda_resources.md, "What auto takes", which
``python -m tools.sass_model --write`` makes from this table and a test compares with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Kinds of calls. In half precision, captions of up to 64 tokens, by patches: where a block or program holds a pair.
PATCHES_64 = "up to 64 patches"
PATCHES_128 = "65 to 128 patches"
PATCHES_224 = "129 to 224 patches"  # Triton's tile holds 256 from here on
PATCHES_256 = "225 to 256 patches"  # shared memory of the blocks in CUDA C++ runs short on most chips
WEIGHTS = "weights"  # up to 256 patches, of which alignment weights are wanted
TILED = "tiled"  # more patches or tokens
LONG = "long"  # more tokens, under a mask: CUDA C++ takes those of up to 64 valid ones for such, Triton does not
# In float32:
SINGLE = "float32"  # whose products the Triton kernels leave to a library

PAIRS = {64: PATCHES_64, 128: PATCHES_128, 224: PATCHES_224, 256: PATCHES_256}

# Op -> compute capability -> kinds of calls for which Triton's kernels are faster, or should be. 9.0 was timed, but for
# 65 to 128 patches and the groups of tiled pairs; the others were forecast. A capability that is not here goes by the
# one before it of its major version, whose machine code it runs.
TRITON_FIRST: dict[str, dict[tuple[int, int], frozenset[str]]] = {
    "fine_grained": {
        (8, 0): frozenset({PATCHES_64, PATCHES_128, PATCHES_256}),
        (8, 6): frozenset({PATCHES_64, PATCHES_128, SINGLE}),
        (8, 9): frozenset({PATCHES_128}),
        (9, 0): frozenset({PATCHES_128, TILED, SINGLE}),
        (10, 0): frozenset({PATCHES_64, PATCHES_128, PATCHES_224, PATCHES_256, SINGLE}),
        (12, 0): frozenset({PATCHES_64, PATCHES_128}),
    },
    "grouping": {
        (8, 0): frozenset({PATCHES_64, PATCHES_128, PATCHES_224, PATCHES_256, WEIGHTS}),
        (8, 6): frozenset({PATCHES_128, PATCHES_224, WEIGHTS, SINGLE}),
        (8, 9): frozenset(),
        (9, 0): frozenset({PATCHES_128, WEIGHTS, SINGLE}),
        (10, 0): frozenset({PATCHES_64, PATCHES_128, PATCHES_224, PATCHES_256, WEIGHTS, SINGLE}),
        (12, 0): frozenset({PATCHES_128, PATCHES_224, WEIGHTS}),
    },
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
    if patches > max(PAIRS):
        return TILED
    if weights:
        return WEIGHTS
    return next(kind for most, kind in PAIRS.items() if patches <= most)


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

"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

# name -> (images, patches, captions, tokens, channels); what is common is compiled for the first, what is rare for the
# second
SHAPES = {
    "paper": [(512, 196, 512, 77, 256)],
    "large": [(64, 576, 64, 77, 768), (256, 49, 256, 1, 512)],
}
# Bytes per thread: where 196 patches fill the registers, some words that wait outside of the products' loop.
MAY_SPILL = {
    ("fused_cosines_kernel", "masked_forward"): 120,
    ("fused_gradient_kernel", "masked_backward"): 424,  # none of it in the loops over channels
    ("fused_cosines_kernel", "packed_forward"): 8,
    ("fused_gradient_kernel", "packed_backward"): 8,
}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def plans(
    capability: int, dtype: torch.dtype, shape: tuple[int, int, int, int, int], precision: str
) -> dict[str, list[Any]]:
    """Launches by what is asked for, without the products that a library computes."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops._triton.launch import Launch
    from sparc_kernels.ops.attention_pooling import triton

    i, p, j, n, d = shape
    found: dict[str, list[Any]] = {}

    def both(name: str, texts: torch.Tensor, scope: tuple[Any, ...], options: tuple[Any, ...]) -> None:
        image_mask, text_mask, offsets, longest = scope
        inputs = (meta(i, p, d, dtype=dtype), texts, image_mask, text_mask, offsets)
        results, found[f"{name}_forward"] = triton.forward_plan(*inputs, longest, *options, precision)
        scores, stats, levels = results
        rest = (longest, *options, True, True, precision)
        _, found[f"{name}_backward"] = triton.backward_plan(scores, *inputs, stats, levels, *rest)

    padded, packed = meta(j, n, d, dtype=dtype), meta(j * n, d, dtype=dtype)
    masks = meta(i, p, dtype=torch.bool), meta(j, n, dtype=torch.bool)
    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        if shape in SHAPES["paper"]:
            both("masked", padded, (None, masks[1], None, 0), (True, "softmax", 10.0, "mean", 5.0))
        else:
            offsets = meta(j + 1, dtype=torch.int64)
            both("packed", packed, (masks[0], None, offsets, n), (False, "softmax_sink", 10.0, "logsumexp", 5.0))
            both("words", padded, (None, masks[1], None, 0), (True, "words_softmax", 10.0, "mean", 5.0))
    return {name: _one_of_each([x for x in steps if isinstance(x, Launch)]) for name, steps in found.items()}


def _one_of_each(launches: list[Any]) -> list[Any]:
    """Blocks of a pass differ in where they begin, which is not compiled."""

    def kind(x: Any) -> tuple[Any, ...]:
        return x.kernel, x.arguments.get("TRANSPOSED"), *(argument is None for argument in x.arguments.values())

    return list({kind(x): x for x in launches[::-1]}.values())

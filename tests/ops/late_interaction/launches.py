"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

# name -> (images, patches, captions, tokens, channels); what is common is compiled for the first, what is rare for the
# second
SHAPES = {
    "paper": [(1024, 196, 1024, 77, 256)],
    "large": [(256, 1024, 512, 300, 512)],
}
# Bytes per thread, outside of the loops; the first in float32 on sm_120, elsewhere 16.
MAY_SPILL = {
    ("maxima_kernel", "masked_forward"): 96,
    ("maxima_kernel", "packed_forward"): 16,
    ("maxima_kernel", "products_forward"): 56,
}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def plans(
    capability: int, dtype: torch.dtype, shape: tuple[int, int, int, int, int], precision: str
) -> dict[str, list[Any]]:
    """Launches by what is asked for, without the products that a library computes."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops._triton.launch import Launch
    from sparc_kernels.ops.late_interaction import triton

    i, p, j, n, d = shape
    found: dict[str, list[Any]] = {}

    def both(name: str, texts: torch.Tensor, scope: tuple[Any, ...], normalize: bool) -> None:
        inputs, flags = (meta(i, p, d, dtype=dtype), texts, *scope), (normalize, True)
        results, found[f"{name}_forward"] = triton.forward_plan(*inputs, *flags, True, True, True, precision)
        image_scores, stats, best_token, best_patch, text_scores = results
        *tensors, longest = inputs
        _, found[f"{name}_backward"] = triton.backward_plan(
            image_scores, text_scores, *tensors, stats, best_token, best_patch, longest, *flags, True, True, precision
        )

    padded, packed = meta(j, n, d, dtype=dtype), meta(j * n, d, dtype=dtype)
    masks = meta(i, p, dtype=torch.bool), meta(j, n, dtype=torch.bool)
    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        if shape in SHAPES["paper"]:
            both("masked", padded, (None, masks[1], None, 0), True)
            if capability == 90 and dtype != torch.float32:  # where patches with a mask are copied into slots
                both("image_masked", padded, (masks[0], None, None, 0), True)
        else:
            both("packed", packed, (masks[0], None, meta(j + 1, dtype=torch.int64), n), True)
            both("products", padded, (*masks, None, 0), False)
    return {name: _one_of_each([x for x in steps if isinstance(x, Launch)]) for name, steps in found.items()}


def _one_of_each(launches: list[Any]) -> list[Any]:
    """Blocks of a pass differ in where they begin, which is not compiled."""
    return list({(x.kernel, tuple(x is None for x in x.arguments.values())): x for x in launches[::-1]}.values())

"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

# name -> (P, L, D) of the pairs
SHAPES = {
    "paper": [(196, 55, 512)],
    "large": [(1024, 77, 512)],
}
# Bytes per thread, of blocks of [64, 256]: S and what a step makes of it fill the registers, and where the plan is
# wanted (which `entropic` asks for here) its addresses come on top.
MAY_SPILL = {
    ("pair_forward_kernel", "proximal_forward"): 16,
    ("pair_forward_kernel", "entropic_forward"): 128,
    ("pair_backward_kernel", "backward"): 24,  # float16 on sm_120
    ("held_kernel", "proximal_forward"): 384,
    ("held_kernel", "entropic_forward"): 1408,
    ("tiled_iterations_kernel", "entropic_forward"): 16,
}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a batch of 64 pairs."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops._triton.launch import Launch
    from sparc_kernels.ops.optimal_transport import triton

    b, (p, l, d) = 64, shape
    masks = (meta(b, p, dtype=torch.bool), meta(b, l, dtype=torch.bool))
    inputs = (meta(b, p, d, dtype=dtype), meta(b, l, d, dtype=dtype), *masks, meta())
    found: dict[str, list[Any]] = {}
    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        for name, proximal in (("proximal", True), ("entropic", False)):
            results, steps = triton.forward_plan(*inputs, 50, proximal, not proximal, precision)
            found[f"{name}_forward"] = [x for x in steps if isinstance(x, Launch)]
            if proximal:
                gradients = (*inputs, results[1], 50, proximal, True, True, precision)
                _, steps = triton.backward_plan(results[0], *gradients)
                found["backward"] = [x for x in steps if isinstance(x, Launch)]
    return found

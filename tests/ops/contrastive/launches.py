"""The launches of this room's Triton kernels, for the compile-time checks (``tests/compile_kernels.py``)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

__all__ = ["MAY_SPILL", "SHAPES", "plans"]

# name -> (M, N, D) of the matrix; what is common is compiled for the first, and what is rare for the second
SHAPES = {
    "paper": [(65536, 65536, 768)],
    "large": [(8192, 40000, 1024)],
}
# Bytes per thread, by kernel and what for. On sm_90 what is written for ids, the default of the losses, spills 32 bytes
# forward and 216 backward (240 in float16), where two programs of 4 warps to a multiprocessor pay for it
# (``config.py``); that is for supertiles in which some pairs take no part. Those of the softmax in which all do spill
# nothing.
MAY_SPILL = {
    ("logsumexp_kernel", "kept_forward"): 400,
    ("logsumexp_kernel", "ids_forward"): 32,
    ("logsumexp_kernel", "pairs_forward"): 192,
    ("logsumexp_kernel", "labels_forward"): 424,
    ("logsumexp_kernel", "above_forward"): 64,
    ("logsumexp_kernel", "teacher_forward"): 640,
    ("logsumexp_gradient_kernel", "kept_backward"): 320,
    ("logsumexp_gradient_kernel", "ids_backward"): 240,
    ("logsumexp_gradient_kernel", "pairs_backward"): 288,
    ("logsumexp_gradient_kernel", "labels_backward"): 544,
    ("logsumexp_gradient_kernel", "above_backward"): 128,
    ("logsumexp_gradient_kernel", "teacher_backward"): 320,
    ("softplus_kernel", "softplus_ids_backward"): 88,  # float16, as the next
    ("softplus_kernel", "softplus_total_ids_forward"): 120,
    "softplus_kernel": 96,
}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _launches(steps: list[Any]) -> list[Any]:
    """Without the products that a library computes."""
    from sparc_kernels.ops._triton.launch import Launch

    return [step for step in steps if isinstance(step, Launch)]


def plans(capability: int, dtype: torch.dtype, shape: tuple[int, int, int], precision: str) -> dict[str, list[Any]]:
    """Launches by what is asked for, for a matrix of ``shape`` (M, N, D)."""
    from sparc_kernels.ops._triton import launch
    from sparc_kernels.ops.contrastive import triton, triton_losses

    m, n, d = shape
    integer = torch.int64
    embeds = (meta(m, d, dtype=dtype), meta(n, d, dtype=dtype))
    ids = (meta(m, dtype=integer), meta(n, dtype=integer))
    pairs = (meta(m + 1, dtype=integer), meta(4 * m, dtype=integer))
    guide = (meta(m, 512, dtype=dtype), meta(n, 512, dtype=dtype))
    scale, none = meta(), (None, None)
    found: dict[str, list[Any]] = {}

    def logsumexp(
        name: str, scope: tuple[Any, ...], scales: tuple[Any, Any], ids_exclude: bool = True, keep: bool = False
    ) -> None:
        arguments = (*embeds, *scales, *scope)
        (row_lse, stats, *others), found[f"{name}_forward"] = triton.logsumexp_forward_plan(
            *arguments, True, True, ids_exclude, keep, precision
        )
        results = (row_lse, *others)
        grads = [x if x.shape[0] else None for x in results]
        _, found[f"{name}_backward"] = triton.logsumexp_backward_plan(
            *grads, *arguments, stats, ids_exclude, keep, True, True, True, True, precision
        )

    def softplus(name: str, scope: tuple[Any, ...], ids_exclude: bool = True) -> None:
        arguments = (*embeds, scale, meta(), *scope)
        (row_sum, stats), found[f"softplus_{name}_forward"] = triton.softplus_forward_plan(
            *arguments, ids_exclude, False, precision
        )
        _, found[f"softplus_{name}_backward"] = triton.softplus_backward_plan(
            row_sum, *arguments, stats, ids_exclude, False, True, True, True, True, precision
        )
        arguments = (*arguments[:4], meta(m), *arguments[4:])
        (_, _, *kept), found[f"softplus_total_{name}_forward"] = triton.softplus_total_forward_plan(
            *arguments, ids_exclude, True, True, True, True, precision
        )
        _, found[f"softplus_total_{name}_backward"] = triton.softplus_total_backward_plan(
            meta(), embeds[0], *kept, precision
        )

    def paired() -> None:
        arguments = (embeds[0], meta(m, d, dtype=dtype))
        (cosines, stats), found["paired_forward"] = triton.paired_forward_plan(*arguments, precision)
        _, found["paired_backward"] = triton.paired_backward_plan(cosines, *arguments, stats, True, True, precision)

    def losses() -> None:
        arguments = (embeds[0], meta(m, d, dtype=dtype), scale)
        (loss, cosines, stats), found["softmax_loss_forward"] = triton_losses.softmax_forward_plan(
            *arguments, False, precision
        )
        _, found["softmax_loss_backward"] = triton_losses.softmax_backward_plan(
            loss, *arguments, cosines, stats, False, True, True, True, precision
        )
        _, found["sigmoid_loss_forward"] = triton_losses.sigmoid_forward_plan(
            *arguments, meta(), True, True, True, True, True, precision
        )

    with mock.patch.object(launch, "ASSUMED_CAPABILITY", capability):
        if shape in SHAPES["paper"]:
            paired()
            logsumexp("ids", (*ids, *none, *none, *none), (scale, scale))
            if dtype != torch.bfloat16 and precision != "highest":
                return {name: _launches(steps) for name, steps in found.items()}  # the same tiles in other products
            logsumexp("labels", (*ids, *none, *none, *none), (meta(m), meta(n)), ids_exclude=False)
            softplus("ids", (*ids, *none, *none, None))
            losses()
        else:
            logsumexp("kept", (*none, *none, *none, *none), (scale, scale), keep=True)
            logsumexp("pairs", (*ids, *pairs, *none, *none), (scale, meta()))
            logsumexp("above", (*ids, *none, *guide, None, scale), (scale, scale))
            logsumexp("teacher", (*ids, *pairs, *guide, scale, meta(m)), (meta(m), meta(n)), ids_exclude=False)
            softplus("everything", (*ids, *pairs, *guide, scale), ids_exclude=False)
    return {name: _launches(steps) for name, steps in found.items()}

"""The CUDA kernels of the ops, emulated: jobs from torch tensors, results as torch tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests import cases
from tests.emulation import build
from tests.emulation.run import Job, Result, run_jobs

SOURCE = Path(__file__).with_name("ops_emulated.cpp")

H100_BLOCK, RTX_BLOCK = 227 * 1024, 99 * 1024  # shared memory that a block can have, bytes


@dataclass(frozen=True)
class Variant:
    """One way in which the library computes: operands, path, and the device whose shared memory it has."""

    products: str  # bf16, f16, tf32 or float32
    pair_path: bool = False
    shared_bytes: int = H100_BLOCK
    grid: int = 2
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "f16": torch.float16}.get(self.products, torch.float32)

    def serves(self, case: cases.Case) -> bool:
        return not self.pair_path or ((case.L <= 64 or bool(case.lengths)) and (case.P <= 256 or bool(case.patches)))

    def __str__(self) -> str:
        return f"{self.products}-{'pair' if self.pair_path else 'tiled'}-{self.shared_bytes // 1024}k"


VARIANTS = (
    Variant("bf16", pair_path=True),
    Variant("f16", pair_path=True, shared_bytes=RTX_BLOCK),
    Variant("bf16"),
    Variant("f16"),
    Variant("tf32"),
    Variant("float32"),
)


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _strided(tensor: Tensor | None) -> dict[str, Any] | None:
    """The memory from a tensor's first element to its last, and how to walk it."""
    if tensor is None:
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    flat = torch.as_strided(tensor, (span,), (1,), tensor.storage_offset())
    return {"buffer": _numpy(flat.contiguous()), "shape": list(tensor.shape), "strides": list(tensor.stride())}


def _inputs(inputs: cases.Inputs, variant: Variant) -> dict[str, Any]:
    return {
        "patch_embeds": _strided(inputs.patch_embeds),
        "token_embeds": _strided(inputs.token_embeds),
        "token_mask": _strided(inputs.token_mask),
        "patch_mask": _strided(inputs.patch_mask),
        "threshold": None if inputs.threshold is None else np.full(1, inputs.threshold, np.float32),
        "options": {
            "products": variant.products,
            "pair_path": variant.pair_path,
            "shared_bytes": variant.shared_bytes,
            "grid": variant.grid,
            "seed": variant.seed,
        },
    }


BOTH = (True, True)  # gradients of patches and tokens


def fine_grained_job(
    inputs: cases.Inputs,
    variant: Variant,
    backward: bool = True,
    needs: tuple[bool, bool] = BOTH,
    pooled_grads: tuple[Tensor, Tensor] | None = None,
) -> Job:
    """``pooled_grads``: the gradients [B, D] of both means, which are then asked for."""
    given = _inputs(inputs, variant)
    given["need_patches"], given["need_tokens"] = needs
    given["pool"] = pooled_grads is not None
    for name, grad in zip(("grad_pooled_patches", "grad_pooled_tokens"), pooled_grads or ()):
        given[name] = _strided(grad[:, None])
    given["logit_scale"] = inputs.logit_scale.float().reshape(1).numpy()
    given["grad_token_loss"] = _strided(inputs.upstream)
    return Job("fine_grained", {"given": given, "backward": backward})


def grouping_job(
    inputs: cases.Inputs,
    variant: Variant,
    weights: bool,
    grad: Tensor | None = None,
    backward: bool = True,
    needs: tuple[bool, bool] = BOTH,
) -> Job:
    given = _inputs(inputs, variant)
    given["need_patches"], given["need_tokens"] = needs
    given["token_mask"] = None
    given["weights"] = weights
    given["grad"] = _strided(grad)
    return Job("grouping", {"given": given, "backward": backward})


def tensors(result: Result, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a job returned; 16-bit numbers in ``dtype``."""
    found = {}
    for name, array in result.unwrap().items():
        if array.dtype == np.uint16:
            found[name] = torch.from_numpy(array.view(np.int16)).view(dtype)
        else:
            found[name] = torch.from_numpy(array)
    return found


def run(jobs: list[Job], timeout: float = 600) -> list[Result]:
    return run_jobs(build.module(SOURCE), jobs, timeout=timeout)

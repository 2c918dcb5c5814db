"""The sigmoid's sweep in CUDA C++ (``csrc/contrastive``), in place of ``triton_softplus``'s in the same plan.

It makes the same sums and the same G by matrix instructions of warpgroups, on compute capability 9.0, where the pairs
(i, i) are all that take no part. Nothing has timed it, so that no plan takes it unasked: a config with ``native``
(``choose_native``) asks for it, and fails where it is not there; ``SPARC_CUDA_SWEEP=1`` asks for it wherever it serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparc_kernels._dispatch import is_switched_on
from sparc_kernels._native import step_reason
from sparc_kernels.ops._triton.launch import cdiv, describable
from sparc_kernels.ops.contrastive.config import choose_native, runs_of_rows

MULTIPROCESSORS = 132  # of an H100, where no device says


def missing(rows: Tensor) -> str | None:
    """Why there is no kernel for the device of these rows, or None."""
    return step_reason("resident_softplus", rows)


def refusal(rows: Tensor, cols: Tensor, columns: int) -> str | None:
    """Why the kernel cannot serve these embeddings, ``columns`` of them to a block; or None."""
    name, channels = "the native kernel of the sigmoid loss", rows.shape[1]
    if rows.dtype not in (torch.bfloat16, torch.float16):
        return f"{name} takes embeddings in half precision, not {rows.dtype}"
    if choose_native(channels, columns) is None:
        return (
            f"{name} takes 96, 128 or 192 columns at a time and a multiple of 8 channels, at most 1024, as far as they "
            f"fit shared memory, not {columns} columns of {channels} channels"
        )
    if not (describable(rows) and describable(cols)):
        return f"{name} takes embeddings whose rows start at multiples of 16 bytes"
    reason = missing(rows)
    return None if reason is None else f"{name} is not there: {reason}"


def wanted(rows: Tensor, cols: Tensor) -> bool:
    """Whether ``SPARC_CUDA_SWEEP`` asks for the kernel and it serves these embeddings."""
    if not is_switched_on("SPARC_CUDA_SWEEP"):
        return False
    config = choose_native(rows.shape[1])
    return config is not None and refusal(rows, cols, config.block_n) is None


@dataclass(frozen=True)
class Sweep:
    """Partial sums and G of a block, by the arguments of the op."""

    rows: Tensor  # [M, D]
    cols: Tensor  # [N, D]
    row_inverse: Tensor  # [M], of the norms
    col_inverse: Tensor  # [N]
    scale: Tensor  # []
    bias: Tensor  # []
    weights: Tensor  # [M]: what each row's sum is multiplied with
    power: Tensor | None  # [2]: the power of two in front of G, float16 only
    gradient: Tensor | None  # G [M, N], rows with room for a multiple of 16 columns
    partials: Tensor  # [3, cdiv(N, columns), M]
    columns: int
    diagonal: int  # column less row of the pairs that take no part
    runs: int  # of rows

    @classmethod
    def of(cls, columns: int, diagonal: int, **tensors: Any) -> Sweep:
        """In as many runs of rows as fill the device."""
        rows, cols = tensors["rows"], tensors["cols"]
        many = MULTIPROCESSORS
        if rows.is_cuda:
            many = torch.cuda.get_device_properties(rows.device).multi_processor_count
        runs = runs_of_rows(rows.shape[0], cdiv(cols.shape[0], columns), many)
        return cls(**tensors, columns=columns, diagonal=diagonal, runs=runs)

    def run(self) -> None:
        """Queue it on the current stream."""
        run_sweep(**vars(self))


def run_sweep(**arguments: Any) -> None:
    """The registered op."""
    torch.ops.sparc_kernels.resident_softplus(**arguments)

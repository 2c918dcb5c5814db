"""Triton kernels and their launchers: one program per row."""

from __future__ import annotations

import triton
import triton.language as tl
from sparc_kernels.ops.paired_dot.schema import fake_backward, fake_forward
from torch import Tensor

from sparc_kernels.ops._triton.launch import Launch, run_all


@triton.jit
def forward_kernel(p_left, p_right, p_weight, p_out, p_stats, D, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    row, o_d = tl.program_id(0), tl.arange(0, BLOCK_D)
    offset = row.to(tl.int64) * D + o_d
    left = tl.load(p_left + offset, mask=o_d < D, other=0).to(tl.float32)
    right = tl.load(p_right + offset, mask=o_d < D, other=0).to(tl.float32)
    product = tl.sum(left * right, 0)
    tl.store(p_stats + row, product)
    tl.store(p_out + row, tl.load(p_weight) * product)


@triton.jit
def backward_kernel(p_grad, p_other, p_weight, p_grad_rows, D, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    row, o_d = tl.program_id(0), tl.arange(0, BLOCK_D)
    offset = row.to(tl.int64) * D + o_d
    other = tl.load(p_other + offset, mask=o_d < D, other=0).to(tl.float32)
    grad = tl.load(p_grad + row) * tl.load(p_weight) * other
    tl.store(p_grad_rows + offset, grad.to(p_grad_rows.dtype.element_ty), mask=o_d < D)


def _launch(kernel: object, rows: Tensor, **tensors: Tensor) -> Launch:
    b, n, d = rows.shape
    return Launch(kernel, (b * n,), {**tensors, "D": d, "BLOCK_D": triton.next_power_of_2(d)})


def forward(left: Tensor, right: Tensor, weight: Tensor, float32_precision: str) -> tuple[Tensor, Tensor]:
    """The op: out [B, N], stats [1, B, N]."""
    left, right = left.contiguous(), right.contiguous()
    out, stats = fake_forward(left, right, weight, float32_precision)
    launch = _launch(forward_kernel, left, p_left=left, p_right=right, p_weight=weight, p_out=out, p_stats=stats)
    run_all([launch], left)
    return out, stats


def backward(
    grad_out: Tensor,
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    need_left: bool,
    need_right: bool,
    float32_precision: str,
) -> tuple[Tensor, Tensor]:
    """The op: gradients of left and right [B, N, D], or [0] for one that is not needed."""
    left, right, grad = left.contiguous(), right.contiguous(), grad_out.contiguous()
    grads = fake_backward(grad, left, right, weight, need_left, need_right, float32_precision)
    launches = [
        _launch(backward_kernel, left, p_grad=grad, p_other=other, p_weight=weight, p_grad_rows=found)
        for needed, other, found in zip((need_left, need_right), (right, left), grads)
        if needed
    ]
    run_all(launches, left)
    return grads

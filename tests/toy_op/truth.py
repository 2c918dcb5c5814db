"""The op's own tests, as ``tests/ops/<op>/test_<op>.py`` would hold them: every backend against float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparc_kernels.functional.paired_dot import paired_dot
from sparc_kernels.ops.paired_dot.reference import paired_dot_reference
from torch import Tensor

from tests import tolerance


@pytest.mark.parametrize("shape", [(2, 3, 20), (1, 1, 1), (3, 5, 64), (0, 3, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_against_truth(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
    upstream = torch.rand(shape[:2], generator=generator)

    def run(function: Callable[..., Tensor], to: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
        leaves = [x.to(to).requires_grad_() for x in (*rows, torch.tensor(0.7))]
        weight = leaves[2].to(torch.float64 if to == torch.float64 else torch.float32)
        out = function(leaves[0], leaves[1], weight=weight, **options)
        return out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))

    truth = run(paired_dot_reference, torch.float64)
    eager = run(paired_dot_reference, dtype, compute_dtype=dtype)
    found = run(paired_dot, dtype, backend=backend)
    for name, result, expected, low in zip(("out", "left", "right", "weight"), found, truth, eager):
        tolerance.assert_close(name, result, expected, low, dtype)

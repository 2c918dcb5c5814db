"""The tolerance must tell right from wrong: planted faults have to fail in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tolerance
from tests.ops.alignment import cases

CASE = cases.Case("planted", B=3, P=20, L=6, D=32, lengths=(6, 4, 5))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def results(request: pytest.FixtureRequest) -> tuple[torch.dtype, cases.Inputs, cases.Result, cases.Result]:
    dtype = request.param
    inputs = cases.draw(CASE, dtype)
    return dtype, inputs, cases.reference(inputs), cases.reference(inputs.to(dtype), compute_dtype=dtype)


def _fails(name: str, wrong: Tensor, truth: Tensor, eager: Tensor, dtype: torch.dtype, least: float = 0.0) -> None:
    with pytest.raises(AssertionError, match=name):
        tolerance.assert_close(name, wrong, truth, eager, dtype, least)


def test_eager_passes(results: Any) -> None:
    dtype, _, truth, eager = results
    for (name, expected), (_, found) in zip(truth.named(), eager.named()):
        tolerance.assert_close(name, found, expected, found, dtype)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "constant": lambda x: torch.full_like(x, float(x.mean()) if x.dim() else 1.0),
    "sign-flipped": lambda x: -x,
    "doubled": lambda x: 2 * x,
    "shuffled": lambda x: x.roll(1, 1) if x.dim() > 1 else x * 1.2,
    "captions-swapped": lambda x: x.roll(1, 0) if x.dim() > 1 else x * 0.8,
    "one-nan": lambda x: x.flatten().index_fill(0, torch.tensor([0]), torch.nan).view_as(x),
    "one-infinity": lambda x: x.flatten().index_fill(0, torch.tensor([0]), torch.inf).view_as(x),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_fails(results: Any, fault: str) -> None:
    dtype, inputs, truth, eager = results
    for (name, expected), (_, found) in zip(truth.named(), eager.named()):
        _fails(name, FAULTS[fault](expected), expected, found, dtype, cases.least_of(name, inputs))


@pytest.mark.parametrize("mask", ["token_mask", "patch_mask"])
def test_off_by_one_mask_fails(results: Any, mask: str) -> None:
    dtype, inputs, truth, eager = results
    if mask == "token_mask":
        wrong_mask = inputs.token_mask.clone()
        wrong_mask[torch.arange(3), inputs.token_mask.sum(1) - 1] = False  # one token too few per caption
    else:
        wrong_mask = torch.arange(CASE.P).expand(CASE.B, -1) < CASE.P - 1
    wrong = cases.reference(cases.replace(inputs, **{mask: wrong_mask}))
    for (name, expected), (_, found), (_, fault) in zip(truth.named(), eager.named(), wrong.named()):
        if name == "grad_logit_scale" and dtype == torch.bfloat16:
            continue  # one number; bfloat16 eager errs by as much as one token weighs
        _fails(name, fault, expected, found, dtype, cases.least_of(name, inputs))


def test_wrong_shape_fails() -> None:
    with pytest.raises(AssertionError, match="shape"):
        tolerance.errors(torch.zeros(2, 3), torch.zeros(3, 2))


def test_truth_of_zeros_allows_zeros_only() -> None:
    zeros = torch.zeros(3)
    tolerance.assert_close("zeros", zeros, zeros, zeros, torch.float32)
    _fails("zeros", torch.tensor([0.0, 1e-9, 0.0]), zeros, zeros, torch.float32)


def test_bound_is_capped() -> None:
    truth = torch.ones(4)
    assert tolerance.bounds(-truth, truth, torch.bfloat16).l2 == tolerance.CAP


def test_bias_counts() -> None:
    """Many small errors of one sign: each within its bound, together not."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4096, generator=generator, dtype=torch.float64)
    noise = 1e-3 * torch.randn(4096, generator=generator, dtype=torch.float64)
    noise -= noise.mean()
    drift = torch.full_like(truth, 1.5e-3)
    tolerance.assert_close("noise", truth - noise, truth, truth + noise, torch.float64)
    _fails("drift: bias", truth + drift, truth, truth + noise, torch.float64)


def test_matrix_units_may_cut_off_last_bits() -> None:
    """By half of eps an instruction, and no more: a tf32 product alone is beyond it."""
    truth = torch.rand(512, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    eager, instructions = truth.float(), 192
    tolerance.assert_close("cut", truth * (1 - instructions * 2.0**-24), truth, eager, torch.float32, 0.0, instructions)
    for factor in (1 - 192 * 2.0**-23, 1 - 2.0**-11, 0.0, -1.0):
        with pytest.raises(AssertionError, match="cut"):
            tolerance.assert_close("cut", truth * factor, truth, eager, torch.float32, 0.0, instructions)

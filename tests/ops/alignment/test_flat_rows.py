"""The rule by which a row of similarities counts as flat, in every layer: max - min <= 16 eps max(|min|, |max|)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from tests.conftest import DTYPES, device_of

FLAT = {15: True, 16: True, 17: False}  # by spread in eps; a rule of 8 or 32 eps would fail at the first or the last
LAYERS = [
    pytest.param(backend, dtype, marks=pytest.mark.gpu if backend == "cuda" else ())
    for backend, dtypes in DTYPES.items()
    for dtype in dtypes
]
VALID = 3
FEW, MANY = VALID, 1100  # patches: one program of a GPU's kernels holds them, or tiles of them


def draw(spread: int, sign: int, n_patches: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """patches [1, P, 16], tokens [1, 2, 16] and patch_mask [1, P]: three valid patches, NaN in the others.

    The first token's similarities with them are sign (1 - k eps) for k = 0, spread // 2 and spread, eps that of the
    accumulation dtype, exactly so in every dtype and order of summation; the largest magnitude is 1. Each patch has a
    channel of its own besides, which the second token sees.
    """
    eps = (2.0**-26, 2.0**-26) if dtype == torch.float64 else (2.0**-11, 2.0**-12)  # factors that float16 holds
    patches = torch.full((1, n_patches, 16), torch.nan, dtype=torch.float64)
    patches[:, :VALID] = torch.eye(VALID, 16).roll(2, 1)
    patches[:, :VALID, 0] = 1
    patches[:, :VALID, 1] = torch.tensor([0, spread // 2, spread]) * eps[0]
    tokens = torch.zeros(1, 2, 16, dtype=torch.float64)
    tokens[0, 0, :2] = torch.tensor([sign, -sign * eps[1]])
    tokens[0, 1, 2:5] = torch.tensor([0.25, 0.5, 2.0])
    mask = torch.arange(n_patches)[None] < VALID
    return patches.to(device, dtype), tokens.to(device, dtype), mask.to(device)


@pytest.mark.parametrize("n_patches", [FEW, MANY])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("spread", FLAT)
@pytest.mark.parametrize(("backend", "dtype"), LAYERS)
def test_weights(backend: str, dtype: torch.dtype, spread: int, sign: int, n_patches: int) -> None:
    """A flat row weighs all its patches alike and has no gradient; any other leaves its minimum out and has one."""
    patches, tokens, mask = draw(spread, sign, n_patches, dtype, device_of(backend))
    patches.requires_grad_()
    weights = sk.alignment_weights(patches, tokens, patch_mask=mask, backend=backend)[0, 0, :VALID]
    lowest = VALID - 1 if sign == 1 else 0
    (2.0**-13 * weights[1]).backward()  # small enough for float16 where it is divided by the range
    grad = patches.grad[0, :VALID, 0]
    assert grad.isfinite().all()
    if FLAT[spread]:
        assert torch.equal(weights, torch.full_like(weights, 1 / VALID))
        assert grad.count_nonzero() == 0
    else:
        assert weights[lowest] == 0
        assert weights[1] > 0.25
        assert grad[lowest] != 0


@pytest.mark.parametrize("n_patches", [FEW, MANY])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("backend", "dtype"), LAYERS)
def test_loss(backend: str, dtype: torch.dtype, sign: int, n_patches: int) -> None:
    """The loss's own kernels follow the rule too: on both sides of it they are near eager, not near the other side."""

    def loss(spread: int, backend: str) -> Tensor:
        patches, tokens, mask = draw(spread, sign, n_patches, dtype, device_of(backend))
        return sk.fine_grained_loss(patches, tokens, patch_mask=mask, backend=backend).cpu()

    flat, other = loss(16, "eager"), loss(17, "eager")
    apart = (flat - other).abs()
    assert apart > 0.01
    for spread, expected in ((15, flat), (16, flat), (17, other)):
        assert (loss(spread, backend) - expected).abs() < 0.1 * apart

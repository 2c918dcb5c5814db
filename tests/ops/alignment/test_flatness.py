"""When a row of similarities counts as constant: one rule, at the same number on every backend and in every op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.ops._alignment.eager import DEGENERATE_EPS
from tests.conftest import BACKENDS, DTYPES, device_of

ROUNDINGS = (0, 1, DEGENERATE_EPS - 1, DEGENERATE_EPS, DEGENERATE_EPS + 1, 3 * DEGENERATE_EPS)


def embeds(roundings: int, size: float, dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
    """Two patches whose similarities to the first token are ``size`` and ``roundings`` roundings more, exactly; the
    second token sees them well apart."""
    step = roundings * torch.finfo(dtype).eps
    patches = torch.tensor([[[1, 2], [1 + step, 3]]], dtype=dtype) * torch.tensor([size, 1], dtype=dtype)
    return patches.to(device_of(backend)), torch.eye(2, dtype=dtype, device=device_of(backend))[None]


def full_precision(backend: str) -> list[torch.dtype]:
    """Embeddings in half precision differ by more than this, or not at all."""
    return [dtype for dtype in DTYPES[backend] if dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1.0, -1.0, 2.0**-20, 2.0**20])
def test_where_a_row_becomes_constant(size: float, backend: str) -> None:
    for dtype in full_precision(backend):
        for roundings in ROUNDINGS:
            patches, tokens = embeds(roundings, size, dtype, backend)
            weights = sk.alignment_weights(patches, tokens, backend=backend)[0, 0].tolist()
            largest = [0.0, 1.0] if size > 0 else [1.0, 0.0]
            assert weights == ([0.5, 0.5] if roundings <= DEGENERATE_EPS else largest), (roundings, dtype)
            groups = sk.language_grouped_embeddings(patches, tokens, backend=backend)[0, 0, 1]
            assert groups == weights[0] * 2 + weights[1] * 3, (roundings, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_has_the_same_rule(backend: str) -> None:
    for dtype in full_precision(backend):
        losses = []
        for roundings in ROUNDINGS:
            patches, tokens = embeds(roundings, 1.0, dtype, backend)
            found, expected = (
                sk.fine_grained_loss(patches, tokens, reduction="none", backend=each) for each in (backend, "eager")
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            losses.append(found[0, 0].item())
        flat, steep = losses[: ROUNDINGS.index(DEGENERATE_EPS) + 1], losses[ROUNDINGS.index(DEGENERATE_EPS) + 1 :]
        assert min(abs(one - other) for one in flat for other in steep) > 0.1
        assert max(flat) - min(flat) < 1e-3

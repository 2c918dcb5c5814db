"""Losses of two processes are the single process's at the global batch; each case runs on all ranks."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import world

MODULE = "tests.distributed.training"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="this PyTorch has no gloo",
    ),
]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return world.run(2, MODULE)


@pytest.mark.parametrize("name", world.cases_of(MODULE))
def test_two_ranks(name: str, found: dict[str, str]) -> None:
    assert not found[name], found[name]

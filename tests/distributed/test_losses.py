"""Losses of four processes are the single process's at the global batch; each case runs on all ranks."""

from __future__ import annotations

import pytest

from tests.distributed import world
from tests.distributed.marks import NEEDS_GLOO

MODULE = "tests.distributed.losses"

pytestmark = [pytest.mark.slow, NEEDS_GLOO]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return world.run(4, MODULE)


@pytest.mark.parametrize("name", world.cases_of(MODULE))
def test_four_ranks(name: str, found: dict[str, str]) -> None:
    assert not found[name], found[name]

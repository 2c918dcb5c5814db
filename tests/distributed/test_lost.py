"""A rank that is gone ends the others' call by an error that names it, within the group's timeout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.marks import NEEDS_GLOO
from tests.distributed.world import CHECKOUT

pytestmark = NEEDS_GLOO


@pytest.mark.parametrize(
    "when, doing", [("call", "opened the call"), ("backward", "exchanged"), ("silent", "opened the call")]
)
def test_a_lost_rank_is_named(when: str, doing: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.distributed.lost", str(tmp_path)]
    ranks = [
        subprocess.Popen([*command, str(rank), when], env=environment, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        printed, _ = ranks[0].communicate(timeout=60)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    for done in (doing, "passed blocks on") if when == "backward" else (doing,):
        assert f"contrastive_loss: rank 0 of 2 lost the others while it {done}" in printed, printed

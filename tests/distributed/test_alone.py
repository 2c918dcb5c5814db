"""A rank that is alone, but exchanges with itself: what one GPU can show of NCCL."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.distributed.world import CHECKOUT

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_exchanges_with_itself(device: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.distributed.alone", device]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count("right") == 16

"""How many kernels Triton compiles for batches whose captions differ in length; in a process of its own, as it is the
interpreter's turn in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
COUNT = """
import torch
from sparc_kernels.ops.fine_grained import triton
from tests.compile_kernels import specialization

meta = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="meta")
keys = set()
for l in range(1, 65):
    masks = meta(48, l, dtype=torch.bool), meta(48, 196, dtype=torch.bool)
    inputs = meta(48, 196, 512), meta(48, l, 512), *masks, meta(dtype=torch.float32), None
    (loss, stats, *means), [forward] = triton.forward_plan(*inputs, True, True, "highest")
    _, [backward] = triton.backward_plan(loss, *means, *inputs, stats, True, True, "highest")
    keys |= {(launch.kernel.__name__, str(specialization(launch, 90))) for launch in (forward, backward)}
print(len(keys))
"""


def test_captions_of_every_length_share_kernels() -> None:
    """Each of the pair path's two kernels is compiled once for each of its three tiles, not for each length."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    found = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) <= 2 * 3

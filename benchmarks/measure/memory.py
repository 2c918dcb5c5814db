"""Peak memory of one call beyond its inputs, its result and its gradients.

On a GPU from the allocator. On the CPU in a fresh process (``python -m benchmarks.measure.memory``), where nothing that
was freed earlier hides a peak.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure.case import Case, Function, Inputs
from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.parity import run
from benchmarks.measure.providers import providers


class PeakResidentMemory:
    """Context manager: ``bytes`` is by how much the resident memory of this process rose at its highest (Linux)."""

    bytes: int

    def __enter__(self) -> PeakResidentMemory:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but not given back would hide a rise
        self._before = self._status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = max(0, self._status("VmHWM") - self._before)

    @staticmethod
    def _status(field: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
        raise RuntimeError(f"no {field} in /proc/self/status")


def gpu_peak(op: Function, case: Case, inputs: Inputs) -> int:
    """After a first call, so that workspaces which a library keeps for good are not counted."""
    gc.collect()  # what is freed meanwhile would hide a rise
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run(op, case, inputs)
    torch.cuda.synchronize()
    kept = sum(tensor.nbytes for tensor in results)
    return max(0, torch.cuda.max_memory_allocated() - before - kept)


def cpu_peak(provider: str, case: Case) -> int:
    command = [sys.executable, "-m", "benchmarks.measure.memory", provider, json.dumps(case.to_dict())]
    result = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"measuring memory failed: {result.stderr.strip()[-300:]}")
    return int(result.stdout.split()[-1])


def _print_peak(provider: str, case: Case) -> None:
    device, build, small = torch.device("cpu"), providers(case.op)[provider].build, case.small(batch=2)
    run(build(small), small, case.op.draw(small, device))  # starts the threads and loads what is loaded on first use
    op, inputs = build(case), case.op.draw(case, device)
    with PeakResidentMemory() as peak:
        results = run(op, case, inputs)
    print(max(0, peak.bytes - sum(tensor.nbytes for tensor in results)))


if __name__ == "__main__":
    from benchmarks.measure.registry import case_of  # which knows this module

    _print_peak(sys.argv[1], case_of(json.loads(sys.argv[2])))

"""Timing side by side, peak memory, and the description of the machine; shared by every benchmark."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

CHECKOUT = Path(__file__).parent.parent


def interleaved(
    functions: dict[str, Callable[[], object]], seconds: float = 8.0, least: int = 5, most: int = 60
) -> dict[str, list[float]]:
    """Seconds of every call of every function, called in turn: what disturbs the machine disturbs all of them alike.

    Rounds start with another function each time, until ``seconds`` have passed or ``most`` rounds were run. The first
    round, which warms up, is not counted.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for function in functions.values():
        function()
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            functions[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median, 20th and 80th percentile, minimum."""
    ordered = sorted(1e3 * value for value in seconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"p20": at(0.2), "p50": statistics.median(ordered), "p80": at(0.8), "min": ordered[0]}


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the rounds of (time of ``over``) / (time of ``under``), each pair taken from one round."""
    return statistics.median(a / b for a, b in zip(times[over], times[under]))


def peak_memory(module: str, *arguments: object) -> int:
    """Bytes that ``python -m module arguments`` prints: a fresh process, where nothing freed earlier hides a peak."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    return int(result.stdout.split()[-1])


class OthersShare:
    """Context manager: ``share`` is how much of the machine other processes used meanwhile (1: all cores; Linux)."""

    share: float

    def __enter__(self) -> OthersShare:
        self._before = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        busy, own, wall = (after - before for after, before in zip(self._now(), self._before))
        self.share = max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        times = os.times()
        return (user + nice + system) / os.sysconf("SC_CLK_TCK"), times.user + times.system, time.perf_counter()


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


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return (
        f"{named.get('model name', platform.machine())} (family {named.get('cpu family')}, model {named.get('model')})"
    )


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    return result.stdout.strip()


def environment() -> dict[str, object]:
    """What a row of results has to say about where it was measured."""
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", "csrc", "sparc_kernels", "setup.py", "benchmarks/*.py"
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + (" (with changes)" if changed else ""),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }

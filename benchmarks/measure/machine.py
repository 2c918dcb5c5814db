"""The machine that a row was measured on: its description, its own two rates, and who else used it meanwhile."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from sparc_kernels import _native

CHECKOUT = Path(__file__).parents[2]
GPU_ONLY = (".cu", ".cuh", "_cuda.cpp")


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no CUDA device")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def _seconds(function: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The fastest of a few calls: a roof is what the machine can do."""
    function()
    best = float("inf")
    for _ in range(rounds):
        synchronize(device)
        begin = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


@cache
def roofs(device: torch.device, dtype: torch.dtype, quick: bool = False) -> dict[str, float]:
    """Copy bandwidth (bytes read and written) and matrix rate of ``dtype``, through torch, in this process.

    The copy is far larger than every cache, the product is square, and both work on random numbers: zeros run faster.
    """
    gpu = device.type == "cuda"
    size, width = (2**30, 8192) if gpu else (2**28, 2048)
    if quick:
        size, width = size // 16, width // 4
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    rounds = 3 if quick else 10
    copy = _seconds(partial(target.copy_, source), device, rounds)
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    product = _seconds(partial(torch.matmul, a, b), device, rounds)
    return {"copy_gb_per_s": 2 * size / copy / 1e9, "matrix_gflop_per_s": 2 * width**3 / product / 1e9}


@cache
def l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


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


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache
def sources_digest(device_type: str) -> str:
    """A name for the kernels' sources, where they have no commit or were changed since.

    Two rows with the same digest measured the same code, whatever else was committed between them. For a CPU the
    sources that only a GPU runs do not count. Read once: what is edited while a process runs is not what it runs.
    """
    files = [path for path in (CHECKOUT / "csrc").rglob("*") if path.is_file()]
    files += [path for path in (CHECKOUT / "sparc_kernels").rglob("*.py") if "train" not in path.parts]
    digest = hashlib.sha256()
    for path in sorted(files):
        name = str(path.relative_to(CHECKOUT))
        if device_type == "cpu" and (name.endswith(GPU_ONLY) or "triton" in name):
            continue
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def _commit(given: str | None) -> str:
    if given:
        return given
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    watched = ("csrc", "sparc_kernels", "setup.py", "benchmarks/*.py")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", *watched)
    return head + (" (with changes)" if changed else "")


def environment(device: torch.device, commit: str | None = None) -> dict[str, object]:
    """What a row of results has to say about where it was measured. ``commit``: for a copy without its history."""
    described: dict[str, object] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(commit),
        "sources": sources_digest(device.type),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
        return described | {
            "device": f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})",
            "driver": driver[0] if driver else "unknown",
            "cuda": torch.version.cuda,
        }
    return described | {
        "device": f"{_cpu_model()}, {torch.get_num_threads()} threads",
        "driver": "none",
        "cpu_capability": _native.build_info()["cpu_capability"],
    }

"""Runs functions of an emulated module in a process of its own, under the sanitizers' libraries."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.emulation import build


@dataclass(frozen=True)
class Job:
    """A call of a function of the module: keyword arguments are numpy arrays and plain values."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What the function returned, or the text of the exception or of the sanitizer's report."""

    value: Any
    error: str | None

    def unwrap(self) -> Any:
        assert self.error is None, self.error
        return self.value


def run_jobs(module: Path, jobs: Sequence[Job], timeout: float = 300) -> list[Result]:
    """The results of the jobs, in their order. One process serves them all; where a sanitizer ends it, the next job
    gets a new one. ``module`` comes from :func:`build.module`."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="emulation-") as name:
        folder = Path(name)
        (folder / "jobs.pickle").write_bytes(pickle.dumps([(job.function, job.arguments) for job in jobs]))
        while len(results) < len(jobs):
            report = _serve(module, folder, len(results), timeout)
            while (path := folder / f"{len(results)}.pickle").is_file():
                results.append(Result(*pickle.loads(path.read_bytes())))
            if len(results) == len(jobs):
                break
            if not (folder / "started").is_file():  # no fault of the job
                raise RuntimeError(f"the emulation did not start\n{report}")
            results.append(Result(None, _summary(report)))
    return results


def _serve(module: Path, folder: Path, first: int, timeout: float) -> str:
    """Serves jobs from ``first`` on until all are done or the process dies; what it wrote to stderr."""
    # libstdc++ must be there when libasan starts, which looks for what it throws with.
    libraries = [build.runtime_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(library for library in libraries if library is not None),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(build.HERE / "serve.py"), str(module), str(folder), str(first)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as caught:
        return f"{caught.stderr!r}\ntimed out after {timeout} seconds"
    return f"{done.stderr}\nexit status {done.returncode}"


def _summary(report: str) -> str:
    """The lines of a sanitizer's report that say what happened, then its beginning."""
    telling = re.findall(
        r"^.*(?:ERROR: AddressSanitizer|runtime error:|SUMMARY:|timed out|exit status).*$", report, re.M
    )
    return "\n".join([*telling, "", report[:6000]])

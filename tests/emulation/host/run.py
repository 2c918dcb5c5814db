"""Runs functions of an emulated module in a process of its own, under the sanitizers' libraries."""

from __future__ import annotations

import functools
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulation.host import build


@dataclass(frozen=True)
class Result:
    """What the function returned, or the text of the exception or of the sanitizer's report."""

    value: Any
    error: str | None

    def unwrap(self) -> Any:
        assert self.error is None, self.error
        return self.value


class Server:
    """Calls functions of a module (a path from :func:`build.module`) one after another. One process serves them all;
    where a sanitizer ends it, the next call gets a new one. It ends with the process that started it."""

    def __init__(self, module: Path) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 (what the processes write to stderr; it lives as long)

    def call(self, function: str, timeout: float = 600, **arguments: Any) -> Result:
        """The function's result. Arguments are numpy arrays, plain values, and lists and dictionaries of them."""
        process = self._process or self._start()
        self._process = None  # until it has answered: what interrupts this call leaves no answer to the next one
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            pickle.dump((function, arguments), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            result = Result(*pickle.load(process.stdout))
            self._process = process
            return result
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # the process is gone
            return Result(None, _summary(self._ended(process)))
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
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
        self._report.seek(0)
        self._report.truncate()
        process = subprocess.Popen(
            [sys.executable, str(build.HERE / "serve.py"), str(self._module)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._report,
        )
        assert process.stdout is not None
        if process.stdout.read(5) != b"ready":  # no fault of the call
            raise RuntimeError(f"the emulation did not start\n{self._ended(process)}")
        return process

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """What the process wrote to stderr, and how it ended."""
        status = process.wait()
        self._report.seek(0)
        killed = " (killed: no answer in time?)" if status < 0 else ""
        return f"{self._report.read().decode(errors='replace')}\nexit status {status}{killed}"


@functools.cache
def server(source: Path) -> Server:
    """The process that serves the module made of this file to the whole test run."""
    return Server(build.module(source))


def _summary(report: str) -> str:
    """The lines of a sanitizer's report that say what happened, then its beginning."""
    telling = re.findall(r"^.*(?:ERROR: AddressSanitizer|runtime error:|SUMMARY:|exit status).*$", report, re.M)
    return "\n".join([*telling, "", report[:6000]])

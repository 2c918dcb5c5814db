"""The steps of :mod:`tools.gpu_check`: what each runs, and what came of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.registry import suites
from tools.gpu_check.counters import OPTIONS, keep

OPS_TESTS = ("tests/ops", "tests/test_rooms.py")
DRY_TESTS = ("tests/ops/grouping", "-k", "(eager or cpu) and small")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
GRACE = 45.0  # seconds beyond its budget that a suite may take for the row it is in


@dataclass(frozen=True)
class Step:
    """A command, or (``action``) a function that gives the detail or raises.

    ``weight``: its share of its part's time. ``budgeted``: the command is told its budget and ends by itself.
    """

    name: str
    part: str
    command: tuple[str, ...] = ()
    action: Callable[[], str] | None = None
    weight: float = 1.0
    budgeted: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    junit: Path | None = None


@dataclass
class Outcome:
    name: str
    part: str
    status: str  # ok, failed, timed out, refused, skipped
    seconds: float
    detail: str = ""


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def run_step(step: Step, budget: float, left: float, options: argparse.Namespace) -> Outcome:
    """Runs a step within ``budget`` seconds (``left``: until its part must end) and says how it went."""
    if budget < 3:
        return Outcome(step.name, step.part, "skipped", 0.0, "no time left")
    print(f"{step.name} ({budget:.0f} s)", flush=True)
    begin = time.monotonic()
    try:
        if step.action is not None:
            status, detail = "ok", step.action()
        else:
            status, detail = _run_command(step, budget, left, options.out / "steps.log")
    except Exception as error:
        status, detail = "failed", f"{type(error).__name__}: {error}"
    return Outcome(step.name, step.part, status, round(time.monotonic() - begin, 1), " ".join(detail.split()))


def _run_command(step: Step, budget: float, left: float, log: Path) -> tuple[str, str]:
    command, limit = [*step.command], budget
    if step.budgeted:
        command += ["--budget", f"{budget:.0f}"]
        limit = min(budget + GRACE, left)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", **dict(step.environment)}
    with log.open("ab") as file:
        file.write(f"\n=== {step.name}: {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # its own children too: test workers, compilers
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return "timed out", f"stopped after {limit:.0f} s; {_last_line(log, start)}"
            raise
    if "Device not supported" in _text(log, start):
        return "refused", "compute-sanitizer does not serve this device"
    if "ERR_NVGPUCTRPERM" in _text(log, start):
        return "refused", "this user may not read the device's counters"
    detail = _junit_detail(step.junit) if step.junit else _last_line(log, start)
    if code == 5 and step.junit:  # pytest: nothing was collected
        return "failed", "no test was found"
    return ("ok" if code == 0 else "failed"), detail if code == 0 else f"exit {code}; {detail}"


def _text(log: Path, start: int) -> str:
    return log.read_bytes()[start:].decode(errors="replace")


def _last_line(log: Path, start: int) -> str:
    lines = [line for line in _text(log, start).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _junit_detail(path: Path) -> str:
    """Counts, and the names of the first tests that failed."""
    if not path.exists():
        return "no report"
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    bad = [
        f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    return text + (f": {'; '.join(bad[:4])}" if bad else "")


def steps_of_build(options: argparse.Namespace) -> list[Step]:
    """The native library in its place, then what this machine can use."""
    report = (
        "from sparc_kernels import __main__, available_backends; __main__.main(); "
        "print(*(f'{name}: {reason or \"usable\"}' for name, reason in available_backends().items()), sep='; ')"
    )
    doctor = Step("what this machine can use", "setup", python("-c", report))
    if options.wheel is not None:
        wheel = options.wheel.resolve()
        return [Step("native library from the wheel", "setup", action=lambda: unpack(wheel)), doctor]
    if options.dry:
        return [doctor]
    major, minor = torch.cuda.get_device_capability()
    environment = (("SPARC_BUILD_CUDA", "1"), ("SPARC_CUDA_ARCHITECTURES", f"{major}{minor}"))
    build = python("setup.py", "-q", "build_ext", "--inplace")
    return [Step("native library built here", "setup", build, environment=environment), doctor]


def unpack(wheel: Path, target: Path = CHECKOUT) -> str:
    """The shared objects of a wheel into the checkout; says which of its Python files are not the checkout's."""
    taken, others = [], []
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("sparc_kernels/") and name.endswith(".so"):
                place = target / name
                place.unlink(missing_ok=True)  # a process may have it mapped
                place.write_bytes(archive.read(name))
                taken.append(place.name)
            elif name.startswith("sparc_kernels/") and name.endswith(".py"):
                mine = target / name
                if not mine.is_file() or mine.read_bytes() != archive.read(name):
                    others.append(name)
    if not taken:
        raise FileNotFoundError(f"{wheel.name} holds no native library")
    return f"{', '.join(taken)} of {wheel.name}" + (
        f"; {len(others)} other Python files, e.g. {others[0]}" if others else ""
    )


def steps_of_tests(options: argparse.Namespace) -> list[Step]:
    def step(name: str, junit: str, *arguments: str, weight: float) -> Step:
        path = options.out / junit
        workers = ("-n", "4") if importlib.util.find_spec("xdist") and not options.dry else ()
        limit = ("--timeout", "120") if importlib.util.find_spec("pytest_timeout") else ()
        common = ("-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={path}", *limit, *workers)
        return Step(name, "tests", python("-m", "pytest", *common, *arguments), weight=weight, junit=path)

    if options.dry:
        return [
            step("tests marked gpu", "junit_gpu.xml", "-m", "gpu", DRY_TESTS[0], weight=1),
            step("ops, every backend", "junit_ops.xml", "-m", "not gpu", *DRY_TESTS, weight=1),
        ]
    return [
        step("tests marked gpu", "junit_gpu.xml", "-m", "gpu", "tests", weight=1),
        step("ops, every backend", "junit_ops.xml", "-m", "not gpu", *OPS_TESTS, weight=2),
    ]


def steps_of_sanitizer(options: argparse.Namespace) -> list[Step]:
    target = python("-m", "tools.gpu_check.sanitizer_target")
    if options.dry:
        return [Step("sanitizer's target, without it", "sanitizer", target)]
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        return [Step("compute-sanitizer", "sanitizer", action=lambda: "not installed: nothing was watched")]
    uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)  # each tensor its own allocation, whose edges are watched
    return [
        Step(
            f"compute-sanitizer {name}",
            "sanitizer",
            (tool, "--tool", name, "--error-exitcode", "99", *target),
            environment=uncached if name == "memcheck" else (),
        )
        for name in SANITIZERS
    ]


def steps_of_counters(options: argparse.Namespace) -> list[Step]:
    target = python("-m", "tools.gpu_check.counters_target")
    if options.dry:
        return [Step("counters' target, without ncu", "counters", target)]
    tool = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(tool).is_file():
        return [Step("Nsight Compute", "counters", action=lambda: "not installed: nothing was counted")]
    table = options.out / "counters.csv"
    return [
        Step("Nsight Compute", "counters", (tool, *OPTIONS, "--log-file", str(table), *target), weight=4),
        Step("counts", "counters", action=lambda: keep(table, options.out / "counters.json")),
    ]


def steps_of_suites(options: argparse.Namespace) -> list[Step]:
    common = python("-m", "benchmarks.run", "--out", str(options.out / "results.json"), "--improve")
    if options.commit:
        common += ("--commit", options.commit)
    if options.dry:
        common += ("--device", "cpu", "--quick", "--seconds", "0.05", "--without", "compile", "--no-memory")
    return [
        Step(f"suite {name}", "bench", (*common, "--suite", name), weight=suite.weight, budgeted=True)
        for name, suite in suites().items()
        if name in options.suites
    ]

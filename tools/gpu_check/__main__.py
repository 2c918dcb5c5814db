"""Everything that needs a GPU, in one command: ``make gpu-check OUT=folder`` or ``python -m tools.gpu_check``.

For a machine with its own Python and PyTorch and no network. The native library comes from ``--wheel`` or is built in
place with nvcc for the GPU at hand. Then the tests, compute-sanitizer, Nsight Compute's counters (beside which
``tools/gpu_check/counters.py`` puts predictions), and the benchmark suites in order of importance. A step that fails or
runs out of time is recorded and the next one goes on; what was measured is on disk after each row.

The folder then holds ``summary.json``, ``table.txt``, ``results.json`` (rows of all suites), ``counters.json``,
``steps.log`` and the JUnit files of the tests. ``--dry`` rehearses every step on the CPU on the smallest shapes.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.measure.registry import ops, suites
from benchmarks.measure.results import read
from benchmarks.report.tables import lost_to, median, over_ours
from tools.gpu_check import counters
from tools.gpu_check.steps import (
    Outcome,
    Step,
    run_step,
    steps_of_build,
    steps_of_counters,
    steps_of_sanitizer,
    steps_of_suites,
    steps_of_tests,
)

PARTS = ("tests", "sanitizer", "counters", "bench")
# Of the time that is left when a part begins, the share it may take; the last part takes all of it.
SHARES = {"tests": 0.45, "sanitizer": 0.3, "counters": 0.25, "bench": 1.0}
RESERVE = 15.0  # seconds kept for the end
LINES = 60
FAILED = ("failed", "timed out")


class Stopped(Exception):
    """The machine's own time limit ended the run."""


def _stop(*_: object) -> None:
    raise Stopped


def steps_of(part: str, options: argparse.Namespace) -> list[Step]:
    makers: dict[str, Callable[[argparse.Namespace], list[Step]]] = {
        "tests": steps_of_tests,
        "sanitizer": steps_of_sanitizer,
        "counters": steps_of_counters,
        "bench": steps_of_suites,
    }
    return makers[part](options)


def run_part(part: str, options: argparse.Namespace, end: float) -> Iterator[Outcome]:
    """Runs the steps of one part until ``end``; each gets its share of what the steps before it left."""
    steps = steps_of(part, options)
    for place, step in enumerate(steps):
        weights = sum(later.weight for later in steps[place:])
        left = end - time.monotonic()
        yield run_step(step, left * step.weight / weights, left, options)


def check(options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    end = time.monotonic() + options.budget - RESERVE
    parts = PARTS if options.part == "all" else (options.part,)
    for step in steps_of_build(options):
        outcomes.append(run_step(step, end - time.monotonic(), end - time.monotonic(), options))
        save(options.out, outcomes)
    for part in parts:
        left = end - time.monotonic()
        share = 1.0 if part == parts[-1] else SHARES[part]
        for outcome in run_part(part, options, time.monotonic() + left * share):
            outcomes.append(outcome)
            save(options.out, outcomes)


def save(out: Path, outcomes: list[Outcome]) -> None:
    steps = [vars(outcome) for outcome in outcomes]
    (out / "summary.json").write_text(json.dumps({"steps": steps}, indent=1) + "\n")


def result_lines(results: Path) -> list[str]:
    """A line per measured row: the case, ours, and how the others compare."""
    lines = []
    for row in read(results) if results.exists() else []:
        case, contenders = row["case"], row["contenders"]
        ours = contenders.get(row["ours"] or "", {})
        sizes = " ".join(f"{label}{case[name]}" for name, label in ops()[case["op"]].axes.items() if name in case)
        direction = "fwd" if case["mode"] == "forward" else "f+b"
        line = f"{case['suite'][:12]:<12} {case['op'][:12]:<12} {sizes:<24} {case['dtype'][:8]:<8} {direction}"
        line += f" {case.get('preset') or case.get('axis', '')[:8]:<8}"
        if "ms" in ours:
            line += f" {row['ours']} {median(ours):.4g} ms"
        for name, label in (
            ("triton", "triton"),
            ("eager", "eager"),
            ("compile", "comp"),
            ("compile_max_autotune", "max"),
            ("without", "alone"),
        ):
            if (ratio := over_ours(row, name)) is not None:
                line += f" {label} {ratio:.2f}x"
        if "share_of_floor" in ours:
            line += f" {100 * ours['share_of_floor']:.0f}% of floor"
        failed = [name for name, record in contenders.items() if "failed" in record]
        line += (f" LOSES to {', '.join(lost_to(row))}" if lost_to(row) else "") + (
            f" FAILED {', '.join(failed)}" if failed else ""
        )
        lines.append(line[:200])
    return lines


def table(out: Path, outcomes: list[Outcome]) -> str:
    lines = [f"{'step':<34} {'status':<9} {'seconds':>7}  detail"]
    lines += [f"{o.name[:34]:<34} {o.status:<9} {o.seconds:>7.1f}  {o.detail[:140]}" for o in outcomes]
    if (out / "counters.json").exists():
        lines += [line[:200] for line in counters.lines(json.loads((out / "counters.json").read_text()))]
    rows = result_lines(out / "results.json")
    room = LINES - len(lines) - 1
    lines += rows if len(rows) <= room else [*rows[: room - 1], f"... {len(rows) - room + 1} more rows in results.json"]
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is to be kept")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--suites", nargs="+", choices=suites(), default=list(suites()), help="of part bench")
    parser.add_argument("--wheel", type=Path, help="take the native library from this wheel instead of building it")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything (default 540)")
    parser.add_argument("--commit", help="what to record as the commit, where the checkout has no history")
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU, on the smallest shapes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("torch sees no CUDA device; --dry (make gpu-check DRY=1) rehearses on the CPU", file=sys.stderr)
        return 2
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "steps.log").write_text("")
    outcomes: list[Outcome] = []
    signal.signal(signal.SIGTERM, _stop)
    try:
        check(options, outcomes)
    except (Stopped, KeyboardInterrupt):
        outcomes.append(Outcome("the run itself", "all", "timed out", 0.0, "it was stopped from outside"))
        save(options.out, outcomes)
    text = table(options.out, outcomes)
    (options.out / "table.txt").write_text(text + "\n")
    print(text)
    return int(any(o.status in FAILED and o.part not in ("counters", "bench") for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())

"""Measure suites: ``python -m benchmarks.run --suite NAME --out benchmarks/results/<device>/NAME.json``.

The file is written after every row. Rows of other suites in it stay; those of the suites measured are begun anew,
unless ``--improve`` says to keep what was measured well.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

from benchmarks.measure.case import Case
from benchmarks.measure.harness import QUIET, Context, Row, release
from benchmarks.measure.machine import pick_device, sources_digest
from benchmarks.measure.registry import all_providers, ops, suites
from benchmarks.measure.results import ResultFile, settled
from benchmarks.measure.suite import Plan, Suite


def line(row: Row) -> str:
    """One row for the terminal: milliseconds and ratios to ours; what failed or does not serve is named."""
    parts = []
    for name, record in row["contenders"].items():
        if "ms" in record:
            best = record.get("graph_ms", record["ms"])["p50"]
            parts.append(f"{name} {best:.4g} ms" + (f" ({record['over_ours']:.2f} x)" if "over_ours" in record else ""))
        elif "failed" in record:
            parts.append(f"{name} FAILED {record['failed'][:60]}")
    ours = row["contenders"].get(row["ours"] or "", {})
    if "share_of_floor" in ours:
        parts.append(f"{100 * ours['share_of_floor']:.0f} % of the {row['model']['bound']} floor")
    if others := row.get("machine_used_by_others"):
        parts.append(f"others used {100 * others:.0f} %")
    return " | ".join(parts)


def matches(case: Case, wanted: dict[str, list[str]]) -> bool:
    """Whether a case has, under each name, one of the values."""
    values = case.to_dict()
    return all(str(values.get(name, "")) in some for name, some in wanted.items())


def conditions(given: list[str]) -> dict[str, list[str]]:
    """``name=value,value`` to the values of each name."""
    known = {name for op in ops().values() for name in (*op.axes, *op.labels)} | {*Case.__dataclass_fields__, "op"}
    found = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not equals or name not in known - {"sizes", "labels"}:
            raise ValueError(f"--where takes name=value[,value], names as in result files, got {text!r}")
        found[name] = values.split(",")
    return found


def ours_failed(row: Row) -> bool:
    """Whether a backend that says it serves did not."""
    return any(record["kind"] == "ours" and "failed" in record for record in row["contenders"].values())


def measure_suite(
    suite: Suite, context: Context, out: Path, improve: bool, wanted: dict[str, list[str]] | None = None
) -> tuple[int, int]:
    """Measures what is missing in order of importance until the budget ends: rows left out, rows that failed."""
    file = ResultFile(out, suite.name, improve)
    sources = sources_digest(context.device.type)
    plans = [plan for plan in suite.plans(context.device, context.quick) if matches(plan.case, wanted or {})]
    failed = 0
    for place, plan in enumerate(plans):
        compiled = tuple(name for name in plan.compiled if name not in context.without)
        if settled(file.get(plan.case), sources, QUIET, compiled):
            continue
        if context.out_of_time():
            print(f"{suite.name}: the budget is used up, {len(plans) - place} of {len(plans)} rows left", flush=True)
            return len(plans) - place, failed
        print(f"{plan.case}", flush=True)
        row = _measured(suite, plan, context)
        failed += row is None or ours_failed(row)
        if row is not None:
            file.put(row)
            print(f"  {line(row)}", flush=True)
    return 0, failed


def _measured(suite: Suite, plan: Plan, context: Context) -> Row | None:
    begin = time.monotonic()
    try:
        return suite.measure(plan, context)
    except (ImportError, RuntimeError, AssertionError) as error:  # of the case as a whole: the next one may do
        print(f"  not measured: {type(error).__name__}: {str(error)[:300]}", flush=True)
        release(context.device)
        return None
    finally:
        context.longest = max(context.longest, time.monotonic() - begin)


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 1 where a kernel of ours failed; a budget that is used up is no failure."""
    known = suites()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=[*known, "all"], default=["all"])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, after every row")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="NAME=VALUE[,VALUE]", help="these rows alone: batch=1024 op=sigmoid"
    )
    parser.add_argument("--quick", action="store_true", help="few and tiny cases: a rehearsal, not a measurement")
    parser.add_argument("--budget", type=float, help="begin no row that would pass this many seconds")
    parser.add_argument("--improve", action="store_true", help="keep quiet rows of the same sources")
    parser.add_argument("--seconds", type=float, help="time spent on each row (default 8 on a CPU, 2 on a GPU)")
    parser.add_argument("--patience", type=int, default=1, help="tries per row until a CPU is quiet (default 1)")
    parser.add_argument("--without", nargs="+", default=[], choices=all_providers(), help="contenders to leave out")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out (on a CPU a process per contender)")
    parser.add_argument("--commit", help="what to record as the commit, where the checkout has no history")
    options = parser.parse_args(arguments)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # the compiler's, about itself
    try:
        wanted = conditions(options.where)
    except ValueError as error:
        parser.error(str(error))
    device = pick_device(options.device)
    default = 0.2 if options.quick else 2.0 if device.type == "cuda" else 8.0
    context = Context(
        device=device,
        seconds=default if options.seconds is None else options.seconds,
        patience=options.patience,
        quick=options.quick,
        budget=options.budget,
        without=tuple(options.without),
        memory=not options.no_memory,
        commit=options.commit,
    )
    names = known if "all" in options.suite else options.suite
    plans = (plan for name in names for plan in known[name].plans(device, options.quick))
    if not any(matches(plan.case, wanted) for plan in plans):
        parser.error(f"no row of {', '.join(names)} has {' '.join(options.where)}")
    failed = sum(measure_suite(known[name], context, options.out, options.improve, wanted)[1] for name in names)
    if failed:
        print(f"{failed} rows in which a kernel of ours failed, or nothing could be measured", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

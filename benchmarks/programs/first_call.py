"""What the first call of a process costs beside the second one, in fresh processes.

``cold``: nothing compiled before is found (the compilers' caches are empty folders); ``warm``: a process before
this one filled them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks.measure.case import Case
from benchmarks.measure.harness import Context, Row, chosen, failure, row, serving
from benchmarks.measure.machine import CHECKOUT, synchronize
from benchmarks.measure.parity import run
from benchmarks.measure.providers import providers
from benchmarks.measure.registry import case_of
from benchmarks.measure.suite import Plan, Suite
from benchmarks.measure.timing import quantiles
from benchmarks.ops._pairs import TINY, paper_shape
from benchmarks.ops.fine_grained import FINE_GRAINED
from benchmarks.report.tables import milliseconds, table, time_cell

CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
LIMIT = 300  # seconds that a process may take
COLD, WARM = "cold", "warm"


def _plans(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(FINE_GRAINED.case("first_call", **TINY, axis=COLD).but(batch=2))]
    gpu = device.type == "cuda"
    case = FINE_GRAINED.case("first_call", **paper_shape(256 if gpu else 16), dtype="bfloat16" if gpu else "float32")
    return [Plan(case.but(axis=axis)) for axis in (COLD, WARM)]


def fresh_process(provider: str, case: Case, device: torch.device, cache: str) -> dict[str, float]:
    """Seconds of the first and the second call of one process with the compilers' caches in the folder ``cache``."""
    arguments = [provider, device.type, json.dumps(case.to_dict())]
    folders = {variable: os.path.join(cache, name) for variable, name in CACHES.items()}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.programs.first_call", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **folders},
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if result.returncode != 0:
        raise RuntimeError(result.stderr.strip()[-300:])
    seconds: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return seconds


def _rounds(provider: str, case: Case, context: Context) -> list[dict[str, float]]:
    compiles = context.device.type == "cuda" and case.axis == COLD
    rounds = 1 if context.quick or compiles or providers(case.op)[provider].kind == "compile" else 3
    with tempfile.TemporaryDirectory() as warm:
        if case.axis == WARM:
            fresh_process(provider, case, context.device, warm)
            return [fresh_process(provider, case, context.device, warm) for _ in range(rounds)]
        found = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cold:
                found.append(fresh_process(provider, case, context.device, cold))
        return found


def measure(plan: Plan, context: Context) -> Row:
    case = plan.case
    able, records = serving(case, context)
    for name in able:
        record: dict[str, Any] = records[name]
        try:
            seconds = _rounds(name, case, context)
        except Exception as error:
            record |= failure(error)
            continue
        record |= {"ms": quantiles([one["first"] for one in seconds]), "rounds": len(seconds)}
        record["second_ms"] = round(1e3 * statistics.median(one["second"] for one in seconds), 3)
    measured = [name for name, record in records.items() if "ms" in record]
    return row(case, context, records, chosen(measured, records), None)


def _print_first_call(provider: str, device: torch.device, case: Case) -> None:
    inputs = case.op.draw(case, device)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context is the device's, not the call's
    synchronize(device)

    def call() -> float:
        begin = time.perf_counter()
        run(op, case, inputs)
        synchronize(device)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    op = providers(case.op)[provider].build(case)
    building = time.perf_counter() - begin
    print(json.dumps({"first": building + call(), "second": call()}))


def _table(rows: list[Row]) -> str:
    head = ["caches", "contender", "first call, ms", "second call, ms", "processes"]
    lines = [
        [row["case"]["axis"], name, time_cell(record), milliseconds(record["second_ms"]), str(record["rounds"])]
        for row in sorted(rows, key=lambda row: row["case"]["axis"])
        for name, record in row["contenders"].items()
        if "ms" in record
    ]
    return table(head, lines, 2)


SUITES = (
    Suite(
        "first_call",
        "First call of a process",
        _plans,
        rank=80,
        measure=measure,
        note="In fresh processes, after the import. `cold`: the compilers' caches are empty; `warm`: a process "
        "before this one filled them.",
        table=_table,
    ),
)

if __name__ == "__main__":
    _print_first_call(sys.argv[1], torch.device(sys.argv[2]), case_of(json.loads(sys.argv[3])))

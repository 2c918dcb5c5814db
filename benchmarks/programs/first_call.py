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

from benchmarks.cases import Case, draw
from benchmarks.harness import Context, Row, chosen, failure, row
from benchmarks.machine import CHECKOUT, synchronize
from benchmarks.parity import run
from benchmarks.providers import PROVIDERS
from benchmarks.timing import quantiles

CONTENDERS = ("cuda", "triton", "cpu", "eager", "compile")
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
LIMIT = 300  # seconds that a process may take
COLD, WARM = "cold", "warm"


def first_call_cases(device: torch.device, quick: bool) -> list[Case]:
    if quick:
        return [Case("first_call", "fine_grained", 2, 16, 8, 32, "float32", axis=COLD)]
    gpu = device.type == "cuda"
    base = ("first_call", "fine_grained", 256 if gpu else 16, 196, 55, 512, "bfloat16" if gpu else "float32")
    return [Case(*base, axis=axis) for axis in (COLD, WARM)]


def fresh_process(provider: str, case: Case, device: torch.device, cache: str) -> dict[str, float]:
    """Seconds of the first and the second call of one process with the compilers' caches in the folder ``cache``."""
    command = [sys.executable, "-m", "benchmarks.first_call", provider, device.type, json.dumps(case.to_dict())]
    folders = {variable: os.path.join(cache, name) for variable, name in CACHES.items()}
    result = subprocess.run(
        command,
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
    rounds = 1 if context.quick or compiles or PROVIDERS[provider].kind == "compile" else 3
    with tempfile.TemporaryDirectory() as warm:
        if case.axis == WARM:
            fresh_process(provider, case, context.device, warm)
            return [fresh_process(provider, case, context.device, warm) for _ in range(rounds)]
        found = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cold:
                found.append(fresh_process(provider, case, context.device, cold))
        return found


def measure_first_call(case: Case, context: Context) -> Row:
    records: dict[str, dict[str, Any]] = {}
    for name in CONTENDERS:
        if name in context.without:
            continue
        provider = PROVIDERS[name]
        record = records[name] = {"kind": provider.kind}
        if reason := provider.reason(case, context.device):
            record["unsupported"] = reason
            continue
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
    inputs = draw(case, device)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context is the device's, not the call's
    synchronize(device)

    def call() -> float:
        begin = time.perf_counter()
        run(op, case, inputs)
        synchronize(device)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    op = PROVIDERS[provider].build(case)
    building = time.perf_counter() - begin
    print(json.dumps({"first": building + call(), "second": call()}))


if __name__ == "__main__":
    _print_first_call(sys.argv[1], torch.device(sys.argv[2]), Case.from_dict(json.loads(sys.argv[3])))

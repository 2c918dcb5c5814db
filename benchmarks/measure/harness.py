"""One setup for speed and memory: who can serve a case, parity, then time and memory side by side, as one row.

A contender that cannot serve is recorded with its reason, one that fails (out of memory, a wrong result) with its
error, and the others are measured all the same.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.measure import machine, memory
from benchmarks.measure.case import Case, Function, Inputs, Provider, floor_milliseconds
from benchmarks.measure.parity import Truth, allowed, assert_parity, run
from benchmarks.measure.providers import providers, select
from benchmarks.measure.timing import graph_times, interleaved, quantiles, ratio
from sparc_kernels import _dispatch

QUIET = 0.02  # a row is measured again while other processes use more of the CPUs than this
ERROR_LENGTH = 200
MEMORY_KINDS = ("ours", "eager", "listing")  # on the CPU, where a compiled one would compile again in a fresh process
PRINCIPALS = ("cuda", "triton", "cpu", "eager", "compile")  # who takes part where a program is measured, not an op
Row = dict[str, Any]


@dataclass
class Context:
    """How to measure. ``budget``: seconds for everything; None = no limit. ``least``: rounds of each row."""

    device: torch.device
    seconds: float = 8.0
    patience: int = 1
    quick: bool = False
    budget: float | None = None
    without: tuple[str, ...] = ()
    memory: bool = True
    commit: str | None = None
    least: int = 5
    started: float = field(default_factory=time.monotonic)
    longest: float = 0.0  # seconds of the longest row so far

    def out_of_time(self) -> bool:
        """Whether a row like the longest one so far would pass the budget."""
        return self.budget is not None and time.monotonic() - self.started + self.longest > self.budget

    def roofs(self, dtype: torch.dtype) -> dict[str, float]:
        return machine.roofs(self.device, dtype, self.quick)


def failure(error: BaseException) -> dict[str, str]:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return {"failed": text[:ERROR_LENGTH]}


def release(device: torch.device) -> None:
    """Frees what a contender left; raises where it broke the device, since no later figure could be trusted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def cold_copies(case: Case, device: torch.device) -> list[Inputs]:
    """Inputs to take in turn: on a GPU so many that together they are four times its second-level cache."""
    first = case.op.draw(case, device)
    cache = machine.l2_bytes(device)
    copies = min(64, 1 + 4 * cache // max(1, first.input_bytes)) if cache else 1
    return [first, *(case.op.draw(case, device, seed) for seed in range(1, copies))]


def times_when_quiet(
    functions: Mapping[str, Callable[[], object]], context: Context
) -> tuple[dict[str, list[float]], float | None]:
    """Times, and the share of the CPUs that others used meanwhile: of ``patience`` tries the quietest one.

    On a GPU that share says little, and is None.
    """
    least = min(3, context.least) if context.quick else context.least
    if context.device.type != "cpu":
        return interleaved(functions, context.device, context.seconds, least), None
    best: tuple[dict[str, list[float]], float] | None = None
    for _ in range(max(1, context.patience)):
        with machine.OthersShare() as others:
            times = interleaved(functions, context.device, context.seconds, least)
        if best is None or others.share < best[1]:
            best = times, others.share
        if best[1] < QUIET:
            break
    assert best is not None
    return best


def serving(case: Case, context: Context) -> tuple[dict[str, Provider], dict[str, dict[str, Any]]]:
    """Of the ``PRINCIPALS``, who can serve the case; and a record of everyone."""
    able, records = {}, {}
    for name, provider in providers(case.op).items():
        if name in PRINCIPALS and name not in context.without:
            records[name] = {"kind": provider.kind}
            if reason := provider.reason(case, context.device):
                records[name]["unsupported"] = reason
            else:
                able[name] = provider
    return able, records


def prepare(
    chosen: list[Provider], case: Case, inputs: Inputs, device: torch.device
) -> tuple[dict[str, Function], dict[str, dict[str, Any]]]:
    """Those that serve and compute the op, and a record of every provider."""
    ops: dict[str, Function] = {}
    records: dict[str, dict[str, Any]] = {}
    truth = Truth(case, inputs)
    for provider in chosen:
        record = records[provider.name] = {"kind": provider.kind}
        try:
            if reason := provider.reason(case, device):
                record["unsupported"] = reason
                continue
            op = provider.build(case)
            if provider.kind == "floor":
                op(inputs)
            else:
                ours, precision = provider.kind == "ours", provider.inside.get(case.dtype, case.dtype)
                record |= {"computes_in": precision, "allowed": allowed(ours, precision)}
                distances = assert_parity(op, case, inputs, ours, truth, precision)
                record["parity"] = {name: float(f"{value:.2g}") for name, value in distances.items()}
            ops[provider.name] = op
        except Exception as error:  # out of memory, a wrong result, a compiler's own: the row says so
            record |= failure(error)
            release(device)
    return ops, records


def measure_memory(
    name: str, kind: str, op: Function, case: Case, inputs: Inputs, device: torch.device
) -> dict[str, Any]:
    try:
        if device.type == "cuda":
            return {"memory_bytes": memory.gpu_peak(op, case, inputs)}
        if kind in MEMORY_KINDS:
            return {"memory_bytes": memory.cpu_peak(name, case)}
    except Exception as error:
        release(device)
        return {"memory_failed": failure(error)["failed"]}
    return {}


def taken_by_auto(case: Case, device: torch.device) -> str | None:
    """The backend that ``auto`` takes, for the first op where the case is made of several; None where nothing serves.
    Nothing is computed."""
    taken: list[str] = []
    first_that_serves = _dispatch._first_that_serves

    def noted(*call: Any) -> str:
        taken.append(first_that_serves(*call))
        return taken[-1]

    vars(_dispatch)["_first_that_serves"] = noted
    try:
        case.op.public(case.op.draw(case.small(batch=0), device), "auto")
    except NotImplementedError:
        return None
    finally:
        vars(_dispatch)["_first_that_serves"] = first_that_serves
    return taken[0] if taken else None


def chosen(measured: Iterable[str], records: dict[str, dict[str, Any]], preferred: str | None = None) -> str | None:
    """The ``preferred`` backend, or the first of ours where it was not measured."""
    ours = [name for name in measured if records[name]["kind"] == "ours"]
    return preferred if preferred in ours else next(iter(ours), None)


def graph_record(op: Function, case: Case, copies: list[Inputs]) -> dict[str, Any]:
    def one_pass() -> None:
        for inputs in copies:
            run(op, case, inputs)

    try:
        return {"graph_ms": quantiles(graph_times(one_pass, len(copies)))}
    except Exception as error:
        release(torch.device("cuda"))
        return {"graph_failed": failure(error)["failed"]}


def measure(case: Case, context: Context, compiled: tuple[str, ...] = ("compile",)) -> Row:
    """One row: every provider at one case."""
    device = context.device
    release(device)
    roofs = context.roofs(case.torch_dtype)
    copies = cold_copies(case, device)
    ops, records = prepare(select(case, device, compiled, context.without), case, copies[0], device)
    for name, op in ops.items():
        if context.memory and records[name]["kind"] != "floor":
            records[name] |= measure_memory(name, records[name]["kind"], op, case, copies[0], device)

    def stepper(op: Function) -> Callable[[], object]:
        turn = itertools.cycle(copies)
        return lambda: run(op, case, next(turn))

    def floor(op: Function) -> Callable[[], object]:
        turn = itertools.cycle(copies)
        return lambda: op(next(turn))

    steps = {name: (floor if records[name]["kind"] == "floor" else stepper)(op) for name, op in ops.items()}
    times, others = times_when_quiet(steps, context)
    ours = chosen(ops, records, taken_by_auto(case, device))
    add_times(records, times, ours)
    if device.type == "cuda":
        for name, op in ops.items():  # last: a failed capture disturbs nothing that was measured
            if records[name]["kind"] != "floor" and name != "compile_max_autotune":  # which captures graphs itself
                records[name] |= graph_record(op, case, copies)
    work = case.op.work(case)
    floor_ms, bound = floor_milliseconds(work, roofs)
    add_shares(records, floor_ms)
    return row(case, context, records, ours, others) | {
        "roofs": {name: round(value, 2) for name, value in roofs.items()},
        "model": work | {"floor_ms": round(floor_ms, 6), "bound": bound},
        "input_copies": len(copies),
    }


def add_times(records: dict[str, dict[str, Any]], times: dict[str, list[float]], ours: str | None) -> None:
    for name, seconds in times.items():
        records[name] |= {"ms": quantiles(seconds), "rounds": len(seconds)}
        if ours is not None and name != ours:
            records[name]["over_ours"] = round(ratio(times, name, ours), 4)


def add_shares(records: dict[str, dict[str, Any]], floor_ms: float) -> None:
    """``share_of_floor``: 1 would be as fast as the machine's rates allow; from the device's own time if known."""
    for record in records.values():
        if record["kind"] != "floor" and "ms" in record:
            record["share_of_floor"] = round(floor_ms / record.get("graph_ms", record["ms"])["p50"], 4)


def row(
    case: Case, context: Context, records: dict[str, dict[str, Any]], ours: str | None, others: float | None
) -> Row:
    return {
        "case": case.to_dict(),
        "environment": machine.environment(context.device, context.commit),
        "ours": ours,
        "machine_used_by_others": None if others is None else round(others, 4),
        "contenders": records,
    }

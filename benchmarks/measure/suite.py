"""The suites: which cases are measured on which device, the most important ones first, and how."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.cases import BOTH, FORWARD, Case
from benchmarks.first_call import first_call_cases, measure_first_call
from benchmarks.harness import Context, Row, measure
from benchmarks.steps import adapter_cases, measure_adapters, measure_training_step, training_step_cases

ALL_MODES = ("compile", "compile_max_autotune", "compile_max_autotune_no_graphs")
DEFAULT_MODE = ("compile",)
FORWARD_TOO: tuple[dict[str, Any], ...] = ({"patches": 49}, {"captions": "ragged"}, {"dtype": "float32"})


@dataclass(frozen=True)
class Plan:
    """A case, and the modes of torch.compile that take part in it (each may compile for a minute)."""

    case: Case
    compiled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    plans: Callable[[torch.device, bool], list[Plan]]
    measure: Callable[[Plan, Context], Row]


def _measure(plan: Plan, context: Context) -> Row:
    return measure(plan.case, context, plan.compiled)


def _fine_grained_gpu() -> list[Plan]:
    """The paper's shape comes back with each further mode of torch.compile, after the rows that compile faster."""
    b16 = Case("fine_grained", "fine_grained", 1024, 196, 55, 512)
    forward = replace(b16, mode=FORWARD)
    return [
        Plan(b16),
        Plan(forward),
        Plan(replace(b16, batch=16384)),
        Plan(b16, DEFAULT_MODE),
        *(Plan(replace(b16, patches=patches)) for patches in (49, 256)),
        Plan(replace(b16, captions="ragged")),
        Plan(replace(b16, dtype="float32")),
        Plan(b16, ALL_MODES[:2]),
        Plan(replace(b16, dtype="float16")),
        Plan(replace(b16, batch=256, tokens=256)),
        *(Plan(replace(b16, batch=256, patches=patches)) for patches in (576, 1024)),
        *(Plan(replace(b16, channels=channels)) for channels in (256, 768, 1024)),
        *(Plan(replace(b16, batch=batch)) for batch in (64, 256, 4096)),
        *(Plan(replace(forward, batch=batch)) for batch in (16384, 64)),
        *(Plan(replace(forward, **change)) for change in FORWARD_TOO),
        Plan(forward, DEFAULT_MODE),
        Plan(replace(b16, batch=256, tokens=256), DEFAULT_MODE),
        Plan(b16, ALL_MODES),
        Plan(forward, ALL_MODES),
    ]


def _fine_grained_cpu() -> list[Plan]:
    b16 = Case("fine_grained", "fine_grained", 64, 196, 55, 512, "float32")
    grid = itertools.product(("float32", "bfloat16"), (64, 16, 256), (196, 49, 576))
    return [
        *(Plan(replace(b16, dtype=d, batch=b, patches=p), DEFAULT_MODE) for d, b, p in grid),
        *(Plan(replace(b16, dtype=d, mode=FORWARD), DEFAULT_MODE) for d in ("float32", "bfloat16")),
        *(Plan(replace(b16, dtype=d, captions="ragged"), DEFAULT_MODE) for d in ("float32", "bfloat16")),
        Plan(replace(b16, batch=16, tokens=256), DEFAULT_MODE),
        Plan(replace(b16, batch=16, patches=1024), DEFAULT_MODE),
        *(Plan(replace(b16, channels=channels)) for channels in (256, 1024)),
        Plan(replace(b16, dtype="float64")),
        Plan(replace(b16, batch=32), ALL_MODES),
    ]


def _fine_grained(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        small = Case("fine_grained", "fine_grained", 4, 16, 8, 32, "float32")
        return [Plan(small, DEFAULT_MODE), Plan(replace(small, dtype="bfloat16", captions="ragged"))]
    return _fine_grained_gpu() if device.type == "cuda" else _fine_grained_cpu()


def _scaling(device: torch.device, quick: bool) -> list[Plan]:
    """One size doubled at a time; the exponents are fitted to the upper half."""
    if quick:
        base = Case("scaling", "fine_grained", 4, 16, 8, 32, "float32")
        axes: dict[str, tuple[int, ...]] = {"batch": (2, 4, 8)}
    elif device.type == "cuda":
        base = Case("scaling", "fine_grained", 512, 196, 55, 512)
        axes = {
            "batch": (64, 256, 1024, 4096, 16384),
            "patches": (64, 128, 256, 512, 1024),
            "tokens": (16, 32, 64, 128, 256),
        }
    else:
        base = Case("scaling", "fine_grained", 32, 196, 55, 512, "float32")
        axes = {
            "batch": (8, 16, 32, 64, 128, 256),
            "patches": (49, 98, 196, 392, 784),
            "tokens": (16, 32, 64, 128, 256),
        }
    changes: list[dict[str, Any]] = [{"axis": axis, axis: size} for axis, sizes in axes.items() for size in sizes]
    return [Plan(replace(base, **change)) for change in changes]


def _grouping(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(Case("grouping", op, 4, 16, 8, 32, "float32")) for op in ("grouping", "weights")]
    gpu = device.type == "cuda"
    base = Case("grouping", "grouping", 1024 if gpu else 64, 196, 55, 512, "bfloat16" if gpu else "float32")
    other = replace(base, dtype="float32" if gpu else "bfloat16")
    return [
        Plan(replace(case, op=op, mode=mode), DEFAULT_MODE if case is base else ())
        for case in (base, other)
        for op in ("grouping", "weights")
        for mode in (BOTH, FORWARD)
    ]


def _frozen(device: torch.device, quick: bool) -> list[Plan]:
    """Stored features: a gradient for one side only."""
    if quick:
        return [Plan(Case("frozen", "fine_grained", 4, 16, 8, 32, "float32", frozen="first"))]
    gpu = device.type == "cuda"
    base = Case("frozen", "fine_grained", 1024 if gpu else 64, 196, 55, 512)
    dtypes = ("bfloat16",) if gpu else ("float32", "bfloat16")
    return [Plan(replace(base, dtype=d, frozen=f), DEFAULT_MODE) for d in dtypes for f in ("", "first", "second")]


def _sparc(device: torch.device, quick: bool) -> list[Plan]:
    """The global loss of the pooled embeddings as well; the last shape is the largest of them in memory."""
    if quick:
        return [Plan(Case("sparc", "sparc", 4, 16, 8, 32, "float32"))]
    gpu = device.type == "cuda"
    base = Case("sparc", "sparc", 1024 if gpu else 64, 196, 55, 512)
    dtypes = ("bfloat16",) if gpu else ("float32", "bfloat16")
    large = {"batch": 256, "patches": 576, "tokens": 77, "channels": 768}
    return [
        *(Plan(replace(base, dtype=d), DEFAULT_MODE) for d in dtypes),
        *(Plan(replace(base, dtype=d, **large)) for d in dtypes),
    ]


def _contrastive(device: torch.device, quick: bool) -> list[Plan]:
    if quick:
        return [Plan(Case("contrastive", "contrastive", 16, channels=32, dtype="float32"))]
    gpu = device.type == "cuda"
    base = Case("contrastive", "contrastive", 4096, channels=768, dtype="bfloat16" if gpu else "float32")
    batches = (16384, 4096, 32768, 65536) if gpu else (1024, 4096)
    return [Plan(replace(base, batch=batch), DEFAULT_MODE) for batch in batches]


def _plain(cases: Callable[[torch.device, bool], list[Case]], measured: Callable[[Case, Context], Row]) -> Suite:
    return Suite(
        lambda device, quick: [Plan(case) for case in cases(device, quick)],
        lambda plan, context: measured(plan.case, context),
    )


# In order of importance: a budget that ends early cuts the last ones.
SUITES: dict[str, Suite] = {
    "fine_grained": Suite(_fine_grained, _measure),
    "training_step": _plain(training_step_cases, measure_training_step),
    "scaling": Suite(_scaling, _measure),
    "frozen": Suite(_frozen, _measure),
    "sparc": Suite(_sparc, _measure),
    "grouping": Suite(_grouping, _measure),
    "adapters": _plain(adapter_cases, measure_adapters),
    "first_call": _plain(first_call_cases, measure_first_call),
    "contrastive": Suite(_contrastive, _measure),
}

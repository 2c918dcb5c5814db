"""A suite: which cases are measured on which device, the most important ones first, how, and how a report shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.measure.case import Case
from benchmarks.measure.harness import Context, Row, measure

ALL_MODES = ("compile", "compile_max_autotune", "compile_max_autotune_no_graphs")
DEFAULT_MODE = ("compile",)


@dataclass(frozen=True)
class Plan:
    """A case, and the modes of torch.compile that take part in it (each may compile for a minute)."""

    case: Case
    compiled: tuple[str, ...] = ()


def measure_briefly(plan: Plan, context: Context) -> Row:
    """Few rounds, where large batches take seconds a call, beside which what disturbs a call is little."""
    return measure(plan.case, replace(context, least=3, seconds=min(context.seconds, 2.0)), plan.compiled)


@dataclass(frozen=True)
class Headline:
    """A suite's part of the README's table: the shape at which rows are shown there, given whether it is a GPU's.

    ``prefix`` is empty for the suite that gives the columns; others add rows that begin with it.
    """

    shape: Callable[[bool], Mapping[str, Any]]
    prefix: str = ""


@dataclass(frozen=True)
class Plot:
    """``kind``: a function of ``benchmarks.report.plots``; ``options``: what it takes beside rows and a path.

    ``suites``: whose rows are drawn.
    """

    kind: str
    title: str
    suites: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """``plans`` of a device, or small ones for a rehearsal.

    ``rank``: suites are measured and shown in this order, since a budget that ends early cuts the last ones.
    ``weight``: its share of a GPU check's time. ``table``: result rows as Markdown; None = a table for each op and
    direction.
    """

    name: str
    title: str
    plans: Callable[[torch.device, bool], list[Plan]]
    rank: int
    weight: float = 2
    measure: Callable[[Plan, Context], Row] = lambda plan, context: measure(plan.case, context, plan.compiled)
    note: str = ""
    table: Callable[[list[Row]], str] | None = None
    headline: Headline | None = None

"""What there is to measure: found in the files of ``benchmarks/ops`` and ``benchmarks/programs``, listed nowhere.

Each such file may define ``OPS`` (of :class:`benchmarks.measure.case.Op`), ``SUITES`` and ``PLOTS`` (of
:mod:`benchmarks.measure.suite`). Names that begin with an underscore hold what several files share.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from benchmarks.measure.case import Case, Op, Provider
from benchmarks.measure.providers import PROVIDERS, in_order
from benchmarks.measure.suite import Plot, Suite

FOLDERS = ("benchmarks.ops", "benchmarks.programs")


@cache
def _files() -> tuple[ModuleType, ...]:
    found = [
        f"{folder}.{file.name}"
        for folder in FOLDERS
        for file in pkgutil.iter_modules(importlib.import_module(folder).__path__)
        if not file.name.startswith("_")
    ]
    return tuple(map(importlib.import_module, sorted(found)))


def _all(name: str) -> list[Any]:
    return [value for file in _files() for value in getattr(file, name, ())]


def ops() -> dict[str, Op]:
    return {op.name: op for op in _all("OPS")}


def suites() -> dict[str, Suite]:
    """By name, the most important ones first."""
    return {suite.name: suite for suite in sorted(_all("SUITES"), key=lambda suite: suite.rank)}


def plots() -> list[Plot]:
    return _all("PLOTS")


def all_providers() -> dict[str, Provider]:
    """Everyone who takes part anywhere, by name."""
    return in_order((*PROVIDERS, *(provider for op in ops().values() for provider in op.contenders)))


def case_of(values: dict[str, Any]) -> Case:
    """The case that ``Case.to_dict`` gave."""
    others = {name: value for name, value in values.items() if name != "op"}
    return ops()[values["op"]].case(**others)

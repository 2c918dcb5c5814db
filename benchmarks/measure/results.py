"""Result files: JSON rows, written whole after every row, so that a cut loses nothing.

``{"format": 2, "rows": [row, ...]}``; a file may hold the rows of several suites. A row says what was measured
(``case``), where and from which code (``environment``), what each contender took or why it did not run
(``contenders``), and where it applies the machine's own rates (``roofs``) and the work they are held against
(``model``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure.case import Case

FORMAT = 2
Row = dict[str, Any]
ENVIRONMENT = ("device", "driver", "torch", "triton", "commit", "date")
QUANTILES = ("p20", "p50", "p80")
OUTCOMES = ("ms", "unsupported", "failed")  # a contender has exactly one of them


class FormatError(ValueError):
    """A result file that does not say what it has to."""


def check(row: Row) -> None:
    """Raises FormatError, naming what is missing, where a row is not as the module's docstring says."""
    for name in ("case", "environment", "contenders"):
        if not isinstance(row.get(name), dict):
            raise FormatError(f"row has no {name}: {str(row)[:120]}")
    case = " ".join(map(str, row["case"].values()))
    if missing := [name for name in ENVIRONMENT if not row["environment"].get(name)]:
        raise FormatError(f"{case}: environment lacks {', '.join(missing)}")
    for name, contender in row["contenders"].items():
        if sum(outcome in contender for outcome in OUTCOMES) != 1 or "kind" not in contender:
            raise FormatError(f"{case}: {name} needs a kind and one of {', '.join(OUTCOMES)}, has {sorted(contender)}")
        if "ms" in contender and (missing := [q for q in QUANTILES if q not in contender["ms"]]):
            raise FormatError(f"{case}: {name} lacks {', '.join(missing)}")


def read(path: Path) -> list[Row]:
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise FormatError(f"{path.name} has format {content.get('format')}, expected {FORMAT}")
    rows: list[Row] = content["rows"]
    for row in rows:
        check(row)
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    lines = ",\n".join(json.dumps(row) for row in rows)
    beside.write_text(f'{{"format": {FORMAT}, "rows": [\n{lines}\n]}}\n')
    os.replace(beside, path)


def key(case: dict[str, Any]) -> str:
    return json.dumps(case, sort_keys=True)


class ResultFile:
    """Rows in the order of their first measurement. Rows of other suites stay as they are."""

    def __init__(self, path: Path, suite: str, improve: bool) -> None:
        earlier = read(path) if path.exists() else []
        self.path = path
        self.rows = {key(row["case"]): row for row in earlier if improve or row["case"]["suite"] != suite}

    def get(self, case: Case) -> Row | None:
        return self.rows.get(key(case.to_dict()))

    def put(self, row: Row) -> None:
        """Keeps the quieter one of two rows from the same sources, and writes the file."""
        check(row)
        before = self.rows.get(key(row["case"]))
        if before is None or not (_same_sources(before, row) and _others(before) < _others(row)):
            self.rows[key(row["case"])] = row
        write(self.path, self.rows.values())


def settled(row: Row | None, sources: str, quiet: float, contenders: tuple[str, ...] = ()) -> bool:
    """Whether an earlier row measured these very kernels and contenders on a machine that nobody else used."""
    return (
        row is not None
        and row["environment"].get("sources") == sources
        and _others(row) < quiet
        and all(name in row["contenders"] for name in contenders)
    )


def _others(row: Row) -> float:
    return float(row.get("machine_used_by_others") or 0)


def _same_sources(a: Row, b: Row) -> bool:
    return bool(a["environment"].get("sources") == b["environment"].get("sources"))

"""What is written of trained towers: results first, figures after, which may fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparc_kernels.train import checkpoint
from sparc_kernels.train.report import table


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    with checkpoint.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomic(path, json.dumps(values, indent=2))


def write_results(out: Path, results: Mapping[str, Mapping[str, float]], pairs: str) -> None:
    """``results.json`` of one run, or of several by their names, and the table, which is printed under ``pairs``."""
    write_json(out / "results.json", results if len(results) > 1 else next(iter(results.values())))
    checkpoint.write_atomic(out / "results.md", table(results))
    print(f"\n{pairs}\n")
    print(table(results))


def draw(path: Path, how: Callable[[Path], None]) -> None:
    """A figure, or why there is none: the results stand without it."""
    try:
        how(path)
    except Exception as error:
        print(f"warning: {path} was not drawn ({type(error).__name__}: {error})", file=sys.stderr)
    else:
        print(path)

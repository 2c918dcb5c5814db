"""Faults planted in the CUDA kernels, each of which the emulation has to catch: ``python -m tests.emulation.mutants``.

``tests/ops/<op>/mutants.py`` lists them for each room. Every fault is one replacement in a copy of the checkout; the
room's emulated tests named beside it must then fail. Each takes about a minute of compiling, so this is not part of
``make test``.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    text: str
    instead: str
    tests: str  # a pytest expression, among the emulated tests of the room


def listed() -> list[tuple[str, Mutant]]:
    """All of them, with their rooms."""
    rooms = [path.parent.name for path in sorted((ROOT / "tests" / "ops").glob("*/mutants.py"))]
    return [(room, mutant) for room in rooms for mutant in importlib.import_module(f"tests.ops.{room}.mutants").MUTANTS]


def caught(room: str, mutant: Mutant, checkout: Path) -> str | None:
    """What the tests said of it, or None where they passed."""
    path = checkout / "csrc" / mutant.file
    original = path.read_text()
    if original.count(mutant.text) != 1:
        raise ValueError(
            f"{mutant.name}: the text to replace stands {original.count(mutant.text)} times in {mutant.file}"
        )
    path.write_text(original.replace(mutant.text, mutant.instead))
    try:
        chosen = f"emulated and {room} and ({mutant.tests})"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/ops", "-k", chosen]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(original)
    if result.returncode == 0:
        return None
    if result.returncode != 1:
        raise RuntimeError(f"{mutant.name}: the tests did not run\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    said = re.search(r"^E +(?:\w+Error: )*(.*)$", result.stdout, re.M)
    return said.group(1)[:160] if said else "failed"


def main() -> None:
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        checkout = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "results", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, checkout, ignore=ignored)
        for room, mutant in listed():
            said = caught(room, mutant, checkout)
            print(f"{room}: {mutant.name}: {f'caught ({said})' if said else 'SURVIVED'}", flush=True)
            survivors += [] if said else [mutant.name]
    sys.exit(f"not caught: {', '.join(survivors)}" if survivors else 0)


if __name__ == "__main__":
    main()

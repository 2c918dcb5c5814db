"""Faults planted in the CUDA kernels, each of which the emulation has to catch: ``python -m tests.emulation.mutants``.

Every fault is one replacement in a copy of the checkout; the tests named beside it must then fail. Each takes about a
minute of compiling, so this is not part of ``make test``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    text: str
    instead: str
    tests: str  # a pytest expression


MUTANTS = (
    Mutant(
        "no barrier before a chunk is used",
        "pairs/pair_stream.cuh",
        "if (ahead || c > 0) device::block_barrier();",
        "",
        "ragged",
    ),
    Mutant(
        "one copy too few is waited for",
        "pairs/pair_stream.cuh",
        "if (streaming.stages == 3) {",
        "if (streaming.stages > 0) {",
        "every_way",
    ),
    Mutant(
        "operand B is not transposed",
        "pairs/pair_tile.cuh",
        "Products::load_b_transposed(image, step * 16, column)",
        "Products::load_b(image, step * 16, column)",
        "ragged",
    ),
    Mutant(
        "X is written while dZ is read",
        "fine_grained/fine_grained_pair_backward.cuh",
        "device::block_barrier();  // dZ has been read: X takes its place",
        "",
        "test_fine_grained and b-16 and not vit",
    ),
    Mutant(
        "the norm of a token has no gradient",
        "fine_grained/fine_grained_pair_backward.cuh",
        "(x[e / 4][e % 4] * x_unit - beta[half] * token)",
        "(x[e / 4][e % 4] * x_unit)",
        "ragged",
    ),
    Mutant(
        "dZ is read before it is there",
        "fine_grained/fine_grained_pair_backward.cuh",
        "device::block_barrier();  // dZ is there",
        "",
        "ragged",
    ),
    Mutant(
        "a mean counts every row",
        "pairs/rows.cuh",
        "      if (!is_valid(mask, item, row)) continue;",
        "",
        "test_means",
    ),
    Mutant(
        "patches get no share of their mean's gradient",
        "pairs/pair_pass.cuh",
        "x = x * last + grad.share.at(at + sum_column(e / 4, e % 4));",
        "x = x * last;",
        "test_means",
    ),
    Mutant(
        "blocks share one place for the groups",
        "fine_grained/fine_grained_pair_backward.cuh",
        "work.text : device::block_index();",
        "work.text : 0;",
        "asked_for",
    ),
    Mutant(
        "ties at the minimum do not share",
        "alignment/pair_alignment.cuh",
        "total[0] / device::max(ties[0], 1.0f)",
        "total[0]",
        "ties",
    ),
    Mutant(
        "the minimum gets no gradient",
        "alignment/tiled_alignment.cuh",
        "(s[i] == row.low ? share : 0.0f)",
        "0.0f",
        "ragged",
    ),
    Mutant(
        "no barrier after a product",
        "common/tiled_product.cuh",
        "  device::block_barrier();\n}\n\n}  // namespace sparc",
        "}\n\n}  // namespace sparc",
        "ragged",
    ),
)


def caught(mutant: Mutant, checkout: Path) -> str | None:
    """What the tests said of it, or None where they passed."""
    path = checkout / "csrc" / mutant.file
    original = path.read_text()
    if original.count(mutant.text) != 1:
        raise ValueError(
            f"{mutant.name}: the text to replace stands {original.count(mutant.text)} times in {mutant.file}"
        )
    path.write_text(original.replace(mutant.text, mutant.instead))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/emulation/test_kernels.py", "-k", mutant.tests]
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
        for mutant in MUTANTS:
            said = caught(mutant, checkout)
            print(f"{mutant.name}: {f'caught ({said})' if said else 'SURVIVED'}", flush=True)
            survivors += [] if said else [mutant.name]
    sys.exit(f"not caught: {', '.join(survivors)}" if survivors else 0)


if __name__ == "__main__":
    main()

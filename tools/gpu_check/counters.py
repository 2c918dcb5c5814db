"""Nsight Compute's counters of the pair path beside what tools/sass_model predicts: a run on a GPU calibrates it.

The counts are kept where the GPU is. ``python -m tools.gpu_check.counters counters.json`` adds the predictions, which
take a minute of a CPU, and prints both.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from tools.sass_model.chips import CHIPS, PAIRS
from tools.sass_model.launches import OPS
from tools.sass_model.measured import PAPER as SHAPE
from tools.sass_model.model import SCHEDULERS, Prediction, predict

# What is counted, by its name in the report; per pair, except the last two.
METRICS = {
    "issue_slots_per_scheduler": "smsp__inst_executed.sum",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "lsu_wavefronts": "l1tex__data_pipe_lsu_wavefronts.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_written_bytes": "dram__bytes_write.sum",
    "issue_active_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "cycles_active": "sm__cycles_active.avg",
}
WHOLE = ("issue_active_percent", "cycles_active")
OPTIONS = (
    *("--csv", "--page", "raw", "--print-units", "base", "--print-kernel-base", "mangled", "--clock-control", "none"),
    *("--kernel-name-base", "mangled", "--kernel-name", "regex:11pair_kernel", "--metrics", ",".join(METRICS.values())),
)


def counted(text: str) -> list[dict[str, Any]]:
    """A record per launch in ``ncu --csv --page raw``."""
    lines = text.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError("no table of counters was found")
    found = []
    for row in csv.DictReader(lines[start:]):
        if not row["ID"]:  # the units
            continue
        name = row["Kernel Name"]
        op = next((op for op, (arguments, _) in OPS.items() if arguments in name), None)
        if op is None:
            continue
        values = {short: float(row[metric].replace(",", "")) for short, metric in METRICS.items()}
        for short in values:
            if short not in WHOLE:
                values[short] /= PAIRS
        values["issue_slots_per_scheduler"] /= SCHEDULERS
        architecture = f"sm_{row['CC'].replace('.', '')}"
        found.append({"op": op, "backward": "Lb1E" in name, "architecture": architecture, "counted": values})
    if not found:
        raise ValueError("no launch of the pair path was counted")
    return found


def predicted(op: str, backward: bool, architecture: str) -> dict[str, float] | str:
    """The same numbers by the model, or why there are none."""
    chip = next((chip for chip in CHIPS if chip.architecture == architecture), None)
    if chip is None:
        return f"the model knows no chip of {architecture}"
    try:
        return numbers(predict(op, backward, SHAPE, chip))
    except Exception as error:  # no g++, no cuobjdump, other code: the counters are worth keeping all the same
        return f"{type(error).__name__}: {error}"


def numbers(prediction: Prediction) -> dict[str, float]:
    trace = prediction.launch.trace
    read, written = prediction.launch.memory.compulsory()
    return {
        "issue_slots_per_scheduler": float(trace.issues.sum()) / SCHEDULERS,
        "shared_wavefronts": float(sum(trace.wavefronts.values())),
        "dram_read_bytes": float(read),
        "dram_written_bytes": float(written),
        "share_at_most": prediction.share,
    }


def keep(table: Path, out: Path) -> str:
    """Writes ``counters.json`` and says what was counted."""
    records = counted(table.read_text(errors="replace"))
    _write(records, out)
    return "; ".join(lines(records))


def compare(path: Path) -> str:
    """Adds the predictions to ``counters.json`` and says how far the counts are from them."""
    records = json.loads(path.read_text())
    for record in records:
        record["predicted"] = predicted(record["op"], record["backward"], record["architecture"])
    _write(records, path)
    return "\n".join(lines(records))


def _write(records: list[dict[str, Any]], out: Path) -> None:
    out.write_text(json.dumps(records, indent=1) + "\n")


def lines(records: list[dict[str, Any]]) -> list[str]:
    found = []
    for record in records:
        text = f"{record['op']} {'backward' if record['backward'] else 'forward'}:"
        text += f" issues in {record['counted']['issue_active_percent']:.0f}% of cycles"
        if "predicted" not in record:
            text += "".join(f", {name} {value:.4g}" for name, value in record["counted"].items() if name not in WHOLE)
        elif isinstance(record["predicted"], str):
            text += f" (not predicted: {record['predicted'][:60]})"
        else:
            ratios = {
                name: record["counted"][name] / value
                for name, value in record["predicted"].items()
                if name in record["counted"] and value
            }
            text += ", counted over predicted: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        found.append(text)
    return found


if __name__ == "__main__":
    print(compare(Path(sys.argv[1])))

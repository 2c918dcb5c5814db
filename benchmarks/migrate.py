"""Once: the CPU figures of 2026-11-22 from the first format of result files to the second one.

``python -m benchmarks.migrate benchmarks/results/cpu-epyc-zen4-2core/fine_grained.json``. Nothing is measured, nothing
is made up: what the first format did not record (Triton's version, roofs, the ratio of some contenders within rounds) is
absent or says so, and every row says that it was migrated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import write

Row = dict[str, Any]
PARITY = {"loss": "result", "patches": "first gradient", "tokens": "second gradient"}
KINDS = {
    "cpu": "ours",
    "eager": "eager",
    "eager_float32": "eager",
    "compile": "compile",
    "bare_products": "floor",
    "bare_products_kept": "floor",
}


def migrated(row: Row, environment: dict[str, str]) -> list[Row]:
    case = {name: row[name] for name in ("batch", "patches", "tokens", "channels", "dtype")}
    case = {"suite": "fine_grained", "op": "fine_grained", **case, "captions": "full"}
    times = {"cpu": row["milliseconds"].pop("fused"), "compile": row["milliseconds"].pop("compiled")}
    forward = row["milliseconds"].pop("fused_forward")
    times |= row["milliseconds"]
    contenders: dict[str, dict[str, Any]] = {
        name: {"kind": KINDS[name], "ms": rounded(ms), "rounds": row["rounds"]} for name, ms in times.items()
    }
    contenders["cpu"]["parity"] = {PARITY[name]: float(f"{value:.2g}") for name, value in row["parity"].items()}
    contenders["eager"]["over_ours"] = round(row["eager_over_fused"], 4)
    contenders["compile"]["over_ours"] = round(row["compiled_over_fused"], 4)
    contenders["bare_products"]["over_ours"] = round(1 / row["fused_over_bare_products"], 4)
    for name, contender in (("fused", "cpu"), ("eager", "eager")):
        contenders[contender]["memory_bytes"] = row["memory_beyond_inputs_and_gradients"][name]
    common = {
        "environment": environment,
        "ours": "cpu",
        "machine_used_by_others": round(row["machine_used_by_others"], 4),
    }
    only_forward = {"cpu": {"kind": "ours", "ms": rounded(forward), "rounds": row["rounds"]}}
    return [
        {"case": case | {"mode": "forward+backward"}, **common, "contenders": contenders},
        {"case": case | {"mode": "forward"}, **common, "contenders": only_forward},
    ]


def rounded(ms: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in ms.items()}


def main(path: Path) -> None:
    report = json.loads(path.read_text())
    old = report["environment"]
    environment = {name: old[name] for name in ("date", "commit", "torch", "python", "cpu_capability")} | {
        "device": f"{old['cpu']}, {old['threads']} threads",
        "driver": "none",
        "triton": "not recorded",
        "migrated": "from format 1, where one date and one commit stood for the whole file",
    }
    write(path, [new for row in report["rows"] for new in migrated(row, environment)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

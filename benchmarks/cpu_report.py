"""The CPU figures of the fine-grained loss as JSON: ``python -m benchmarks.cpu_report --out <file>``.

Every shape is timed in one process, all contenders in turn; ratios are medians over rounds, with the ratio of the
fastest calls beside them (which a machine that is busy with other things disturbs least). Losing rows are reported like
the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.fine_grained import CHANNELS, TOKENS, Setup
from benchmarks.harness import OthersShare, environment, interleaved, peak_memory, quantiles, ratio
from sparc_kernels import _native

QUIET = 0.02  # a row is measured again while other processes use more of the machine than this
BATCHES, PATCHES, DTYPES = (16, 64, 256), (49, 196, 576), (torch.float32, torch.bfloat16)


def times_when_quiet(
    contenders: dict[str, Callable[[], object]], seconds: float, patience: int
) -> tuple[dict[str, list[float]], float]:
    """Times, and the share of the machine that others used meanwhile: of ``patience`` tries the quietest one."""
    best: tuple[dict[str, list[float]], float] | None = None
    for _ in range(patience):
        with OthersShare() as others:
            times = interleaved(contenders, seconds)
        if best is None or others.share < best[1]:
            best = times, others.share
        if best[1] < QUIET:
            break
    assert best is not None
    return best


def measure(batch: int, patches: int, dtype: torch.dtype, seconds: float, patience: int) -> dict[str, Any]:
    """One row: times, ratios and memory of every contender at one shape."""
    setup = Setup(batch, patches, dtype)
    contenders: dict[str, Callable[[], object]] = {
        "fused": setup.fused(),
        "fused_forward": setup.fused_forward(),
        "bare_products": setup.bare_products(),
        "bare_products_kept": setup.bare_products(kept=True),
        "eager": setup.eager(),
        "compiled": setup.compiled(),
    }
    if dtype != torch.float32:  # the definition as the `eager` backend runs it, float32 inside
        contenders["eager_float32"] = setup.eager(torch.float32)
    parity = setup.assert_parity(setup.fused())
    times, others = times_when_quiet(contenders, seconds, patience)
    milliseconds = {name: quantiles(values) for name, values in times.items()}
    name = str(dtype).removeprefix("torch.")
    memory = {
        contender: peak_memory("benchmarks.fine_grained", contender, batch, patches, name)
        for contender in ("fused", "eager")
    }

    def fastest(contender: str) -> float:
        return milliseconds[contender]["min"]

    flop = 16 * batch * patches * setup.tokens * setup.channels
    kept = batch * setup.tokens * (patches + setup.channels) * 4
    return {
        "batch": batch,
        "patches": patches,
        "tokens": setup.tokens,
        "channels": setup.channels,
        "dtype": name,
        "rounds": len(times["fused"]),
        "machine_used_by_others": others,
        "milliseconds": milliseconds,
        "product_gflop": flop / 1e9,
        "product_gflop_per_second": flop / milliseconds["fused"]["p50"] / 1e6,
        "fused_over_bare_products": ratio(times, "fused", "bare_products"),
        "eager_over_fused": ratio(times, "eager", "fused"),
        "compiled_over_fused": ratio(times, "compiled", "fused"),
        "fastest_calls": {
            "fused_over_bare_products": fastest("fused") / fastest("bare_products"),
            "eager_over_fused": fastest("eager") / fastest("fused"),
            "compiled_over_fused": fastest("compiled") / fastest("fused"),
        },
        "memory_beyond_inputs_and_gradients": memory,
        "memory_share_of_eager": memory["fused"] / max(1, memory["eager"]),
        # The backward pass computes S, its cut and C' again; it would save at most the time of a whole forward pass.
        "keeping_similarities": {
            "saves_at_most": ratio(times, "fused_forward", "fused"),
            "bare_products_would_save": 1 - ratio(times, "bare_products_kept", "bare_products"),
            "bytes_kept": kept,
        },
        "parity": parity,
    }


def line(row: dict[str, Any]) -> str:
    times, fastest = row["milliseconds"], row["fastest_calls"]
    contenders = ("fused", "bare_products", "eager", "compiled")
    ratios = ("fused_over_bare_products", "eager_over_fused", "compiled_over_fused")
    return " | ".join(
        [
            f"B={row['batch']:<4}P={row['patches']:<4}{row['dtype']:<9}",
            "ms " + "  ".join(f"{name} {times[name]['p50']:.1f}" for name in contenders),
            "  ".join(f"{name.replace('_over_', '/')} {row[name]:.2f} ({fastest[name]:.2f})" for name in ratios),
            f"memory {100 * row['memory_share_of_eager']:.2f} % of eager",
            f"others used {100 * row['machine_used_by_others']:.0f} %",
            f"keeping S saves <= {100 * row['keeping_similarities']['saves_at_most']:.0f} %",
        ]
    )


def quiet(row: dict[str, Any] | None) -> bool:
    return row is not None and row["machine_used_by_others"] < QUIET


def earlier_rows(file: Path | None) -> dict[tuple[object, ...], dict[str, Any]]:
    """Rows of an earlier report of the same kernels, by shape."""
    if file is None or not file.exists():
        return {}
    report = json.loads(file.read_text())
    return {(row["dtype"], row["batch"], row["patches"]): row for row in report["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=8.0, help="time spent on each row (default 8)")
    parser.add_argument("--patience", type=int, default=1, help="tries per row until the machine is quiet (default 1)")
    parser.add_argument(
        "--improve",
        action="store_true",
        help="keep the rows of --out that were measured on a quiet machine, measure the others again",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--patches", type=int, nargs="+", default=PATCHES)
    options = parser.parse_args()
    report: dict[str, object] = {
        "what": f"fine_grained_loss, forward + backward, L={TOKENS}, D={CHANNELS}, every token valid",
        "environment": {**environment(), "cpu_capability": _native.build_info()["cpu_capability"]},
    }
    rows = earlier_rows(options.out if options.improve else None)
    for dtype, batch, patches in itertools.product(DTYPES, options.batches, options.patches):
        shape = (str(dtype).removeprefix("torch."), batch, patches)
        if not quiet(rows.get(shape)):
            again = measure(batch, patches, dtype, options.seconds, options.patience)
            rows[shape] = min(again, rows.get(shape, again), key=lambda row: row["machine_used_by_others"])
        print(line(rows[shape]), flush=True)
    report["rows"] = list(rows.values())
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""docs/benchmarks.md and the README's figures from the result files: ``python -m benchmarks.report`` writes both.

Nothing is measured here, and nothing is stated that no result file holds. The same files give the same text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.machine import CHECKOUT
from benchmarks.results import read

Row = dict[str, Any]
RESULTS, DOCUMENT, README = (
    CHECKOUT / "benchmarks" / "results",
    CHECKOUT / "docs" / "benchmarks.md",
    CHECKOUT / "README.md",
)
IMAGES = CHECKOUT / "docs" / "images"
BEGIN, END = "<!-- figures: make benchmark-report -->", "<!-- end of figures -->"

INTRODUCTION = """# Benchmarks

Written by `make benchmark-report` from the files in `benchmarks/results/`; edits here are lost.

    python -m benchmarks.run --suite fine_grained --out benchmarks/results/<device>/fine_grained.json
    make gpu-check OUT=<folder>       # a machine with a GPU and no network: tests, sanitizer, then every suite

`make gpu-check` takes `WHEEL=dist/<wheel>` (else it builds the library there, which needs nvcc), `PART=tests`,
`sanitizer` or `bench`, `SUITES="fine_grained scaling"`, `BUDGET=<seconds>` (540), and `COMMIT=` where the copy has
no history. Its `results.json` goes to `benchmarks/results/<device>/`. `DRY=1` rehearses it on the CPU.

How each row was measured:

- **Parity first.** Every contender's loss and gradients are compared with the eager definition in float32 before it
  is timed; one that computes something else is not timed and stands under "did not run".
- **In turns.** All contenders of a row run in one process, one after the other, round after round, after a warm-up.
  Times are medians with the 20th and 80th percentile; ratios are medians of the ratios within rounds. `compile` is
  `torch.compile` of the eager definition, which computes in the embeddings' dtype, as `eager` does.
- **On a GPU** times are those of CUDA graphs (the device's own time, without Python) where a contender could be
  captured, else between events around back-to-back calls; the result files hold both. Calls take so many copies of
  the inputs in turn that the second-level cache is cold. Memory is the allocator's peak beyond inputs, result and
  gradients.
- **On a CPU** times are of single calls, and memory is the peak of the resident memory of a fresh process, beyond
  inputs, result and gradients. `busy` is the share of the machine that other programs used meanwhile: read such a row
  as a sign, not as a measurement. The bars and the roofline leave busy rows out.
- **Of the floor**: the least time that the machine's own rates allow for the bytes and the flop that the op cannot
  avoid (the ops' MATH.md), over the time taken. The rates are the copy bandwidth and the dtype's matrix rate, both
  through torch, measured in the same run;
  a share over 100 % says that torch's own products reach less of this machine than ours.
- `bare products`: the 8 matrix products of L x P x D per pair through `torch.bmm` and nothing else, no loss.
- Rows that we lose are marked.
"""
SUITE_TITLES = {
    "fine_grained": "Fine-grained loss",
    "training_step": "A whole training step",
    "scaling": "As the work grows",
    "frozen": "One side frozen",
    "sparc": "The whole SPARC loss",
    "grouping": "Grouped embeddings and alignment weights",
    "adapters": "Adapters on stored features",
    "first_call": "First call of a process",
    "contrastive": "Global contrastive loss",
}
NOTES = {
    "frozen": "The fine-grained loss where one side needs no gradient, as with stored features.",
    "sparc": "`sparc_loss` with the global loss of the pooled embeddings, against the same in eager PyTorch.",
    "training_step": "Both towers of a preset, forward, backward and AdamW; in brackets what the fine-grained loss "
    "adds to the step with the global loss alone.",
    "adapters": "Two linear adapters on stored, frozen patch and token features: the step is the loss and little else.",
    "scaling": "Exponents of the power laws through the upper half of each series (1 is linear).",
    "first_call": "In fresh processes, after the import. `cold`: the compilers' caches are empty; `warm`: a process "
    "before this one filled them.",
}
Results = dict[str, list[Row]]  # by folder


def load(root: Path) -> Results:
    """The rows of every device's folder, each case once (a later file's, by name, wins)."""
    results: Results = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        rows = {str(sorted(row["case"].items())): row for file in sorted(folder.glob("*.json")) for row in read(file)}
        if rows:
            results[folder.name] = list(rows.values())
    return results


def document(results: Results, images: set[str]) -> str:
    """The whole page; ``images``: names of the plots that could be drawn."""
    parts = [INTRODUCTION]
    for folder, rows in results.items():
        parts.append(_device(folder, rows))
        parts += [f"![{text}](images/{name})\n" for name, text in _plots(folder) if name in images]
        for suite, title in SUITE_TITLES.items():
            chosen = [row for row in rows if row["case"]["suite"] == suite]
            if chosen:
                parts.append(_suite(suite, title, chosen))
        if missing := tables.did_not_run(rows):
            parts.append("### Did not run\n\n" + "\n".join(missing) + "\n")
    return "\n".join(parts)


def _device(folder: str, rows: list[Row]) -> str:
    head = ["device", "driver", "torch", "triton", "commit", "date", "rows"]
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        known = row["environment"]
        values = tuple(str(known[name]) for name in ("device", "driver", "torch", "triton", "commit"))
        described = (*values, known["date"][:10])
        seen[described] = seen.get(described, 0) + 1
    text = [f"## {folder}\n", tables.table(head, ([*values, str(count)] for values, count in seen.items()), 6), ""]
    roofs = {row["case"]["dtype"]: row["roofs"] for row in rows if row.get("roofs")}
    for dtype, roof in sorted(roofs.items()):
        text.append(
            f"- {dtype}: copy {roof['copy_gb_per_s']:,.0f} GB/s (read + written), "
            f"matrix products {roof['matrix_gflop_per_s'] / 1e3:,.2f} Tflop/s"
        )
    return "\n".join(text) + ("\n" if roofs else "")


def _suite(suite: str, title: str, rows: list[Row]) -> str:
    parts = [f"### {title}\n"]
    if suite in NOTES:
        parts.append(f"{NOTES[suite]}\n")
    if suite in ("training_step", "adapters"):
        parts.append(tables.step_table(rows) + "\n")
    elif suite == "first_call":
        parts.append(tables.first_call_table(rows) + "\n")
    elif suite == "scaling":
        parts.append(tables.scaling_table(rows) + "\n")
    else:
        groups = sorted(
            {(row["case"]["op"], row["case"]["mode"]) for row in rows}, key=lambda g: (g[0], g[1] == "forward")
        )
        for op, mode in groups:
            name = "" if op == suite else f"{op}, "
            parts.append(f"**{name}{mode.replace('+', ' + ')}**\n")
            parts.append(
                tables.op_table([r for r in rows if (r["case"]["op"], r["case"]["mode"]) == (op, mode)]) + "\n"
            )
    return "\n".join(parts)


def _plots(folder: str) -> list[tuple[str, str]]:
    kinds = (
        ("speed_up", "Times relative to ours"),
        ("roofline", "Roofline"),
        ("memory", "Memory against batch"),
        ("scaling", "Time against each size"),
    )
    return [(f"benchmarks_{folder}_{kind}.svg", f"{text}, {folder}") for kind, text in kinds]


def draw_plots(results: Results, images: Path) -> set[str]:
    """Writes what the rows give; the names of the files."""
    from benchmarks import plots

    drawn = set()
    for folder, rows in results.items():
        of = {suite: [row for row in rows if row["case"]["suite"] == suite] for suite in SUITE_TITLES}
        draw = (plots.speed_up, plots.roofline, plots.memory_against_batch, plots.scaling)
        data = (of["fine_grained"], of["fine_grained"], [*of["scaling"], *of["fine_grained"]], of["scaling"])
        for (name, _), function, chosen in zip(_plots(folder), draw, data):
            if function(sorted(chosen, key=tables.order), images / name):
                drawn.add(name)
    return drawn


def readme_figures(results: Results) -> str:
    """The README's table: forward + backward at the paper's ViT-B/16 shape, a column for each dtype and device."""
    columns: list[tuple[str, Row, Row | None]] = []  # title, the fine-grained loss, the whole SPARC loss
    for folder, rows in results.items():
        batch = 64 if folder.startswith("cpu") else 1024
        shape = {"batch": batch, "patches": 196, "tokens": 55, "channels": 512}
        shape |= {"mode": "forward+backward", "captions": "full"}
        alike = [row for row in rows if shape.items() <= row["case"].items() and row["ours"]]
        whole = {row["case"]["dtype"]: row for row in alike if row["case"]["suite"] == "sparc"}
        found = [row for row in alike if row["case"]["suite"] == "fine_grained"]
        columns += [
            (f"{folder}, {dtype}, B = {batch}", row, whole.get(dtype))
            for row in sorted(found, key=tables.order)
            for dtype in [row["case"]["dtype"]]
        ]
    lines = [["backend", *(str(row["ours"]) for _, row, _ in columns)]]
    lines.append(["date", *(row["environment"]["date"][:10] for _, row, _ in columns)])
    for name, label in tables.RIVALS.items():
        ratios = [tables.over_ours(row, name) for _, row, _ in columns]
        if any(ratios):
            lines.append([f"time of {label} / ours", *map(_ratio, ratios)])
    lines.append(["memory beyond inputs and gradients / eager's", *(_memory_share(row) for _, row, _ in columns)])
    if any(row for _, _, row in columns):
        ratios = [row and tables.over_ours(row, "eager") for _, _, row in columns]
        lines.append(["`sparc_loss`: time of eager / ours", *map(_ratio, ratios)])
        lines.append(["`sparc_loss`: memory / eager's", *(_memory_share(row) if row else "" for _, _, row in columns)])
    return tables.table(["", *(title for title, _, _ in columns)], lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _memory_share(row: Row) -> str:
    ours, eager = (row["contenders"].get(name, {}).get("memory_bytes") for name in (row["ours"], "eager"))
    return "" if ours is None or not eager else f"{100 * ours / eager:.1f} %"


def with_figures(readme: str, figures: str) -> str:
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with one folder for each device")
    parser.add_argument("--out", type=Path, help="write the page and its images here, and leave docs and README alone")
    options = parser.parse_args()
    results = load(options.results)
    if options.out:
        drawn = draw_plots(results, options.out / "images")
        (options.out / "benchmarks.md").write_text(document(results, drawn))
        return
    for stale in IMAGES.glob("benchmarks_*.svg"):
        stale.unlink()
    DOCUMENT.write_text(document(results, draw_plots(results, IMAGES)))
    README.write_text(with_figures(README.read_text(), readme_figures(results)))


if __name__ == "__main__":
    main()

"""docs/benchmarks.md and the README's figures from the result files: ``python -m benchmarks.report`` writes both.

Nothing is measured here, and nothing is stated that no result file holds. The same files give the same text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.measure import registry
from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.results import read
from benchmarks.measure.suite import Plot, Suite
from benchmarks.report import tables
from benchmarks.report.markers import between

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

    python -m benchmarks.run --suite {0} --out benchmarks/results/<device>/{0}.json
    python -m benchmarks.run --suite {0} --where batch=1024 --out results.json      # some of its rows
    make gpu-check OUT=<folder>       # a machine with a GPU and no network: tests, sanitizer, counters, every suite

`make gpu-check` takes `WHEEL=dist/<wheel>` (else it builds the library there, which needs nvcc), `PART=tests`,
`sanitizer`, `counters` or `bench`, `SUITES="{0} {1}"`, `BUDGET=<seconds>` (540), and `COMMIT=` where the copy has
no history. Its `results.json` goes to `benchmarks/results/<device>/`. `DRY=1` rehearses it on the CPU.

How each row was measured:

- **Parity first.** Every contender's loss and gradients are compared with the eager definition in float32 before it
  is timed; one that computes something else is not timed and stands under "did not run". How far it may be off depends
  on the precision that it computes in; the result files say how far it is, and what was allowed.
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
{notes}
- Rows that we lose are marked.
"""
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
    parts = [_introduction()]
    for folder, rows in results.items():
        parts.append(_device(folder, rows))
        plots = {_image(folder, plot): f"{plot.title}, {folder}" for plot in registry.plots()}
        parts += [f"![{text}](images/{name})\n" for name, text in plots.items() if name in images]
        parts += [_suite(suite, found) for suite in registry.suites().values() if (found := _of(suite.name, rows))]
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


def _introduction() -> str:
    explained = [provider for provider in registry.all_providers().values() if provider.note]
    notes = "\n".join(f"- `{provider.label}`: {provider.note}" for provider in explained)
    longest = sorted(registry.suites().values(), key=lambda suite: -suite.weight)
    return INTRODUCTION.format(*(suite.name for suite in longest), notes=notes)


def _of(suite: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["case"]["suite"] == suite]


def _suite(suite: Suite, rows: list[Row]) -> str:
    note = [suite.note] if suite.note else []
    return "\n\n".join([f"### {suite.title}", *note, (suite.table or tables.op_tables)(rows)]) + "\n"


def _image(folder: str, plot: Plot) -> str:
    return f"benchmarks_{folder}_{plot.kind}.svg"


def draw_plots(results: Results, images: Path) -> set[str]:
    """Writes what the rows give; the names of the files."""
    from benchmarks.report import plots

    drawn = set()
    for folder, rows in results.items():
        for plot in registry.plots():
            chosen = [row for suite in plot.suites for row in _of(suite, rows)]
            name = _image(folder, plot)
            if plots.KINDS[plot.kind](sorted(chosen, key=tables.order), images / name, **plot.options):
                drawn.add(name)
    return drawn


def readme_figures(results: Results) -> str:
    """The README's table: each suite with a headline at its shape, a column for each dtype and device."""
    shown = [(suite, suite.headline) for suite in registry.suites().values() if suite.headline]
    columns: list[tuple[str, dict[str, Row]]] = []  # title, the rows by suite
    for folder, rows in results.items():
        found: dict[str, dict[str, Row]] = {}  # by dtype and suite
        for suite, headline in shown:
            shape = headline.shape(not folder.startswith("cpu"))
            for row in sorted(_of(suite.name, rows), key=tables.order):
                if shape.items() <= row["case"].items() and row["ours"]:
                    found.setdefault(row["case"]["dtype"], {})[suite.name] = row
        columns += [
            (f"{folder}, {dtype}, B = {by_suite[shown[0][0].name]['case']['batch']}", by_suite)
            for dtype, by_suite in found.items()
            if shown[0][0].name in by_suite
        ]
    lines = []
    for suite, headline in shown:
        across = [by_suite.get(suite.name) for _, by_suite in columns]
        if any(across):
            lines += _headline_lines(across, headline.prefix)
    return tables.table(["", *(title for title, _ in columns)], lines)


def _headline_lines(across: list[Row | None], prefix: str) -> list[list[str]]:
    """Rows of the README's table: everything for the suite that gives the columns, the gist for one with a prefix."""

    def ratios(name: str, label: str) -> list[list[str]]:
        found = [tables.over_ours(row, name) if row else None for row in across]
        return [[f"{prefix}time of {label} / ours", *map(_ratio, found)]] if any(found) else []

    shares = [_memory_share(row) if row else "" for row in across]
    if prefix:
        return [*ratios("eager", "eager"), [f"{prefix}memory / eager's", *shares]]
    whole = [row for row in across if row]
    described = [["backend", *(str(row["ours"]) for row in whole)]]
    described.append(["date", *(row["environment"]["date"][:10] for row in whole)])
    return [
        *described,
        *(line for rival in tables.rivals().items() for line in ratios(*rival)),
        ["memory beyond inputs and gradients / eager's", *shares],
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _memory_share(row: Row) -> str:
    ours, eager = (row["contenders"].get(name, {}).get("memory_bytes") for name in (row["ours"], "eager"))
    return "" if ours is None or not eager else f"{100 * ours / eager:.1f} %"


def with_figures(readme: str, figures: str) -> str:
    return between(readme, BEGIN, END, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with one folder for each device")
    parser.add_argument("--out", type=Path, help="write the page and its images here, and leave docs and README alone")
    options = parser.parse_args()
    results = load(options.results)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        drawn = draw_plots(results, options.out / "images")
        (options.out / "benchmarks.md").write_text(document(results, drawn))
        return
    for stale in IMAGES.glob("benchmarks_*.svg"):
        stale.unlink()
    DOCUMENT.write_text(document(results, draw_plots(results, IMAGES)))
    README.write_text(with_figures(README.read_text(), readme_figures(results)))


if __name__ == "__main__":
    main()

"""Plots of the result rows, as small SVG files that depend on the rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.measure.case import BOTH
from benchmarks.measure.harness import QUIET
from benchmarks.report.tables import median, op_of, over_ours, rivals, scaling_series

Row = dict[str, Any]
DTYPES = ("bfloat16", "float32")  # each a panel
COLOURS = {
    "cuda": "#1b7837",
    "triton": "#2166ac",
    "cpu": "#1b7837",
    "eager": "#b2182b",
    "listing": "#f4a582",
    "compile": "#878787",
}
matplotlib.rcParams.update({"svg.hashsalt": "sparc_kernels", "svg.fonttype": "none", "font.size": 9})
matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.figsize": (6.4, 3.6)})


def quiet(rows: list[Row]) -> list[Row]:
    return [row for row in rows if (row.get("machine_used_by_others") or 0) < QUIET]


def save(path: Path, foot: float = 0.0) -> None:
    """The current figure; ``foot``: the share of its height that is kept free at the bottom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.tight_layout(rect=(0, foot, 1, 1))
    plt.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close()


def _alike(rows: list[Row], same: Mapping[str, Any]) -> list[Row]:
    """Rows, forward + backward, that have the values ``same``."""
    return [row for row in rows if {**same, "mode": BOTH}.items() <= row["case"].items()]


def _along(rows: list[Row], axes: Sequence[str], most: int) -> list[Row]:
    """By the sizes ``axes``; at most ``most``, ends included."""
    found = sorted(rows, key=lambda row: [row["case"][axis] for axis in axes])
    if len(found) <= most:
        return found
    return [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]


def speed_up(rows: list[Row], path: Path, same: Mapping[str, Any], along: Sequence[str], most: int = 12) -> bool:
    """Bars of the contenders' times over ours, a panel per dtype; left of 1 we lose.

    Of the rows with the values ``same``, named by their sizes ``along``.
    """
    chosen = [row for row in _alike(quiet(rows), same) if row["ours"]]
    by_dtype = {d: _along([row for row in chosen if row["case"]["dtype"] == d], along, most) for d in DTYPES}
    by_dtype = {dtype: some for dtype, some in by_dtype.items() if some}
    drawn = [row for some in by_dtype.values() for row in some]
    floors = {name for row in drawn for name, record in row["contenders"].items() if record["kind"] == "floor"}
    labels = {n: label for n, label in rivals().items() if n not in floors and any(over_ours(r, n) for r in drawn)}
    names = list(labels)
    if not drawn or not names:
        return False
    tallest = max(map(len, by_dtype.values()))
    size = (1.2 + 3.4 * len(by_dtype), 1.4 + 0.13 * tallest * (len(names) + 1))
    _, panels = plt.subplots(1, len(by_dtype), figsize=size, squeeze=False)
    height = 0.8 / len(names)
    for panel, (dtype, some) in zip(panels[0], by_dtype.items()):
        for place, name in enumerate(names):
            values = [over_ours(row, name) or 0 for row in some]
            at = [index + (place - (len(names) - 1) / 2) * height for index in range(len(some))]
            panel.barh(at, values, height, label=labels[name], color=COLOURS.get(name, f"C{place}"))
        panel.axvline(1, color="black", linewidth=1)
        ticks = [" ".join(f"{op_of(row).axes[axis]}={row['case'][axis]}" for axis in along) for row in some]
        panel.set_yticks(range(len(some)), ticks)
        panel.invert_yaxis()
        panel.set(title=dtype, xlabel="time relative to ours, forward + backward")
    handles, labels = panels[0][0].get_legend_handles_labels()
    plt.gcf().legend(handles, labels, frameon=False, loc="lower center", ncols=len(names))
    save(path, foot=0.05)
    return True


def roofline(rows: list[Row], path: Path) -> bool:
    """What each contender reaches of the work model's flop, under the machine's measured roofs."""
    rows = [row for row in quiet(rows) if row.get("roofs") and row.get("ours")]
    if not rows:
        return False
    plt.figure()
    axes = plt.gca()
    intensities = [row["model"]["flop"] / row["model"]["bytes"] for row in rows]
    low, high = min(intensities) / 4, max(intensities) * 4
    roofs = {row["case"]["dtype"]: row["roofs"] for row in rows}
    for place, (dtype, roof) in enumerate(sorted(roofs.items())):
        edge = roof["matrix_gflop_per_s"] / roof["copy_gb_per_s"]
        line = [low, min(max(edge, low), high), high]
        heights = [min(x * roof["copy_gb_per_s"], roof["matrix_gflop_per_s"]) for x in line]
        axes.plot(line, heights, color="black", linestyle=("-", "--", ":", "-.")[place % 4], label=f"roof, {dtype}")
    _points(axes, rows)
    axes.set(xscale="log", yscale="log", xlabel="flop per byte (work model)", ylabel="Gflop/s")
    axes.legend(frameon=False)
    save(path)
    return True


def _points(axes: Axes, rows: list[Row]) -> None:
    for name in (*("cuda", "triton", "cpu"), "eager", "compile"):
        timed = [row for row in rows if "ms" in row["contenders"].get(name, {})]
        if timed:
            x = [row["model"]["flop"] / row["model"]["bytes"] for row in timed]
            y = [row["model"]["flop"] / median(row["contenders"][name]) / 1e6 for row in timed]
            axes.scatter(x, y, s=14, color=COLOURS[name], label=name, zorder=3)


def memory_against_batch(rows: list[Row], path: Path, same: Mapping[str, Any]) -> bool:
    """Peak memory beyond inputs, result and gradients, by batch, of the rows with the values ``same``."""
    rows = _alike(rows, same)
    dtype = next((row["case"]["dtype"] for row in rows), "")
    rows = [row for row in rows if row["case"]["dtype"] == dtype]
    plt.figure()
    drawn = False
    for name in ("cuda", "triton", "cpu", "eager", "listing", "compile"):
        found = {row["case"]["batch"]: row["contenders"].get(name, {}).get("memory_bytes") for row in rows}
        points = sorted((batch, used / 1e6) for batch, used in found.items() if used)
        if len(points) > 1:
            drawn = True
            plt.plot(*zip(*points), marker="o", markersize=3, color=COLOURS[name], label=name)
    if not drawn:
        plt.close()
        return False
    plt.xscale("log", base=2)
    plt.yscale("log")
    sizes = [f"{letter}={same[axis]}" for axis, letter in op_of(rows[0]).axes.items() if axis in same]
    plt.xlabel(f"batch ({', '.join([*sizes, dtype])})")
    plt.ylabel("MB beyond inputs and gradients")
    plt.legend(frameon=False)
    save(path)
    return True


def scaling(rows: list[Row], path: Path) -> bool:
    """Time against each size that the scaling suite varies."""
    known = op_of(rows[0]).axes if rows else ()
    axes_names = [axis for axis in known if sum(row["case"]["axis"] == axis for row in rows) > 1]
    if not axes_names:
        return False
    _, panels = plt.subplots(1, len(axes_names), figsize=(2.6 * len(axes_names) + 0.8, 3.0), squeeze=False)
    for panel, axis in zip(panels[0], axes_names):
        along = [row for row in rows if row["case"]["axis"] == axis]
        for name in ("cuda", "triton", "cpu", "eager", "listing"):
            sizes, times, _ = scaling_series(along, axis, name)
            if sizes:
                panel.plot(sizes, times, marker="o", markersize=3, color=COLOURS[name], label=name)
        panel.set(xscale="log", yscale="log", xlabel=axis)
        sizes = sorted({row["case"][axis] for row in along})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xticks([], minor=True)
    panels[0][0].set_ylabel("ms, forward + backward")
    panels[0][0].legend(frameon=False)
    save(path)
    return True


KINDS: dict[str, Callable[..., bool]] = {
    "speed_up": speed_up,
    "roofline": roofline,
    "memory": memory_against_batch,
    "scaling": scaling,
}

"""Result rows as Markdown tables. The rows that we lose stand among the others and say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.measure import registry
from benchmarks.measure.case import BOTH, Op
from benchmarks.measure.harness import QUIET
from benchmarks.measure.timing import fitted_exponent

Row = dict[str, Any]
FITTED_LIMIT = 1.05  # the goal for cost as the work grows


def rivals() -> dict[str, str]:
    """Contenders that have a column, and what heads it."""
    return {name: provider.label for name, provider in registry.all_providers().items() if provider.label}


def op_of(row: Row) -> Op:
    return registry.ops()[row["case"]["op"]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    text = [place < text_columns or name == "remarks" for place, name in enumerate(head)]
    rule = ["---" if left else "---:" for left in text]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def milliseconds(value: float) -> str:
    """Three significant digits, but at least to the tenth of a microsecond."""
    digits = next((count for count, least in enumerate((100, 10, 1, 0.1)) if value >= least), 4)
    return f"{value:.{digits}f}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.1f}" if value < 1e8 else f"{value / 1e6:,.0f}"


def median(record: dict[str, Any]) -> float:
    """The device's own time where it is known, else the time of a call."""
    return float(record.get("graph_ms", record["ms"])["p50"])


def over_ours(row: Row, name: str) -> float | None:
    """How many times as long a contender takes: by the devices' own times where both are known, else within rounds."""
    record, ours = row["contenders"].get(name, {}), row["contenders"].get(row["ours"] or "", {})
    if name == row["ours"] or "ms" not in record or "ms" not in ours:
        return None
    if "graph_ms" in record and "graph_ms" in ours:
        return median(record) / median(ours)
    ratio = record.get("over_ours")
    return None if ratio is None else float(ratio)


def lost_to(row: Row) -> list[str]:
    """Contenders that compute the same thing in less time."""
    return [
        label
        for name, label in rivals().items()
        if row["contenders"].get(name, {}).get("kind") not in (None, "floor")
        and (ratio := over_ours(row, name)) is not None
        and ratio < 1
    ]


def lost_when_called(row: Row) -> list[str]:
    """Contenders that lose by the devices' own times and win where the time of the calls from Python counts."""
    named = {name: label for name, label in rivals().items() if row["contenders"].get(name, {}).get("kind") != "floor"}
    ratios = {label: row["contenders"].get(name, {}).get("over_ours", 1) for name, label in named.items()}
    return [label for label, ratio in ratios.items() if ratio < 1 and label not in lost_to(row)]


def smaller_peers(row: Row) -> list[str]:
    """Packages of others that take less memory."""
    ours = row["contenders"].get(row["ours"] or "", {}).get("memory_bytes", 0)
    return [
        f"{rivals().get(name, name)} {memory_cell(row, name)}"
        for name, record in row["contenders"].items()
        if record["kind"] == "peer" and record.get("memory_bytes", ours) < ours
    ]


def remarks(row: Row) -> str:
    parts = [f"**loses to {', '.join(lost)}**"] if (lost := lost_to(row)) else []
    parts += [f"**called from Python, loses to {', '.join(lost)}**"] if (lost := lost_when_called(row)) else []
    parts += [f"less MB: {', '.join(smaller)}"] if (smaller := smaller_peers(row)) else []
    others = row.get("machine_used_by_others") or 0
    if others >= QUIET:
        parts.append(f"busy {100 * others:.0f} %")
    parts += [
        f"{rivals().get(name, name)} failed: {record['failed'].split(':')[0]}"
        for name, record in row["contenders"].items()
        if "failed" in record
    ]
    if row["ours"] is None:
        parts.append("no kernel of ours")
    return "; ".join(parts)


def order(row: Row) -> tuple[Any, ...]:
    """Rows of one table: by direction, dtype and sizes."""
    case, op = row["case"], op_of(row)
    sizes = tuple(case.get(name, 0) for name in op.sorted_by)
    return (
        case["op"],
        case["mode"] != BOTH,
        *(case.get(name, usual) for name, usual in op.labels.items()),
        case.get("frozen", ""),
        case["dtype"] != "bfloat16",
        case["dtype"],
        sizes,
    )


def memory_cell(row: Row, name: str | None) -> str:
    value = row["contenders"].get(name or "", {}).get("memory_bytes")
    return "" if value is None else megabytes(value)


def op_table(rows: list[Row]) -> str:
    """Rows of one op: ours in milliseconds, the others as multiples of it, memory beyond inputs, result, gradients."""
    rows, op = sorted(rows, key=order), op_of(rows[0])
    shown_rivals = {name: label for name, label in rivals().items() if any(over_ours(row, name) for row in rows)}
    sizes = {name: letter for name, letter in op.axes.items() if any(row["case"].get(name) for row in rows)}
    labels = {name: usual for name, usual in op.labels.items() if any(row["case"][name] != usual for row in rows)}
    floors = any("share_of_floor" in record for row in rows for record in row["contenders"].values())
    frozen = any("frozen" in row["case"] for row in rows)
    head = [*labels, *(["frozen"] if frozen else []), "dtype", *sizes.values(), "backend", "ms (p20 to p80)"]
    head += [*(f"{label} / ours" for label in shown_rivals.values()), *(["of the floor"] if floors else [])]
    head += ["MB, ours", "MB, eager", "remarks"]
    lines = []
    for row in rows:
        case, ours = row["case"], row["contenders"].get(row["ours"] or "", {})
        shown = ours or row["contenders"].get("eager", {})
        cells = [case[name] for name in labels]
        cells += [op.sides[case["frozen"]] if "frozen" in case else "neither"] if frozen else []
        cells += [case["dtype"], *(str(case.get(name, "")) for name in sizes), row["ours"] or "eager"]
        cells.append(time_cell(shown))
        cells += ["" if (ratio := over_ours(row, name)) is None else f"{ratio:.2f}" for name in shown_rivals]
        if floors:
            share = shown.get("share_of_floor")
            cells.append("" if share is None else f"{100 * share:.0f} % ({row['model']['bound']})")
        lines.append([*cells, memory_cell(row, row["ours"]), memory_cell(row, "eager"), remarks(row)])
    return table(head, lines, 1 + len(labels) + frozen)


def op_tables(rows: list[Row]) -> str:
    """A table for each op and direction of a suite."""
    groups = sorted({(row["case"]["op"], row["case"]["mode"]) for row in rows}, key=lambda g: (g[0], g[1] != BOTH))
    parts = []
    for op, mode in groups:
        name = "" if op == rows[0]["case"]["suite"] else f"{op}, "
        chosen = [row for row in rows if (row["case"]["op"], row["case"]["mode"]) == (op, mode)]
        parts.append(f"**{name}{mode.replace('+', ' + ')}**\n\n{op_table(chosen)}")
    return "\n\n".join(parts)


def time_cell(record: dict[str, Any]) -> str:
    if "ms" not in record:
        return "failed" if "failed" in record else ""
    ms = record.get("graph_ms", record["ms"])
    return f"{milliseconds(ms['p50'])} ({milliseconds(ms['p20'])} to {milliseconds(ms['p80'])})"


def any_time(rows: list[Row], name: str) -> bool:
    return any("ms" in row["contenders"].get(name, {}) for row in rows)


def scaling_series(rows: list[Row], axis: str, name: str) -> tuple[list[int], list[float], list[float]]:
    """Sizes, milliseconds and bytes (empty where not measured) of one contender along one axis."""
    points = sorted((r["case"][axis], r["contenders"][name]) for r in rows if "ms" in r["contenders"].get(name, {}))
    memory = [float(record["memory_bytes"]) for _, record in points if "memory_bytes" in record]
    return [size for size, _ in points], [median(record) for _, record in points], memory


def scaling_table(rows: list[Row], work: float = 1.0, memory_grows: float = 1.0) -> str:
    """Exponents of the power laws through the upper half of each series; 1 is linear.

    ``work``: the power with which the operations themselves grow; ``memory_grows``: that of what ours keeps.
    """
    limits = (FITTED_LIMIT * work, FITTED_LIMIT * memory_grows)  # of time, of memory
    lines = []
    for axis in op_of(rows[0]).axes:
        along = [row for row in rows if row["case"].get("axis") == axis]
        for name in dict.fromkeys(name for row in along for name in row["contenders"]):
            if not any_time(along, name) or name.startswith("bare"):
                continue
            sizes, times, memory = scaling_series(along, axis, name)
            exponents = [fitted_exponent(sizes, times)]
            exponents.append(fitted_exponent(sizes, memory) if len(memory) == len(sizes) else None)
            ours = name in (row["ours"] for row in along)
            passed = [f"**over {limit:g}**" for e, limit in zip(exponents, limits) if ours and (e or 0) > limit]
            shown = ["" if exponent is None else f"{exponent:.2f}" for exponent in exponents]
            span = f"{sizes[0]} to {sizes[-1]}" if sizes else ""
            lines.append([axis, name, span, *shown, ", ".join(passed)])
    return table(["grows", "contender", "from, to", "time", "memory", "remarks"], lines, 2)


def did_not_run(rows: list[Row]) -> list[str]:
    """Each reason once, with the number of rows; a device's other half is not worth a line."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, record in row["contenders"].items():
            if reason := record.get("failed") or record.get("unsupported"):
                reasons[name, reason] = reasons.get((name, reason), 0) + 1
    return [f"- `{name}`, {count} rows: {reason}" for (name, reason), count in sorted(reasons.items())]

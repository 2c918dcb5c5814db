"""Result rows as Markdown tables. The rows that we lose stand among the others and say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness import QUIET
from benchmarks.timing import fitted_exponent

Row = dict[str, Any]
RIVALS = {
    "triton": "triton",  # where ours is cuda: the backend that `auto` does not take
    "eager": "eager",
    "eager_float32": "eager, float32 inside",
    "listing": "paper's listing",
    "compile": "compile",
    "compile_max_autotune": "compile, max-autotune",
    "compile_max_autotune_no_graphs": "compile, max-autotune, no graphs",
    "open_clip": "open_clip",
    "inf_cl": "inf_cl",
    "bare_products": "bare products",
}
SIZES = (("B", "batch"), ("P", "patches"), ("L", "tokens"), ("D", "channels"))
FITTED_LIMIT = 1.05  # the goal for cost as the work grows


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
        for name, label in RIVALS.items()
        if row["contenders"].get(name, {}).get("kind") not in (None, "floor")
        and (ratio := over_ours(row, name)) is not None
        and ratio < 1
    ]


def remarks(row: Row) -> str:
    parts = [f"**loses to {', '.join(lost)}**"] if (lost := lost_to(row)) else []
    others = row.get("machine_used_by_others") or 0
    if others >= QUIET:
        parts.append(f"busy {100 * others:.0f} %")
    parts += [
        f"{RIVALS.get(name, name)} failed: {record['failed'].split(':')[0]}"
        for name, record in row["contenders"].items()
        if "failed" in record
    ]
    if row["ours"] is None:
        parts.append("no kernel of ours")
    return "; ".join(parts)


def order(row: Row) -> tuple[Any, ...]:
    """Rows of one table: by direction, dtype and sizes."""
    case = row["case"]
    sizes = tuple(case.get(name, 0) for name in ("tokens", "channels", "patches", "batch"))
    return (
        case["op"],
        case["mode"] != "forward+backward",
        case["captions"],
        case.get("frozen", ""),
        case["dtype"] != "bfloat16",
        case["dtype"],
        sizes,
    )


def _size_columns(rows: list[Row]) -> list[tuple[str, str]]:
    return [(label, name) for label, name in SIZES if any(row["case"].get(name) for row in rows)]


def _memory(row: Row, name: str | None) -> str:
    value = row["contenders"].get(name or "", {}).get("memory_bytes")
    return "" if value is None else megabytes(value)


def op_table(rows: list[Row]) -> str:
    """Ours in milliseconds, the others as multiples of it, memory beyond inputs, result and gradients."""
    rows = sorted(rows, key=order)
    rivals = [name for name in RIVALS if any(over_ours(row, name) is not None for row in rows)]
    sizes, ragged = _size_columns(rows), any(row["case"]["captions"] != "full" for row in rows)
    floors = any("share_of_floor" in record for row in rows for record in row["contenders"].values())
    frozen = any("frozen" in row["case"] for row in rows)
    head = [*(["captions"] if ragged else []), *(["frozen"] if frozen else []), "dtype", *(label for label, _ in sizes)]
    head += ["backend", "ms (p20 to p80)"]
    head += [*(f"{RIVALS[name]} / ours" for name in rivals), *(["of the floor"] if floors else [])]
    head += ["MB, ours", "MB, eager", "remarks"]
    lines = []
    for row in rows:
        case, ours = row["case"], row["contenders"].get(row["ours"] or "", {})
        shown = ours or row["contenders"].get("eager", {})
        cells = [case["captions"]] if ragged else []
        cells += [{"": "neither", "first": "patches", "second": "tokens"}[case.get("frozen", "")]] if frozen else []
        cells += [case["dtype"], *(str(case.get(name, "")) for _, name in sizes), row["ours"] or "eager"]
        cells.append(_time(shown))
        cells += ["" if (ratio := over_ours(row, name)) is None else f"{ratio:.2f}" for name in rivals]
        if floors:
            share = shown.get("share_of_floor")
            cells.append("" if share is None else f"{100 * share:.0f} % ({row['model']['bound']})")
        lines.append([*cells, _memory(row, row["ours"]), _memory(row, "eager"), remarks(row)])
    return table(head, lines, 1 + ragged + frozen)


def _time(record: dict[str, Any]) -> str:
    if "ms" not in record:
        return "failed" if "failed" in record else ""
    ms = record.get("graph_ms", record["ms"])
    return f"{milliseconds(ms['p50'])} ({milliseconds(ms['p20'])} to {milliseconds(ms['p80'])})"


def step_table(rows: list[Row]) -> str:
    """A whole step with the global loss alone, and what each way to compute the fine-grained loss adds to it."""
    contenders = [name for name in ("cuda", "triton", "cpu", "eager", "compile") if _any_time(rows, name)]
    head = ["", "dtype", "B", "global loss alone, ms", *(f"with {name}" for name in contenders)]
    head += ["MB, alone", "MB, ours", "remarks"]
    lines = []
    for row in sorted(
        rows, key=lambda row: (row["case"].get("preset", ""), row["case"]["dtype"], row["case"]["batch"])
    ):
        case, base = row["case"], row["contenders"]["without"]
        cells = [case.get("preset", "adapters"), case["dtype"], str(case["batch"]), _time(base)]
        cells += [_added(row["contenders"].get(name, {}), base) for name in contenders]
        lines.append([*cells, _memory(row, "without"), _memory(row, row["ours"]), remarks(row)])
    return table(head, lines, 2)


def _any_time(rows: list[Row], name: str) -> bool:
    return any("ms" in row["contenders"].get(name, {}) for row in rows)


def _added(record: dict[str, Any], base: dict[str, Any]) -> str:
    if "ms" not in record or "ms" not in base:
        return ""
    return f"{milliseconds(record['ms']['p50'])} ({100 * (record['ms']['p50'] / base['ms']['p50'] - 1):+.1f} %)"


def first_call_table(rows: list[Row]) -> str:
    head = ["caches", "contender", "first call, ms", "second call, ms", "processes"]
    lines = [
        [row["case"]["axis"], name, _time(record), milliseconds(record["second_ms"]), str(record["rounds"])]
        for row in sorted(rows, key=lambda row: row["case"]["axis"])
        for name, record in row["contenders"].items()
        if "ms" in record
    ]
    return table(head, lines, 2)


def scaling_series(rows: list[Row], axis: str, name: str) -> tuple[list[int], list[float], list[float]]:
    """Sizes, milliseconds and bytes (empty where not measured) of one contender along one axis."""
    points = sorted((r["case"][axis], r["contenders"][name]) for r in rows if "ms" in r["contenders"].get(name, {}))
    memory = [float(record["memory_bytes"]) for _, record in points if "memory_bytes" in record]
    return [size for size, _ in points], [median(record) for _, record in points], memory


def scaling_table(rows: list[Row]) -> str:
    """Exponents of the power laws through the upper half of each series; 1 is linear."""
    lines = []
    for axis in ("batch", "patches", "tokens"):
        along = [row for row in rows if row["case"].get("axis") == axis]
        for name in dict.fromkeys(name for row in along for name in row["contenders"]):
            if not _any_time(along, name) or name.startswith("bare"):
                continue
            sizes, times, memory = scaling_series(along, axis, name)
            exponents = [fitted_exponent(sizes, times)]
            exponents.append(fitted_exponent(sizes, memory) if len(memory) == len(sizes) else None)
            over = name in (row["ours"] for row in along) and any((e or 0) > FITTED_LIMIT for e in exponents)
            shown = ["" if exponent is None else f"{exponent:.2f}" for exponent in exponents]
            span = f"{sizes[0]} to {sizes[-1]}" if sizes else ""
            lines.append([axis, name, span, *shown, f"**over {FITTED_LIMIT}**" if over else ""])
    return table(["grows", "contender", "from, to", "time", "memory", "remarks"], lines, 2)


def did_not_run(rows: list[Row]) -> list[str]:
    """Each reason once, with the number of rows; a device's other half is not worth a line."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, record in row["contenders"].items():
            if reason := record.get("failed") or record.get("unsupported"):
                reasons[name, reason] = reasons.get((name, reason), 0) + 1
    return [f"- `{name}`, {count} rows: {reason}" for (name, reason), count in sorted(reasons.items())]

"""The report: what is committed is what the result files give, and a lost row says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measure import registry
from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.results import read
from benchmarks.ops._pairs import paper_shape
from benchmarks.ops.fine_grained import FINE_GRAINED
from benchmarks.programs.steps import TRAINING_STEP
from benchmarks.report import document as report
from benchmarks.report import plots, tables
from tests.benchmarks.test_run import fake_row

SHAPE = paper_shape(64) | {"dtype": "float32"}
CASE = FINE_GRAINED.case("fine_grained", **SHAPE)
COMMAND = "make benchmark-report"


@pytest.fixture(scope="module")
def results() -> report.Results:
    return report.load(report.RESULTS)


def test_the_page_is_what_the_result_files_give(results: report.Results, tmp_path: Path) -> None:
    drawn = report.draw_plots(results, tmp_path)
    assert report.DOCUMENT.read_text() == report.document(results, drawn), COMMAND
    assert {path.name for path in report.IMAGES.glob("benchmarks_*.svg")} == drawn, COMMAND


def test_the_readme_states_the_figures_of_the_result_files(results: report.Results) -> None:
    text = report.README.read_text()
    assert text == report.with_figures(text, report.readme_figures(results)), COMMAND


def test_committed_rows_are_whole_and_named_by_their_folder() -> None:
    files = sorted(report.RESULTS.rglob("*.json"))
    assert files
    for file in files:
        rows = read(file)
        assert rows
        assert len({row["environment"]["device"] for row in rows}) == 1, f"{file} mixes devices"


def test_plots_depend_on_the_rows_alone(results: report.Results, tmp_path: Path) -> None:
    (rows,) = list(results.values())[:1]
    options = next(plot.options for plot in registry.plots() if plot.kind == "speed_up")
    for name in ("a", "b"):
        plots.speed_up(sorted(rows, key=tables.order), tmp_path / f"{name}.svg", **options)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def _row_with_rival(over_ours: float) -> dict[str, object]:
    row = fake_row(CASE)
    ms = {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    row["contenders"]["compile"] = {"kind": "compile", "ms": ms, "rounds": 3, "over_ours": over_ours}
    row["contenders"]["bare_products"] = {"kind": "floor", "ms": ms, "rounds": 3, "over_ours": 0.5}
    row["contenders"]["eager"] = {"kind": "eager", "failed": "OutOfMemoryError: 99 GB"}
    return row


@pytest.mark.parametrize(("over_ours", "lost"), [(0.8, True), (1.2, False)])
def test_a_losing_row_is_marked(over_ours: float, lost: bool) -> None:
    text = report.document({"device": [_row_with_rival(over_ours)]}, set())
    assert ("**loses to compile**" in text) is lost
    assert f"| {over_ours:.2f} |" in text, "and its ratio is printed either way"
    assert "eager failed: OutOfMemoryError" in text
    assert "- `eager`, 1 rows: OutOfMemoryError: 99 GB" in text


def test_the_backend_that_auto_leaves_is_shown_too() -> None:
    row = _row_with_rival(1.2)
    contenders = row["contenders"]
    assert isinstance(contenders, dict)
    contenders["triton"] = contenders["cpu"] | {"over_ours": 0.9}
    text = report.document({"device": [row]}, set())
    assert "triton / ours" in text
    assert "**loses to triton**" in text


def test_a_row_lost_in_calls_or_in_memory_says_so() -> None:
    row = _row_with_rival(0.9)
    contenders = row["contenders"]
    assert isinstance(contenders, dict)
    assert "called from Python" not in tables.remarks(row), (
        "where only the calls were timed, the row is lost as a whole"
    )
    for name, ms in (("cpu", 0.5), ("compile", 0.6)):
        contenders[name]["graph_ms"] = {"p20": ms, "p50": ms, "p80": ms}
    assert tables.remarks(row).startswith("**called from Python, loses to compile**")
    contenders["cpu"]["memory_bytes"] = 3_000_000
    contenders["flash_maxsim"] = contenders["compile"] | {"kind": "peer", "over_ours": 1.2, "memory_bytes": 2_000_000}
    assert "less MB: flash_maxsim 2.0" in tables.remarks(row)


def test_a_busy_row_is_marked() -> None:
    row = fake_row(CASE, others=0.4)
    assert "busy 40 %" in report.document({"device": [row]}, set())
    assert not plots.quiet([row])


def test_graph_times_are_compared_with_graph_times() -> None:
    row = _row_with_rival(2.0)
    contenders = row["contenders"]
    assert isinstance(contenders, dict)
    contenders["cpu"]["graph_ms"] = {"p20": 0.5, "p50": 0.5, "p80": 0.5}
    assert tables.over_ours(row, "compile") == 2.0, "one of them has none: the ratio within rounds"
    contenders["compile"]["graph_ms"] = {"p20": 0.25, "p50": 0.25, "p80": 0.25}
    assert tables.over_ours(row, "compile") == 0.5


def test_frozen_sides_and_the_whole_loss(tmp_path: Path) -> None:
    """A frozen side is a column; the README's table has the whole loss beside the fine-grained one."""
    rows = [fake_row(FINE_GRAINED.case("frozen", **SHAPE, frozen=side)) for side in ("", "first", "second")]
    rows += [fake_row(registry.ops()[name].case(name, **SHAPE)) for name in ("fine_grained", "sparc")]
    for row, name in ((rows[-1], "sparc"), (rows[-2], "fine_grained")):
        row["contenders"]["eager"] = row["contenders"]["cpu"] | {"kind": "eager", "over_ours": 3.0, "memory_bytes": 50}
        row["contenders"]["cpu"]["memory_bytes"] = {"sparc": 10, "fine_grained": 5}[name]
    text = report.document({"cpu": rows}, set())
    assert all(f"| {side} | float32 |" in text for side in ("neither", "patches", "tokens"))
    figures = report.readme_figures({"cpu": rows})
    assert "| memory beyond inputs and gradients / eager's | 10.0 % |" in figures
    assert "| `sparc_loss`: memory / eager's | 20.0 % |" in figures
    assert "| `sparc_loss`: time of eager / ours | 3.0 |" in figures


def test_every_suite_renders(tmp_path: Path) -> None:
    small = FINE_GRAINED.case("scaling", batch=2, patches=9, tokens=5, channels=8, dtype="float32", axis="batch")
    rows = [fake_row(small.but(batch=batch), p50=float(batch)) for batch in (2, 4, 8)]
    first = fake_row(small.but(suite="first_call", axis="cold"))
    first["contenders"]["cpu"]["second_ms"] = 1.0
    step = fake_row(small.but(suite="training_step", op=TRAINING_STEP, axis="", preset="tiny"), p50=3.0)
    step["contenders"]["without"] = {"kind": "without", "ms": {"p20": 2.0, "p50": 2.0, "p80": 2.0}, "rounds": 3}
    text = report.document({"device": [*rows, first, step]}, set())
    assert "| batch | cpu | 2 to 8 | 1.00 |" in text
    assert "3.00 (+50.0 %)" in text
    assert "| cold | cpu |" in text


@pytest.mark.parametrize(
    ("value", "text"), [(1234.4, "1234"), (123.44, "123"), (12.344, "12.3"), (1.2344, "1.23"), (0.12344, "0.123")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert tables.milliseconds(value) == text


def test_the_text_names_no_machine_path() -> None:
    assert str(CHECKOUT) not in report.DOCUMENT.read_text()

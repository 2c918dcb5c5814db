"""The command: what it writes, what a budget leaves, what ``--improve`` keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.measure.case import Case
from benchmarks.measure.harness import Context, Row
from benchmarks.measure.registry import case_of, suites
from benchmarks.measure.results import FormatError, ResultFile, check, read, settled, write
from benchmarks.measure.suite import Plan, Suite
from benchmarks.ops.fine_grained import FINE_GRAINED

SIZES = {"patches": 4, "tokens": 3, "channels": 8, "dtype": "float32"}
CASES = [FINE_GRAINED.case("fake", batch=batch, **SIZES) for batch in (1, 2, 3)]


def fake_row(case: Case, others: float | None = 0.0, p50: float = 1.0, sources: str = "s") -> Row:
    fields = ("device", "driver", "torch", "triton", "commit", "date")
    ms = {"p20": p50, "p50": p50, "p80": p50}
    return {
        "case": case.to_dict(),
        "environment": {name: f"some {name}" for name in fields} | {"sources": sources},
        "ours": "cpu",
        "machine_used_by_others": others,
        "contenders": {"cpu": {"kind": "ours", "ms": ms, "rounds": 3}},
    }


def test_a_small_suite_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "results.json"
    arguments = [
        "--suite",
        "grouping",
        "--device",
        "cpu",
        "--quick",
        "--seconds",
        "0.01",
        "--no-memory",
        "--out",
        str(out),
    ]
    assert run.main([*arguments, "--without", "compile"]) == 0
    rows = read(out)
    assert [row["case"]["op"] for row in rows] == ["grouping", "weights"]


def test_a_budget_cut_keeps_the_rows(tmp_path: Path) -> None:
    """Rows are on disk before the next one begins; one that would pass the budget does not begin."""
    out, context = tmp_path / "results.json", Context(torch.device("cpu"), budget=1000.0)
    on_disk = []

    def measured(plan: Plan, context: Context) -> Row:
        on_disk.append(len(read(out)) if out.exists() else 0)
        if plan.case is CASES[1]:
            context.budget = 0.0
        return fake_row(plan.case)

    suite = Suite("fake", "Fake", lambda device, quick: [Plan(case) for case in CASES], 0, measure=measured)
    assert run.measure_suite(suite, context, out, improve=False) == (1, 0)
    assert on_disk == [0, 1]
    assert [row["case"]["batch"] for row in read(out)] == [1, 2]


def test_a_row_that_fails_as_a_whole_does_not_end_the_suite(tmp_path: Path) -> None:
    def measured(plan: Plan, context: Context) -> Row:
        if plan.case is CASES[0]:
            raise RuntimeError("no")
        return fake_row(plan.case)

    suite = Suite("fake", "Fake", lambda device, quick: [Plan(case) for case in CASES], 0, measure=measured)
    out = tmp_path / "results.json"
    assert run.measure_suite(suite, Context(torch.device("cpu")), out, improve=False) == (0, 1)
    assert [row["case"]["batch"] for row in read(out)] == [2, 3]


def test_where_measures_the_rows_that_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--suite", "grouping", "--device", "cpu", "--quick", "--seconds", "0.01", "--no-memory"]
    quick += ["--without", "compile", "--out", str(tmp_path / "results.json"), "--where"]
    assert run.main([*quick, "op=weights,other", "mode=forward+backward"]) == 0
    assert [row["case"]["op"] for row in read(tmp_path / "results.json")] == ["weights"]
    for wrong, said in (
        ("op=fine", "no row of grouping has op=fine"),
        ("ops=weights", "'ops=weights'"),
        ("op", "'op'"),
    ):
        with pytest.raises(SystemExit):
            run.main([*quick, wrong])
        assert said in capsys.readouterr().err


def test_a_mode_that_is_left_out_is_not_waited_for(tmp_path: Path) -> None:
    """Two plans of one case, the second for the sake of torch.compile, without which the first has measured all."""
    measured = []

    def measure(plan: Plan, context: Context) -> Row:
        measured.append(plan.compiled)
        return fake_row(plan.case, sources=run.sources_digest("cpu"))

    plans = [Plan(CASES[0]), Plan(CASES[0], ("compile",))]
    suite = Suite("fake", "Fake", lambda device, quick: plans, 0, measure=measure)
    for without, expected in (((), [(), ("compile",)]), (("compile",), [()])):
        run.measure_suite(suite, Context(torch.device("cpu"), without=without), tmp_path / "results.json", False)
        assert measured == expected
        measured.clear()


def test_a_kernel_of_ours_that_fails_is_a_failure(tmp_path: Path) -> None:
    def measured(plan: Plan, context: Context) -> Row:
        row = fake_row(plan.case)
        row["contenders"]["cuda"] = {"kind": "ours", "failed": "ParityError: far off"}
        row["contenders"]["eager"] = {"kind": "eager", "failed": "OutOfMemoryError"}
        return row

    suite = Suite("fake", "Fake", lambda device, quick: [Plan(CASES[0])], 0, measure=measured)
    out = tmp_path / "results.json"
    assert run.measure_suite(suite, Context(torch.device("cpu")), out, improve=False) == (0, 1)
    assert "cuda FAILED ParityError: far off" in run.line(read(out)[0])


def test_improve_keeps_quiet_rows_and_begins_others_anew(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    other = FINE_GRAINED.case("another", batch=9, **SIZES)
    write(out, [fake_row(CASES[0]), fake_row(CASES[1], others=0.4), fake_row(other)])
    assert len(ResultFile(out, "fake", improve=False).rows) == 1, "rows of other suites stay"
    file = ResultFile(out, "fake", improve=True)
    assert settled(file.get(CASES[0]), "s", 0.02)
    assert not settled(file.get(CASES[0]), "other sources", 0.02)
    assert not settled(file.get(CASES[0]), "s", 0.02, ("compile",)), "a contender is missing"
    assert not settled(file.get(CASES[1]), "s", 0.02)
    assert not settled(file.get(CASES[2]), "s", 0.02)
    file.put(fake_row(CASES[1], others=0.6, p50=9.0))
    assert file.get(CASES[1]) == fake_row(CASES[1], others=0.4), "the quieter one of two stays"
    file.put(fake_row(CASES[1], others=0.6, p50=9.0, sources="newer"))
    assert file.get(CASES[1]) == fake_row(CASES[1], others=0.6, p50=9.0, sources="newer")


@pytest.mark.parametrize("fault", ["environment", "outcome", "quantile", "format"])
def test_an_incomplete_file_is_refused(tmp_path: Path, fault: str) -> None:
    row, out = fake_row(CASES[0]), tmp_path / "results.json"
    if fault == "environment":
        del row["environment"]["commit"]
    elif fault == "outcome":
        row["contenders"]["cpu"]["unsupported"] = "and measured all the same"
    elif fault == "quantile":
        del row["contenders"]["cpu"]["ms"]["p80"]
    else:
        out.write_text(json.dumps({"rows": []}))
        with pytest.raises(FormatError, match="format"):
            read(out)
        return
    with pytest.raises(FormatError):
        check(row)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", suites())
def test_plans_name_their_suite_and_survive_a_file(name: str, device: str, quick: bool) -> None:
    plans = suites()[name].plans(torch.device(device), quick)
    assert plans or (name == "peers" and device == "cpu" and not quick), "what others publish needs a GPU"
    for plan in plans:
        assert plan.case.suite == name
        assert case_of(json.loads(json.dumps(plan.case.to_dict()))) == plan.case

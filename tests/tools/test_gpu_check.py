"""The command for a GPU machine, rehearsed on the CPU; and how it takes failures, limits and a wheel."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import run
from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.registry import suites
from benchmarks.measure.results import read
from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import counters
from tools.gpu_check.steps import Outcome, Step, run_step, steps_of_suites, unpack


def options(out: Path, **changes: object) -> argparse.Namespace:
    (out / "steps.log").touch()
    values = {"out": out, "dry": True, "wheel": None, "commit": None, "suites": list(suites())}
    return argparse.Namespace(**values | changes)


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """Every step of every part runs on the CPU and says that it went well; of the suites the command starts one, the
    others run here, with what their steps would give them."""
    first, *others = suites()
    command = [sys.executable, "-m", "tools.gpu_check", "--dry", "--suites", first, "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr + (tmp_path / "steps.log").read_text()[-3000:]
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert {step["part"] for step in steps} == {"setup", "tests", "sanitizer", "counters", "bench"}
    assert {step["status"] for step in steps} == {"ok"}
    assert f"suite {first}" in {step["name"] for step in steps}
    for step in steps_of_suites(options(tmp_path, suites=others)):
        assert step.command[1:3] == ("-m", run.__name__)
        assert run.main([*step.command[3:], "--budget", "60"]) == 0, step.name
    assert {row["case"]["suite"] for row in read(tmp_path / "results.json")} == set(suites())
    table = gpu_check.table(tmp_path, [Outcome(**step) for step in steps]).splitlines()
    assert (tmp_path / "table.txt").read_text().splitlines()[: len(steps)] == table[: len(steps)]
    assert len(table) <= gpu_check.LINES
    assert len(list(tmp_path.iterdir())) <= 8, "few files: they may have to travel one by one"


def test_suites_are_all_there_and_budgeted(tmp_path: Path) -> None:
    steps = steps_of_suites(options(tmp_path))
    assert [step.command[-1] for step in steps] == list(suites())
    assert all(step.budgeted for step in steps)
    assert len(steps_of_suites(options(tmp_path, suites=["scaling"]))) == 1


def test_a_step_that_fails_says_so(tmp_path: Path) -> None:
    step = Step("fails", "tests", (sys.executable, "-c", "print('why'); raise SystemExit(3)"))
    outcome = run_step(step, 30, 30, options(tmp_path))
    assert (outcome.status, outcome.detail) == ("failed", "exit 3; why")
    assert "=== fails" in (tmp_path / "steps.log").read_text()
    raised = run_step(Step("raises", "tests", action=lambda: str(1 / 0)), 30, 30, options(tmp_path))
    assert raised.status == "failed"
    assert run_step(step, 1, 1, options(tmp_path)).status == "skipped"


def test_a_step_over_its_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begin = time.monotonic()
    outcome = run_step(Step("sleeps", "tests", (sys.executable, "-c", code)), 3, 3, options(tmp_path))
    assert outcome.status == "timed out"
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("part", "status", "code"), [("tests", "failed", 1), ("tests", "ok", 0), ("bench", "failed", 0)]
)
def test_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, status: str, code: int) -> None:
    monkeypatch.setattr(gpu_check, "check", lambda _, outcomes: outcomes.append(Outcome("a", part, status, 0.0)))
    assert gpu_check.main(["--dry", "--out", str(tmp_path)]) == code


def test_a_run_that_is_stopped_still_ends_with_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object, outcomes: list[Outcome]) -> None:
        outcomes.append(Outcome("first", "tests", "ok", 1.0))
        raise gpu_check.Stopped

    monkeypatch.setattr(gpu_check, "check", stopped)
    assert gpu_check.main(["--dry", "--out", str(tmp_path)]) == 1
    assert "first" in (tmp_path / "table.txt").read_text()


def test_the_table_is_short(tmp_path: Path) -> None:
    outcomes = [Outcome(f"step {number}", "tests", "ok", 1.0, "x" * 500) for number in range(12)]
    text = gpu_check.table(tmp_path, outcomes)
    assert len(text.splitlines()) == 13
    assert max(map(len, text.splitlines())) <= 200


def test_without_a_gpu_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path)]) == 2


def test_the_library_comes_out_of_a_wheel(tmp_path: Path) -> None:
    wheel, target = tmp_path / "some.whl", tmp_path / "checkout"
    (target / "sparc_kernels").mkdir(parents=True)
    (target / "sparc_kernels" / "same.py").write_text("1")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sparc_kernels/libsparc_cpu.so", b"code")
        archive.writestr("sparc_kernels/same.py", "1")
        archive.writestr("sparc_kernels/older.py", "2")
    said = unpack(wheel, target)
    assert (target / "sparc_kernels" / "libsparc_cpu.so").read_bytes() == b"code"
    assert "1 other Python files, e.g. sparc_kernels/older.py" in said
    with zipfile.ZipFile(tmp_path / "pure.whl", "w") as archive:
        archive.writestr("sparc_kernels/same.py", "1")
    with pytest.raises(FileNotFoundError, match="no native library"):
        unpack(tmp_path / "pure.whl", target)


COUNTERS = """==PROF== Connected to process 1
"ID","Kernel Name","CC",{metrics}
"","","",{units}
"0","_ZN5sparc11pair_kernelINS_20FineGrainedArgumentsENS_8BFloat16ELi8ELb1EEEvT_","9.0",{values}
"1","_ZN5sparc11pair_kernelINS_13OtherArgumentsENS_8BFloat16ELi8ELb1EEEvT_","9.0",{values}
"""


def test_counters_are_read_and_put_beside_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "metrics": ",".join(f'"{name}"' for name in counters.METRICS.values()),
        "units": ",".join('"inst"' for _ in counters.METRICS),
        "values": ",".join(f'"{1024 * (place + 1):,}"' for place in range(len(counters.METRICS))),
    }
    (tmp_path / "counters.csv").write_text(COUNTERS.format(**texts))
    monkeypatch.setattr(counters, "predicted", lambda *_: {"issue_slots_per_scheduler": 0.5, "shared_wavefronts": 2.0})
    kept = counters.keep(tmp_path / "counters.csv", tmp_path / "counters.json")
    assert "issues in" in kept
    assert "counted over predicted" not in kept
    said = counters.compare(tmp_path / "counters.json")
    (record,) = json.loads((tmp_path / "counters.json").read_text())
    assert (record["op"], record["backward"], record["architecture"]) == ("fine_grained", True, "sm_90")
    assert record["counted"]["issue_slots_per_scheduler"] == 0.25, "of four schedulers and 1024 pairs"
    assert record["counted"]["shared_wavefronts"] == 2.0
    assert record["counted"]["cycles_active"] == 7168
    assert "issue_slots_per_scheduler 0.50, shared_wavefronts 1.00" in said
    assert said in gpu_check.table(tmp_path, [])
    with pytest.raises(ValueError, match="no table"):
        counters.counted("==ERROR== nothing")

"""An op's benchmark is one new file: what is shared names no op, and a file laid beside the others is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks.ops
from benchmarks import run
from benchmarks.measure import registry
from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.results import read
from benchmarks.report import document

SHARED = [path for folder in ("measure", "report") for path in sorted((CHECKOUT / "benchmarks" / folder).glob("*.py"))]
FAMILY = re.compile(r"(?<!dis)patch|caption|token|sigma|alignment", re.IGNORECASE)
TOY = """
import torch

from benchmarks.measure.case import Inputs, Op, Provider
from benchmarks.measure.suite import Plan, Suite


class Numbers(Inputs):
    def __init__(self, x):
        self.x, self.upstream = x, None

    def sides(self):
        return {"x": self.x}


class Toy(Op):
    axes = {"batch": "N"}
    sorted_by = ("batch",)
    contenders = (Provider("halves", "peer", lambda case: lambda x: 2 * (x.x / 2).sum(), label="two halves"),)

    def draw(self, case, device, seed=0):
        numbers = Numbers(torch.ones(case["batch"], device=device))
        numbers.freeze(case.frozen)
        return numbers

    def work(self, case):
        return {"bytes": 4 * case["batch"], "flop": case["batch"]}

    def definition(self, x, compute_dtype):
        return x.x.sum(dtype=compute_dtype)

    def public(self, x, backend):
        raise NotImplementedError("toy has no kernel")


TOY = Toy("toy")
OPS = (TOY,)
SUITES = (
    Suite("toy", "A toy", lambda *_: [Plan(TOY.case("toy", batch=n, dtype="float32")) for n in (3, 5)], rank=99),
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which ``toy.py`` lies beside the ops."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(benchmarks.ops, "__path__", [*benchmarks.ops.__path__, str(tmp_path)])
    registry._files.cache_clear()
    yield tmp_path
    registry._files.cache_clear()


@pytest.mark.parametrize("path", SHARED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shared_files_know_no_op(path: Path) -> None:
    text = path.read_text()
    assert not [name for name in registry.ops() if re.search(rf"\b{name}\b", text)]
    assert not FAMILY.findall(text)


def test_a_new_file_is_measured_and_shown(toy: Path) -> None:
    out = toy / "results.json"
    arguments = ["--suite", "toy", "--device", "cpu", "--quick", "--seconds", "0.01", "--no-memory"]
    assert run.main([*arguments, "--without", "compile", "--out", str(out)]) == 0
    rows = read(out)
    assert [row["case"] | {"mode": ""} for row in rows] == [
        {"suite": "toy", "op": "toy", "batch": batch, "dtype": "float32", "mode": ""} for batch in (3, 5)
    ]
    assert all("ms" in row["contenders"]["halves"] for row in rows)
    for row in rows:
        row["ours"] = "eager"
        row["contenders"]["halves"]["over_ours"] = 1.5
    text = document.document({"device": rows}, set())
    assert "### A toy" in text
    assert "| dtype | N | backend | ms (p20 to p80) | two halves / ours |" in text

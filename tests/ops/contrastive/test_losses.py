"""docs/losses.md: every block is run, and gives the loss and the gradients of its paper's definition."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import device_of
from tests.ops.contrastive import papers
from tests.ops.contrastive.test_similarity import BACKENDS

PAGE = (Path(__file__).parents[3] / "docs" / "losses.md").read_text()
IMPORTS = re.findall(r"```python\n(.*?)```", PAGE.partition("\n## Pairs")[0], re.DOTALL)
BLOCKS = dict(re.findall(r"\n### (.+?)\n(?:(?!\n#).)*?```python\n(.*?)```", PAGE, re.DOTALL))


def test_every_recipe_has_a_definition() -> None:
    assert set(BLOCKS) == set(papers.DEFINITIONS)
    assert PAGE.count("```python") == len(BLOCKS) + 1


def test_every_row_of_the_table_leads_to_a_recipe() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, re.MULTILINE)
    anchors = {name: re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in BLOCKS}
    assert dict(rows) == anchors


def run(name: str, inputs: dict[str, Any]) -> Tensor:
    known = dict(inputs)
    for code in (*IMPORTS, BLOCKS[name]):
        exec(compile(code, f"docs/losses.md, {name}", "exec"), known)
    loss: Tensor = known["loss"]
    return loss


def gradients(loss: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    leaves = {name: inputs[name] for name in papers.LEARNED}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found) if g is not None}


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.detach().cpu().double() - truth.detach()).norm() / truth.detach().norm().clamp(min=1e-3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_recipe(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARC_BACKEND", backend)
    exact = backend != "triton"  # whose kernels know no float64
    inputs = papers.draw(torch.float64 if exact else torch.float32, device_of(backend))
    truths = papers.draw(torch.float64, "cpu")
    close = 1e-10 if exact else 1e-4
    loss, truth = run(name, inputs), papers.DEFINITIONS[name](truths)
    assert relative(loss, truth) < close
    found, expected = gradients(loss, inputs), gradients(truth, truths)
    assert set(found) == set(expected)
    assert len(found) > 1
    for leaf, grad in expected.items():
        assert relative(found[leaf], grad) < close, leaf

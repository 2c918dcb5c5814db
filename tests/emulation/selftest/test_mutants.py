"""The faults of ``python -m tests.emulation.mutants`` can still be planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation.mutants import ROOT, Mutant, listed


@pytest.mark.parametrize(("room", "mutant"), [pytest.param(*it, id=f"{it[0]}: {it[1].name}") for it in listed()])
def test_the_line_stands_once(room: str, mutant: Mutant) -> None:
    text = Path(ROOT, "csrc", mutant.file).read_text()
    assert text.count(mutant.text) == 1, f"{room}: {mutant.text!r} in {mutant.file}"
    assert mutant.instead != mutant.text

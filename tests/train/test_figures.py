"""Figures draw any caption, say which characters they cannot draw, and never cost results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from sparc_kernels.train import cli, figures
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.trainer import Trainer
from tests.train.conftest import FAST
from tests.train.test_cli import is_picture

# Each is an error of mathematical text, where it is taken for that.
MATHS = ["costs $5, 10 % off and $7", r"a dog $\nothing_{^ here$", r"for $C:\temp\new$ now", "between $a_1^2^3$ #&~"]


def folder_of(captions: list[str], root: Path) -> Path:
    """A picture of noise for each caption."""
    root.mkdir()
    for number, caption in enumerate(captions):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(caption, encoding="utf-8")
    return root


# Of the private use area, so that the fonts of the machine, but for those with a box for everything, cannot draw them.
ONE, TWO, NONE = "\U0010ff01", "\U0010ff02", "\U0010ff03"


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[str]:
    """The family of a font that can draw ``ONE`` and ``TWO``, known to matplotlib."""
    pen = TTGlyphPen(None)
    for number, corner in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        pen.lineTo(corner) if number else pen.moveTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", "first", "second"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(ONE): "first", ord(TWO): "second"})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Strange", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "strange.ttf")
    fonts = font_manager.fontManager
    before = list(fonts.ttflist)
    fonts.addfont(str(tmp_path / "strange.ttf"))
    yield "Strange"
    fonts.ttflist = before


@pytest.mark.parametrize("caption", MATHS)
def test_mathematical_characters_are_drawn_as_they_are(caption: str, small: TrainConfig, tmp_path: Path) -> None:
    data = load_data(small)
    trainer = Trainer(small, data, progress=False)
    shown = replace(data, captions=[caption], pixels=data.pixels[:1], scenes=[])
    figures.draw_alignment([trainer], shown, tmp_path / "alignment.png")
    assert is_picture(tmp_path / "alignment.png")


def test_a_font_with_the_glyphs_is_chosen(strange: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = figures._families(["a red dog, größer"])
    assert figures._families([f"a red dog {ONE}", TWO]) == [*plain, strange]
    assert not caplog.messages
    assert figures._families([f"{ONE} {NONE}"]) == [*plain, strange]
    assert len(caplog.messages) == 1
    assert f"can draw {NONE}:" in caplog.messages[0]


def test_characters_without_a_glyph_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = folder_of([f"{TWO}{NONE} thing {number} {NONE}" for number in range(5)], tmp_path / "data")
    flags = [*FAST, "--data", str(data), "--steps", "1", "--batch-size", "2"]
    assert cli.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert is_picture(tmp_path / "run" / "alignment.png")
    (said,) = (message for message in caplog.messages if NONE in message)
    assert f"can draw {TWO} {NONE}:" in said
    assert "Glyph" not in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["draw_alignment", "draw_curves"])
def test_a_figure_that_fails_costs_nothing_else(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def fail(*_: object) -> None:
        assert json.loads((out / "results.json").read_text())  # results first
        assert (out / "results.md").stat().st_size
        raise RuntimeError("no ink")

    monkeypatch.setattr(cli, broken, fail)
    assert cli.main([*FAST, "--steps", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    name, other = ("alignment.png", "curves.png")[:: 1 if broken == "draw_alignment" else -1]
    assert printed.err.count("warning: ") == 1
    assert f"{name} was not drawn (RuntimeError: no ink)" in printed.err
    assert "retrieval" in printed.out
    assert is_picture(out / other)

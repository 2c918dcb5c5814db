"""Configurations from files, and what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparc_kernels.train import cli
from sparc_kernels.train.cli import main
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.settings import configured, with_file
from tests.train.conftest import FAST
from tests.train.test_odd_input import one_line


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_comes_first_then_the_file_then_the_defaults(tmp_path: Path) -> None:
    file = written(tmp_path / "run.toml", 'steps = 40\nlr = 1\nloss = "siglip"\nthreads = 2\n# a note\n')
    config = configured(with_file(file, {"steps": 20, "seed": 3}))
    assert config == TrainConfig(steps=20, warmup_steps=5, lr=1.0, loss="siglip", threads=2, seed=3)


def test_a_run_repeats_another_by_its_configuration(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure in ("draw_alignment", "draw_curves"):
        monkeypatch.setattr(cli, figure, lambda *_: None)
    out = tmp_path / "again"
    assert main(["--config", str(finished / "config.json"), "--out", str(out), "--quiet"]) == 0
    written_there, expected = (json.loads((run / "config.json").read_text()) for run in (out, finished))
    assert written_there == expected | {"out": str(out)}
    assert json.loads((out / "results.json").read_text()) == json.loads((finished / "results.json").read_text())


def test_a_run_stands_where_its_configuration_says(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "log.csv").read_bytes()
    assert main(["--config", str(finished / "config.json"), "--quiet"]) == 2
    one_line(capsys, "holds a run: give --resume")
    assert (finished / "log.csv").read_bytes() == before


def test_a_rate_that_came_from_a_preset_does_not_follow_another(tmp_path: Path) -> None:
    """A run's config.json tells the rate of its preset; a file of a user's tells the user's."""
    values = TrainConfig().to_dict()
    ran = written(tmp_path / "config.json", json.dumps(values))
    assert configured(with_file(ran, {"preset": "vit-b-32"})).lr == 5e-4
    assert configured(with_file(ran, {"preset": "vit-b-32", "lr": 1e-3})).lr == 1e-3
    assert configured(with_file(ran, {})).lr == values["lr"] == 3e-3
    chosen = written(tmp_path / "chosen.json", json.dumps(values | {"lr": 0.02}))
    assert configured(with_file(chosen, {"preset": "vit-b-32"})).lr == 0.02
    own = written(tmp_path / "run.toml", "lr = 3e-3")
    assert configured(with_file(own, {"preset": "vit-b-32"})).lr == 3e-3


def test_a_comparison_by_its_configuration(tmp_path: Path) -> None:
    ran = written(tmp_path / "config.json", json.dumps(TrainConfig().to_dict() | {"compare": True}))
    assert with_file(ran, {})["compare"] is True
    assert "loss" not in with_file(ran, {})
    assert with_file(ran, {"compare": False})["loss"] == "sparc"
    assert with_file(ran, {"loss": "clip"})["loss"] == "clip"  # which --compare then refuses


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "a.toml",
            "batchsize = 4",
            "unknown key 'batchsize' in the configuration; the nearest known one is 'batch_size'",
        ),
        ("a.toml", "[model]\nlr = 1", "unknown key 'model' in the configuration; the nearest known one is"),
        ("a.json", '{"similarity-threshold": 1}', "the nearest known one is 'similarity_threshold'"),
        ("a.toml", 'steps = "40"', "steps in the configuration must be an integer, got '40'"),
        ("a.toml", "steps = 4.5", "steps in the configuration must be an integer, got 4.5"),
        ("a.toml", "seed = true", "seed in the configuration must be an integer, got True"),
        ("a.toml", "similarity_threshold = [1]", "similarity_threshold in the configuration must be a number, got [1]"),
        ("a.toml", "compare = 1", "compare in the configuration must be true or false, got 1"),
        ("a.json", '{"lr": null}', "lr in the configuration must be a number, got None"),
        ("a.json", "[1]", "cannot be read as a configuration: it holds no names with values"),
        ("a.toml", "steps = ", "cannot be read as a configuration: Invalid value (at end of document)"),
        ("a.toml", "steps = 4\nsteps = 5", "cannot be read as a configuration: Cannot overwrite a value"),
        ("a.yaml", "steps: 4", "a configuration must be a .toml or .json file, got"),
        ("missing.toml", None, "cannot be read as a configuration: No such file or directory"),
        ("a.toml", "lr = nan", "lr must be positive, got nan"),
        ("a.toml", 'preset = "huge"', "unknown preset 'huge'; expected one of tiny"),
    ],
)
def test_errors_name_the_key(
    name: str, text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        written(tmp_path / name, text)
    assert main([*FAST, "--config", str(tmp_path / name), "--out", str(tmp_path / "run")]) == 2
    one_line(capsys, message)
    assert not (tmp_path / "run").exists()

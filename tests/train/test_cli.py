"""The command line from end to end, and what it says when the input is at fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sparc_kernels.train.cli import main
from sparc_kernels.train.config import PRESETS, TrainConfig
from tests.train.conftest import CLI, FAST

TUXPAINT = Path("/usr/share/tuxpaint/stamps")


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and min(picture.size) > 200


@pytest.mark.parametrize("loss", ["siglip", "filip", "gloria"])  # clip and sparc: in a comparison
def test_scenes_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    assert main([*FAST, "--loss", loss, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "retrieval, image to text, R@1" in printed
    assert "grounding, mean IoU" in printed
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["chance"] < results["object_chance"] < 1
    assert all(is_picture(run / name) for name in ("alignment.png", "curves.png"))
    assert json.loads((run / "config.json").read_text())["loss"] == loss


def test_compare_trains_both_and_resumes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "both")
    assert main([*FAST, "--compare", "--out", out]) == 0
    first = capsys.readouterr().out
    assert " chance | " in first
    assert set(json.loads((tmp_path / "both" / "results.json").read_text())) == {"clip", "sparc"}
    logs = [(tmp_path / "both" / loss / "log.csv").read_bytes() for loss in ("clip", "sparc")]
    assert main(["--resume", out, "--quiet"]) == 0
    again = capsys.readouterr().out
    assert again.count("resumed after step 4 of 4") == 2
    assert logs == [(tmp_path / "both" / loss / "log.csv").read_bytes() for loss in ("clip", "sparc")]
    assert [line for line in first.splitlines() if line.startswith("|")] == [
        line for line in again.splitlines() if line.startswith("|")
    ]


def test_the_demo_ends_with_the_speed_of_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparc_kernels.train.cli.PAPER_SHAPE", (2, 9, 5, 16))
    assert main([*FAST, "--demo", "--out", str(tmp_path / "demo")]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "No fused backend" in last or ("B=2 P=9 L=5 D=16" in last and last.endswith(" x"))


def test_a_folder_end_to_end(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--data", str(pictures), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "12 pictures with captions, 5 files skipped" in printed
    assert "1 x no decoder for .svg files" in printed
    assert "grounding" not in printed
    skipped = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(skipped) == 5
    assert is_picture(tmp_path / "run" / "alignment.png")


@pytest.mark.slow
@pytest.mark.skipif(not TUXPAINT.is_dir(), reason="Debian's package tuxpaint-stamps-default is not installed")
def test_real_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--data", str(TUXPAINT), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "no decoder for .svg files" in printed
    assert json.loads((tmp_path / "run" / "results.json").read_text())["chance_r1"] > 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "/nowhere/at/all"], "is not a folder"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--lr", "-1"], "lr must be positive, got -1.0"),
        (["--steps", "5", "--warmup-steps", "6"], "warmup_steps (6) must not exceed steps (5)"),
        (["--similarity-threshold", "2"], "similarity_threshold"),
        (["--backend", "abacus"], "backend must be one of"),
        (["--resume", "/nowhere/at/all"], "no run to resume in '/nowhere/at/all'"),
        (["--resume", "x", "--out", "y"], "leave out --demo, --config, --overwrite and --out"),
        (["--resume", "x", "--config", "y.toml"], "leave out --demo, --config, --overwrite and --out"),
        (["--compare", "--loss", "clip"], "leave out --loss"),
    ],
)
def test_errors_name_the_fault(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--eval-pairs", "2", "--batch-size", "2", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_cuda_without_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_unknown_choices_are_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--preset", "huge"], ["--loss", "triplet"], ["--precision", "fp8"], ["--bogus"]):
        with pytest.raises(SystemExit) as error:
            main(flags)
        assert error.value.code == 2
    assert "vit-l-14" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown preset 'huge'; expected one of tiny, vit-b-32, vit-b-16, vit-l-14"):
        TrainConfig(preset="huge")


def test_a_standing_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main([*FAST, "--out", out]) == 0
    before = (tmp_path / "run" / "log.csv").read_bytes()
    assert main([*FAST, "--out", out]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "log.csv").read_bytes() == before
    assert main([*FAST, "--seed", "1", "--overwrite", "--out", out]) == 0
    assert (tmp_path / "run" / "log.csv").read_bytes() != before


def test_resume_with_another_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main([*FAST, "--out", out]) == 0
    assert main(["--resume", out, "--lr", "0.5", "--quiet"]) == 2
    assert "another configuration: lr: " in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in TrainConfig().to_dict():
        assert f"--{name.replace('_', '-')}" in text
    assert "examples:" in text


def test_missing_requirements_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "try:\n    import sparc_kernels.train\n"
        "except ImportError as error:\n    print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "tokenizers" in printed
    assert 'pip install "sparc-kernels[train]"' in printed


def test_the_paper_presets() -> None:
    assert {name: preset.patches for name, preset in PRESETS.items()} == {
        "tiny": 64,
        "vit-b-32": 49,
        "vit-b-16": 196,
        "vit-l-14": 256,
    }
    for name in ("vit-b-32", "vit-b-16", "vit-l-14"):
        assert PRESETS[name].image_size == 224
        assert PRESETS[name].max_tokens == 55
        assert PRESETS[name].embed_dim == 512


def test_the_module_runs() -> None:
    done = subprocess.run([*CLI, "--help"], capture_output=True, text=True, check=True)
    assert "--compare" in done.stdout

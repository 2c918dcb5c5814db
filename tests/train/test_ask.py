"""A checkpoint in use: loaded, evaluated, asked about a picture; and what it says to odd questions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from sparc_kernels.train import LoadedRun, ask, checkpoint, load_run
from sparc_kernels.train.cli import main
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import Data, FolderStream, load_data
from sparc_kernels.train.figures import FORMATS, caption_maps
from tests.train.test_cli import is_picture
from tests.train.test_odd_input import coloured, one_line
from tests.train.test_trainer import train

CPU = ["--device", "cpu", "--threads", "1"]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def scene_picture(finished: Path, tmp_path: Path) -> tuple[Path, str]:
    """A scene of the size of the run's, as a file, and its caption."""
    scene = heldout(finished).scenes[0]
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png", scene.caption


@pytest.fixture(scope="session")
def compared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison: a run twice, once under the name of another loss."""
    out = tmp_path_factory.mktemp("compared")
    for loss in ("sparc", "clip"):
        (out / loss).mkdir()
        changed(finished, out / loss, lambda state, loss=loss: state["config"].update(loss=loss))  # type: ignore[misc]
    return out


def changed(run: Path, other: Path, change: Change) -> Path:
    """A run's checkpoint with a change, in another folder."""
    state = checkpoint.load(run)
    change(state)
    checkpoint.save(other, state)
    return other


def heldout(run: Path) -> Data:
    return load_data(TrainConfig.from_dict(checkpoint.load(run)["config"]), lambda line: None)


# In Python.


def test_a_loaded_run_gives_what_the_trainer_has(small: TrainConfig, tmp_path: Path) -> None:
    trainer = train(replace(small, steps=2))
    run = load_run(small.out, "cpu")
    assert (run.step, run.config, run.device) == (2, trainer.config, torch.device("cpu"))
    assert not run.model.training
    scene = trainer.data.scenes[0]
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    pixels = run.transform(tmp_path / "scene.png")
    assert torch.equal(pixels, torch.from_numpy(scene.image).permute(2, 0, 1))
    batch = run.tokenizer([scene.caption])
    trainer.model.eval()
    with torch.no_grad():
        patches, tokens = run.model(pixels[None], batch.ids, batch.mask)
        expected = trainer.model(pixels[None], batch.ids, batch.mask)
    torch.testing.assert_close((patches, tokens), expected, rtol=0, atol=0)
    preset = run.config.model
    assert patches.shape == (1, preset.patches, preset.embed_dim)
    assert tokens.shape == (*batch.mask.shape, preset.embed_dim)


def test_pictures_are_prepared_as_those_of_the_run(small: TrainConfig, pictures: Path) -> None:
    """Of every mode that its folder holds."""
    data = load_data(replace(small, data=str(pictures)), lambda line: None)
    train(replace(small, data=str(pictures), steps=1, warmup_steps=0))
    run = load_run(small.out)
    assert isinstance(data.train, FolderStream)
    folder = data.train.folder
    for number, path in enumerate(folder.paths):
        assert np.array_equal(run.transform.pixels(path), folder.crop(number)), path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state["model"].update({"words.weight": torch.zeros(3, 9)}), "configuration: .*size mismatch"),
        (lambda state: state["config"].update(pool=3), "unknown key 'pool' in the configuration"),
        (lambda state: state["config"].update(lr="fast"), "lr in the configuration must be a number, got 'fast'"),
        (lambda state: state.update(tokenizer="{}"), "does not fit its configuration: "),
        (lambda state: state["model"].pop("words.weight"), 'does not fit its configuration: .* "words.weight"'),
        (lambda state: state.pop("model"), "is no checkpoint of this trainer: it has no model"),
    ],
)
def test_checkpoints_that_do_not_fit(change: Change, message: str, finished: Path, tmp_path: Path) -> None:
    changed(finished, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        load_run(tmp_path)
    assert str(tmp_path / checkpoint.CHECKPOINT) in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_a_run(finished: Path, compared: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=f"no checkpoint in '{folder}'"):
            load_run(folder)
    with pytest.raises(ValueError, match=f"holds the runs of a comparison, expected one run: '{compared / 'clip'}' or"):
        load_run(compared)
    whole = (finished / checkpoint.CHECKPOINT).read_bytes()
    (tmp_path / checkpoint.CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_run(tmp_path)


# evaluate


def test_evaluate_repeats_the_results_of_training(finished: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(finished), *CPU, "--out", str(tmp_path / "new" / "out")]) == 0
    found, expected = (json.loads((at / "results.json").read_text()) for at in (tmp_path / "new" / "out", finished))
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)
    assert (tmp_path / "new" / "out" / "results.md").read_text() == (finished / "results.md").read_text()
    assert is_picture(tmp_path / "new" / "out" / "alignment.png")


def test_evaluate_on_another_folder_takes_all_of_it(
    compared: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A comparison has a column for each run; its folder gets the results."""
    monkeypatch.setattr(ask, "draw_alignment", lambda *_: None)
    shutil.copytree(compared, tmp_path / "both")
    assert main(["evaluate", str(tmp_path / "both"), *CPU, "--data", str(pictures), "--eval-pairs", "99"]) == 0
    printed = capsys.readouterr().out
    assert f"12 of the 12 pairs in {pictures}" in printed
    results = json.loads((tmp_path / "both" / "evaluation" / "results.json").read_text())
    assert set(results) == {"clip", "sparc"}
    assert set(results["clip"]) == {
        f"{way}_r{k}" for way in ("image_to_text", "text_to_image", "chance") for k in (1, 5)
    }
    assert results["clip"]["chance_r1"] == pytest.approx(1 / 12)


def test_pairs_that_a_run_was_trained_on_are_not_evaluated(small: TrainConfig, tmp_path: Path) -> None:
    root = coloured(tmp_path / "data", 12)
    small = replace(small, data=str(root), steps=1, warmup_steps=0, eval_pairs=2)
    train(small)
    run = load_run(small.out)
    expected = heldout(Path(small.out)).captions
    assert len(expected) == 2
    shutil.copytree(root, tmp_path / "moved")
    for data in (None, str(root), str(tmp_path / "moved")):
        pairs, said = ask.pairs_of(run, data, None, progress=False)
        assert pairs.captions == expected
        assert said.startswith("2 held-out pairs of ")
    assert len(ask.pairs_of(run, "scenes", 3, progress=False)[0].scenes) == 3
    with pytest.raises(ValueError, match="eval_pairs must be at most the run's own, 2, got 3"):
        ask.pairs_of(run, None, 3, progress=False)
    (tmp_path / "moved" / "0.txt").write_text("another")
    assert len(ask.pairs_of(run, str(tmp_path / "moved"), 12, progress=False)[0].captions) == 12
    for other in (tmp_path, root / "below"):
        with pytest.raises(ValueError, match=f"'{other}' shares pictures with '{root}', on which the run was trained"):
            ask.pairs_of(run, str(other), None, progress=False)
    (root / "0.txt").write_text("another")
    with pytest.raises(ValueError, match=r"the data in .* have changed since the run"):
        ask.pairs_of(run, None, None, progress=False)


# align


def test_align_draws_every_word(
    compared: Path,
    scene_picture: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More words than a row holds, for both runs; the scale is said and shown; what is printed is what is drawn."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    picture, caption = scene_picture
    words = f"{caption} \t {caption}"
    assert main(["align", str(compared), str(picture), words, *CPU, "--out", str(tmp_path / "a.svg")]) == 0
    (figure,) = drawn
    titles = [axis.get_title() for axis in figure.axes if axis.get_title().strip()]
    assert titles == 2 * words.split()
    assert "each map scaled by its own maximum" in figure.get_suptitle()
    assert figure.axes[-1].get_ylabel() == "share of the maximum"
    assert figure.axes[-1].get_ylim() == (0, 1)
    printed = capsys.readouterr().out
    run = load_run(compared / "clip", "cpu")
    pair = Data(
        heldout(compared / "clip").train, [], run.transform.pixels(picture)[None], [" ".join(words.split())], ""
    )
    word, weights = caption_maps(run, pair, 0)[1]
    row, column = divmod(int(weights.argmax()), 8)
    assert (
        f"  {word}: most in row {row + 1}, column {column + 1} of 8 x 8 patches, {100 * weights.max():.1f} %" in printed
    )
    assert "note: " not in printed


def test_align_says_what_the_tokenizer_does_not_know(finished: Path) -> None:
    run = load_run(finished, "cpu")
    assert not list(ask.unlearned(run, "a Red circle above a green star"))
    assert list(ask.unlearned(run, "a \u72ac " + "red " * 25 + "Quagga green")) == [
        "note: words that were not learned are read in pieces, their maps may mean little: '\u72ac' in 3",
        "note: the caption is cut at 32 tokens: no map, or one of a beginning only, of 'Quagga', 'green'",
    ]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "I;16", "LA", "F", "LAB", "YCbCr"])
def test_align_takes_pictures_of_odd_modes(mode: str, finished: Path, tmp_path: Path) -> None:
    plain = Image.new("L", (9, 5), 90)
    odd = Image.fromarray(np.full((5, 9), 90, np.uint16)) if mode == "I;16" else plain.convert("RGB")
    if mode == "LAB":
        odd = Image.new("LAB", (9, 5))
    elif mode != "I;16":
        odd = (plain if mode in ("F", "LA") else odd).convert(mode)
    assert odd.mode == mode
    odd.save(tmp_path / "odd.tiff")
    assert load_run(finished, "cpu").transform(tmp_path / "odd.tiff").shape == (3, 64, 64)


@pytest.mark.parametrize(
    "picture, caption, more, message",
    [
        ("nothing.png", "red", [], "picture 'nothing.png': cannot be read (No such file or directory)"),
        (".", "red", [], "picture '.': cannot be read (Is a directory)"),
        ("words.txt", "red", [], "picture 'words.txt': broken picture (UnidentifiedImageError"),
        ("good.png", " \t\n", [], "caption must hold a word, got ' \\t\\n'"),
        ("good.png", "caf\udce9", [], "caption must be text in UTF-8, got 'caf\\udce9'"),
        ("good.png", "red", ["--out", "good.png"], "--out is the picture itself, 'good.png'"),
        ("good.png", "red", ["--out", "map.doc"], "--out must be a file that ends in " + ", ".join(FORMATS)),
        ("good.png", "red", ["--threads", "0"], "threads must be at least 1, got 0"),
    ],
)
def test_align_refuses_with_a_sentence(
    picture: str,
    caption: str,
    more: list[str],
    message: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("good.png")
    Path("words.txt").write_text("no picture")
    before = Path("good.png").read_bytes()
    assert main(["align", str(finished), picture, caption, *CPU, *more]) == 2
    one_line(capsys, message)
    assert Path("good.png").read_bytes() == before
    assert not Path("map.png").exists()


def test_exit_statuses(
    finished: Path, scene_picture: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2: no run there, or a word missing; 1: the answer cannot be written."""
    assert main(["evaluate", str(tmp_path / "nothing")]) == 2
    one_line(capsys, f"no checkpoint in '{tmp_path / 'nothing'}'")
    for words in (["align", "run"], ["evaluate"], ["evaluate", "run", "--bogus"]):
        with pytest.raises(SystemExit) as error:
            main(words)
        assert error.value.code == 2
    assert f"{'usage: python -m sparc_kernels.train align'}" in capsys.readouterr().err
    (tmp_path / "file").write_text("no folder")
    for words in (
        ["align", str(finished), str(scene_picture[0]), "red", "--out", str(tmp_path / "file" / "map.png")],
        ["evaluate", str(finished), "--out", str(tmp_path / "file")],
    ):
        assert main([*words, *CPU]) == 1
        one_line(capsys, "could not be written: ")


def test_asking_is_the_work_of_one_process(finished: Path) -> None:
    from sparc_kernels.train.processes import Processes

    with pytest.raises(ValueError, match="evaluate is the work of one process, got 2: start it without torchrun"):
        ask.ask("evaluate", {}, Processes(0, 2))


def test_a_run_of_bfloat16_is_evaluated_in_bfloat16(finished: Path, tmp_path: Path) -> None:
    changed(finished, tmp_path, lambda state: state["config"].update(precision="bf16"))
    run: LoadedRun = load_run(tmp_path, "cpu")
    with run.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16

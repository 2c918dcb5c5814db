"""Masks of words beside pictures: which word, which patches, and what is said of those that are of no use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparc_kernels.train.cli import main
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.data_folder import Unusable, scan
from sparc_kernels.train.data_masks import masked, named
from sparc_kernels.train.evaluate import grounding

SIDE, PATCH = 64, 8


def left_half(size: tuple[int, int], mode: str = "L") -> Image.Image:
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, : size[0] // 2] = 255
    return Image.fromarray(mask).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, 80 x 40, of a red ball on the left; each with a mask, and with one of each fault."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(12):
        Image.new("RGB", (80, 40), (number, 200, 0)).save(root / f"{number}.jpg")
        (root / f"{number}.txt").write_text(f"The red ball number {number}: a red thing")
        left_half((80, 40)).save(root / f"{number}.Red.png")
        left_half((80, 40), "RGBA").save(root / f"{number}.red_ball.png")
    left_half((80, 40)).save(root / "0.green.png")
    left_half((40, 40)).save(root / "0.ball.png")
    Image.new("L", (80, 40)).save(root / "0.thing.png")
    (root / "0.number.png").write_bytes(b"no picture")
    left_half((80, 40)).save(root / "away.red.png")  # its picture has no caption
    Image.new("RGB", (8, 8)).save(root / "away.png")
    Image.new("RGB", (8, 8)).save(root / "0.own.png")  # a picture, with a caption of its own
    (root / "0.own.txt").write_text("something else")
    return root


def test_masks_are_found_checked_and_named(folder: Path) -> None:
    found = scan(folder, SIDE)
    assert len(found) == 13
    first = found.paths.index(folder / "0.jpg")
    scenes = masked(found, list(range(len(found))))
    words = {(word.text, word.start) for word in scenes[first].words}
    assert words == {("red", 4), ("red", 25), ("red ball", 4)}
    assert scenes[found.paths.index(folder / "0.own.png")].words == ()
    reasons = {path.name: reason for path, reason in found.skipped}
    assert reasons == {
        "0.green.png": "mask names no word of its caption ('green')",
        "0.ball.png": "mask has another size than its picture ((40, 40) and (80, 40))",
        "0.thing.png": "mask has nothing white in the middle of the picture",
        "0.number.png": reasons["0.number.png"],
        "away.red.png": "mask of a picture that is not used",
        "away.png": "no caption file",
    }
    assert reasons["0.number.png"].startswith("broken mask (UnidentifiedImageError")


def test_a_mask_takes_the_way_of_its_picture(folder: Path) -> None:
    """Padded to a square and cropped in the middle: the left half of an 80 x 40 picture, in rows 16 to 48 of 64."""
    found = scan(folder, SIDE)
    (scene,) = masked(found, [found.paths.index(folder / "3.jpg")])
    grid = scene.patch_masks(PATCH)[scene.words[0].item].reshape(SIDE // PATCH, SIDE // PATCH)
    expected = np.zeros((8, 8), bool)
    expected[1:7, :4] = True  # 72 pixels are kept and 64 cut out, so the border rows are covered in part
    assert (grid[2:6] == expected[2:6]).all()
    assert not grid[:, 4:].any()
    assert not grid[[0, 7]].any()
    white = np.all(scene.image > 250, axis=2)  # the padding of the picture
    assert scene.coverage[0][white].max() < 0.5


def test_words_are_whole_words() -> None:
    assert named("a red car, Red!", "red") == [(2, 5), (11, 14)]
    assert named("hot dog", "hot_dog") == [(0, 7)]
    for caption in ("redder", "a dog"):
        with pytest.raises(Unusable, match="names no word"):
            named(caption, "red")


def test_masks_are_the_truth_of_grounding(folder: Path, small: TrainConfig) -> None:
    """Maps that are the masks point right; maps of the other half never do; pairs without masks count for nothing."""
    data = load_data(replace(small, data=str(folder), eval_pairs=3), lambda line: None)
    assert len(data.scenes) == len(data.captions)
    right = [
        torch.tensor(np.array([s.patch_masks(PATCH)[w.item] for w in s.words]), dtype=torch.float) for s in data.scenes
    ]
    found = grounding(data.scenes, right, PATCH)
    assert (found["pointing"], found["iou"]) == (1.0, 1.0)
    assert 0.1 < found["chance"] < 0.5
    assert found["words"] == sum(len(scene.words) for scene in data.scenes) > 0
    assert grounding(data.scenes, [1 - x for x in right], PATCH)["pointing"] == 0


def test_a_folder_with_masks_gets_grounding_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ["--steps", "2", "--batch-size", "4", "--eval-pairs", "2", "--threads", "1", "--quiet", "--device", "cpu"]
    assert main([*fast, "--data", str(folder), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "13 pictures with captions, 12 of them with masks" in printed
    assert "grounding, words whose strongest patch is right" in printed
    assert "held out, 6 words of them with masks" in printed
    assert "6 words with masks. Chance" in printed
    assert (tmp_path / "run" / "alignment.png").exists()

    other = shutil.copytree(folder, tmp_path / "other")
    (other / "1.txt").write_text("another red ball")
    asked = ["evaluate", str(tmp_path / "run"), "--data", str(other), "--device", "cpu", "--quiet"]
    assert main([*asked, "--eval-pairs", "20", "--out", str(tmp_path / "asked")]) == 0
    printed = capsys.readouterr().out
    assert "13 pictures with captions, 12 of them with masks" in printed
    assert "mask has another size than its picture" in printed
    found = json.loads((tmp_path / "asked" / "results.json").read_text())
    assert found["words"] == 11 * 3 + 2, "three in every caption, but for the changed one's two"
    assert 0.3 < found["chance"] < 0.5


def test_masks_without_use_give_no_figures(folder: Path) -> None:
    for path in folder.glob("*.[Rr]ed*.png"):
        path.rename(path.with_name(f"{path.name.split('.')[0]}.green.png"))
    found = scan(folder, SIDE)
    assert found.masks
    assert masked(found, list(range(len(found)))) == []

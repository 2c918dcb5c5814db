"""Captions, links, folders and checkpoints that are not as one would like them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sparc_kernels.train import data_folder, tokenizer
from sparc_kernels.train.checkpoint import CHECKPOINT, load
from sparc_kernels.train.cli import main
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import FolderStream, fingerprint, load_data, split
from sparc_kernels.train.data_folder import Unusable, scan
from sparc_kernels.train.trainer import Trainer
from tests.train.conftest import FAST


def coloured(root: Path, count: int) -> Path:
    """Pictures of one grey each, ``10 * number``, which their captions name."""
    root.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 20), (10 * number,) * 3).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(f"grey {10 * number}")
    return root


def one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


# Captions and names.


def test_captions_and_names_of_other_encodings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coloured(tmp_path / "data", 6)
    (root / "0.txt").write_bytes("ein gr\u00fcner Hund".encode("latin-1"))
    (root / "1.txt").write_bytes(b"\xef\xbb\xbf" + "ein grüner Hund".encode())
    (root / "2.txt").write_bytes("ein grüner Hund".encode("utf-16"))
    assert scan(root, 32).captions[:3] == ["ein grüner Hund"] * 3
    latin = os.fsencode(root) + b"/caf\xe9"
    shutil.copy(root / "5.png", latin + b".png")
    shutil.copy(root / "5.txt", latin + b".txt")
    shutil.copy(root / "5.txt", latin + b"2.png")  # broken, so that its name is printed
    shutil.copy(root / "5.txt", latin + b"2.txt")
    assert main([*FAST, "--data", str(root), "--batch-size", "2", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "7 pictures with captions, 1 files skipped" in printed
    assert "caf\\udce92.png: broken picture" in printed
    assert (tmp_path / "run" / "skipped.txt").read_bytes().startswith(b"caf\xe92.png\tbroken picture")


def test_long_captions_are_cut_and_it_is_said_once(
    small: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer._say_cut.cache_clear()
    root = coloured(tmp_path / "data", 6)
    for number in range(6):
        (root / f"{number}.txt").write_text(" ".join(f"word{number * k}" for k in range(500)))
    config = TrainConfig(**{**small.to_dict(), "data": str(root), "steps": 2})
    for _ in range(2):
        trainer = Trainer(config, load_data(config, lambda line: None), progress=False)
        trainer.fit()
    assert caplog.messages == ["warning: captions of more than 32 tokens are cut"]
    batch = trainer.tokenizer([trainer.data.captions[0], "short"])
    assert batch.mask.sum(1)[0] == 32
    assert batch.tokens_of(0, 0, 5)
    assert not batch.tokens_of(0, 3000, 3005)


# Links and files that vanish.


def test_links(tmp_path: Path) -> None:
    root = coloured(tmp_path / "data", 2)
    (root / "deep").mkdir()
    shutil.copy(root / "0.png", root / "deep" / "in.png")
    (root / "deep" / "in.txt").write_text("deep down")
    elsewhere = coloured(tmp_path / "elsewhere", 1)
    (root / "deep" / "up").symlink_to(root)  # circles
    (root / "self").symlink_to(root / "self")
    (root / "again").symlink_to(root / "deep")
    (root / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "deep")
    (root / "link.png").symlink_to(root / "1.png")
    (root / "link.txt").symlink_to(root / "1.txt")
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "gone").symlink_to(tmp_path / "nothing")
    (root / "ring.png").symlink_to(root / "ring.png")
    shutil.copy(root / "0.png", root / "mute.png")
    (root / "mute.txt").symlink_to(root / "mute.txt")
    folder = scan(root, 32)
    names = [str(path.relative_to(root)) for path in folder.paths]
    assert names == ["0.png", "1.png", "deep/in.png", "link.png", "more/0.png"]
    assert {str(path.relative_to(root)): reason.split(" (")[0] for path, reason in folder.skipped} == {
        "again": "folder was read already",
        "deep/up": "folder was read already",
        "more/back": "folder was read already",
        **dict.fromkeys(("self", "gone", "gone.png", "ring.png"), "broken link"),
        "mute.txt": "broken link",
        "mute.png": "caption cannot be read",
    }
    assert f"(as {root})" in dict(folder.skipped)[root / "deep" / "up"]
    assert fingerprint(folder) == fingerprint(scan(root, 32))


def test_files_removed_during_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_folder, "CACHE_BYTES", 0)
    folder = scan(coloured(tmp_path / "data", 12), 32)
    config = TrainConfig(batch_size=5)
    streams = [FolderStream(folder, list(range(10)), config) for _ in range(2)]
    before = [streams[0][position] for position in range(20)]
    for number in (3, 7):
        folder.paths[number].unlink()
    lost = {folder.captions[number] for number in (3, 7)}
    after = [streams[0][position] for position in range(20)]
    for (_, old), (pixels, caption) in zip(before, after):
        assert caption not in lost
        assert caption == old or old in lost
        assert caption == f"grey {pixels[16, 16, 0]}"
    assert sorted(caplog.messages) == [
        f"warning: {name}: cannot be read (No such file or directory); another pair takes its place"
        for name in sorted(folder.paths[number].name for number in (3, 7))
    ]
    assert [caption for _, caption in after] == [streams[1][position][1] for position in range(20)]
    for path in folder.paths:
        path.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"none of the pictures in .* can be read any more"):
        streams[0][0]


def test_a_run_goes_on_without_the_files_that_were_removed(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_folder, "CACHE_BYTES", 0)
    root = coloured(tmp_path / "data", 12)
    config = TrainConfig(**{**small.to_dict(), "data": str(root), "workers": 1})
    trainer = Trainer(config, load_data(config, lambda line: None), progress=False)
    stream = trainer.data.train
    assert isinstance(stream, FolderStream)
    lost = stream.folder.paths[stream.members[0]]
    lost.unlink()
    handler = logging.StreamHandler(sys.stderr)  # of a worker, which pytest does not listen to
    logging.getLogger("sparc_kernels.train.data").addHandler(handler)
    trainer.fit()
    logging.getLogger("sparc_kernels.train.data").removeHandler(handler)
    assert trainer.step == 8
    assert capfd.readouterr().err.count(f"{lost.name}: cannot be read (No such file or directory)") == 1
    with pytest.raises(ValueError, match=r"the data in .* have changed"):
        Trainer(config, load_data(config, lambda line: None), resume=True)


def test_a_held_out_picture_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "CACHE_BYTES", 0)
    root = coloured(tmp_path / "data", 12)
    config = TrainConfig(data=str(root), batch_size=4)
    folder = scan(root, 64)
    lost = folder.paths[split(folder, config)[1][0]]
    with pytest.raises(Unusable, match=f"{lost.name}: cannot be read"):
        load_data(config, lambda line: lost.unlink() if "held out" in line else None)


# Folders and checkpoints.


def test_an_out_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    for out, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        assert main([*FAST, "--out", str(out)]) == 2
        one_line(capsys, f"cannot write into '{out}': {why}")
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir(mode=0o500)
    for folder in (out, out / "below"):
        assert main([*FAST, "--out", str(folder)]) == 2
        one_line(capsys, f"cannot write into '{folder}': Permission denied")


class Foreign:
    pass


@pytest.mark.parametrize("share", [0, 1e-5, 0.5, 0.999999])
def test_truncated_checkpoints(share: float, finished: Path, tmp_path: Path) -> None:
    whole = (finished / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"'{tmp_path / CHECKPOINT}' cannot be read as a checkpoint: .") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other, message",
    [
        (Foreign(), "cannot be read as a checkpoint: ."),
        ([1, 2], "is no checkpoint of this trainer"),
        ({"weights": torch.zeros(2)}, "is no checkpoint of this trainer"),
        (torch.zeros(2), "is no checkpoint of this trainer"),
        ({"version": 99}, "has version 99, expected 1"),
    ],
)
def test_foreign_checkpoints(other: object, message: str, tmp_path: Path) -> None:
    torch.save(other, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_configuration(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    values = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(values | {"loss": "clip", "lr": 0.1}))
    assert main(["--resume", str(out), "--quiet"]) == 2
    one_line(capsys, "another configuration: loss: 'sparc' -> 'clip'; lr: 0.003 -> 0.1")
    (out / "config.json").write_text(json.dumps(values))
    (out / CHECKPOINT).write_bytes(b"PK")
    assert main(["--resume", str(out), "--quiet"]) == 2
    one_line(capsys, f"'{out / CHECKPOINT}' cannot be read as a checkpoint")
    (out / "config.json").write_text('{"preset": "tiny",')
    assert main(["--resume", str(out), "--quiet"]) == 2
    one_line(capsys, f"'{out / 'config.json'}' cannot be read as a configuration")

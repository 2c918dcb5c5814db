"""Shards of captioned pictures: what is read, what is skipped, in which order, on how many processes."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparc_kernels.train.cli import main
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import batches, load_data
from sparc_kernels.train.data_shards import scan_shards, through_buffer
from sparc_kernels.train.processes import Processes
from sparc_kernels.train.trainer import Trainer
from tests.train.test_trainer import curve

webdataset = pytest.importorskip("webdataset", reason="needs the webdataset library")
Files = Iterable[tuple[str, bytes]]


def encoded(kind: str, seed: int = 0, size: tuple[int, int] = (30, 20)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write_shard(path: Path, files: Files) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three shards with 12 usable pairs, and one of each thing that must be skipped."""
    for shard in range(3):
        files: list[tuple[str, bytes]] = []
        for number in range(4):
            kind = ("jpeg", "png", "webp", "jpeg")[number]
            suffix = "jpg" if kind == "jpeg" else kind
            text = f"pair {number} of shard {shard}"
            as_json = json.dumps({"caption": text, "width": 30}).encode()
            caption = ("json", as_json) if number == 2 else ("txt", f"{text}\nmore".encode())
            files += [
                (f"a/{number}.{suffix}", encoded(kind, 4 * shard + number)),
                (f"a/{number}.{caption[0]}", caption[1]),
            ]
        if shard == 1:
            files += [("broken.jpg", b"no picture"), ("broken.txt", b"words"), ("mute.jpg", encoded("jpeg"))]
            files += [("deaf.txt", b"words"), ("list.json", b"[1]"), ("list.png", encoded("png")), ("torn.json", b"{")]
            files += [("torn.png", encoded("png")), ("empty.txt", b"\n"), ("empty.webp", encoded("webp"))]
            files += [("twice.txt", b"one"), ("twice.txt", b"two"), ("__notes__/x.txt", b"of the library")]
        write_shard(tmp_path / f"shard-{shard:03}.tar", files)
    return str(tmp_path / "shard-{000..002}.tar")


def test_usable_pairs_are_found_and_the_rest_is_named(shards: str, tmp_path: Path) -> None:
    found = scan_shards(shards, 32)
    assert [(path.parent.parent.name, path.name) for path in found.paths] == [
        (f"shard-{shard:03}.tar", str(number)) for shard in range(3) for number in range(4)
    ]
    assert found.captions[6] == "pair 2 of shard 1"
    assert found.shard == [0] * 4 + [1] * 4 + [2] * 4
    reasons = [(path.name, reason.split(" (")[0]) for path, reason in found.skipped]
    assert sorted(reasons) == [
        ("broken", "broken picture"),
        ("deaf", "no picture"),
        ("empty", "empty caption"),
        ("list", "caption cannot be read"),
        ("mute", "no caption"),
        ("shard-001.tar", "file that cannot belong to a sample"),
        ("torn", "caption cannot be read"),
        ("twice", "no picture"),
    ]
    kept = found.picture(5)
    found.cache.clear()
    assert np.array_equal(found.picture(5), kept), "what is read later is what was read first"


def test_the_library_reads_the_same_samples(shards: str) -> None:
    """Its own reader, over the same files, finds the captions of our samples."""
    samples = webdataset.WebDataset(shards, shardshuffle=False, handler=webdataset.ignore_and_continue)
    texts = {(Path(s["__url__"]).name, s["__key__"]): s["txt"] for s in samples if "txt" in s}
    ours = scan_shards(shards, 32)
    named = {(path.parent.parent.name, f"a/{path.name}"): text for path, text in zip(ours.paths, ours.captions)}
    assert all(named[key] == texts[key].decode().splitlines()[0] for key in named.keys() & texts.keys())
    assert len(named.keys() & texts.keys()) == 9  # the others have json


def test_a_buffer_keeps_every_element_and_its_reach() -> None:
    """An element moves up by less than the buffer's size, and elements do move."""
    stream = np.arange(200)
    out = through_buffer(stream, 10, np.random.default_rng(0))
    assert sorted(out) == list(stream)
    assert (np.arange(200) - out).min() > -10
    assert (out != stream).sum() > 150
    assert sorted(through_buffer(stream[:5], 10, np.random.default_rng(0))) == [0, 1, 2, 3, 4]


def test_epochs_go_through_shards(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small buffer pairs of a shard stay close; every epoch has each pair once, in another order."""
    found = scan_shards(shards, 32)
    monkeypatch.setattr("sparc_kernels.train.data_shards.BUFFER", 2)
    epochs = [found.order(np.arange(12), np.random.default_rng((0, epoch))) for epoch in range(8)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
        assert set(np.asarray(found.shard)[epoch[:3]]) <= {*np.asarray(found.shard)[epoch[:5]]}
        assert len(set(np.asarray(found.shard)[epoch[:3]])) == 1, "the first pairs to come out are of the first shard"
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert {found.shard[epoch[0]] for epoch in epochs} == {0, 1, 2}


def test_more_processes_and_workers_than_shards(small: TrainConfig, shards: str) -> None:
    """They draw the pairs of one, from any step on."""
    small = replace(small, data=shards, eval_pairs=2)
    drawn = load_data(small, lambda line: None)
    whole = list(batches(drawn, small, 0, range(4)))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches(drawn, replace(small, workers=2), 0, range(4)), whole))
    shares = [list(batches(drawn, small, 5, Processes(rank, 4).share(4))) for rank in range(4)]
    for (pixels, texts), *parts in zip(whole[5:], *shares):
        assert torch.equal(torch.cat([part for part, _ in parts]), pixels)
        assert [text for _, some in parts for text in some] == texts


def test_a_run_on_shards_resumes_exactly(small: TrainConfig, shards: str, tmp_path: Path) -> None:
    """In the middle of an epoch, with pictures read from the shards again instead of kept."""
    config = replace(small, data=shards, eval_pairs=2, out=str(tmp_path / "whole"), steps=5, checkpoint_every=2)
    Trainer(config, load_data(config, lambda line: None), progress=False).fit()
    config = replace(config, out=str(tmp_path / "parts"))
    first = Trainer(config, load_data(config, lambda line: None), progress=False)
    noted: list[int] = []
    first.model.register_forward_pre_hook(lambda *_: noted.append(15) if first.step == 2 else None)
    assert first.fit(noted) == 15
    data = load_data(config, lambda line: None)
    data.train.folder.cache.clear()  # type: ignore[attr-defined]
    Trainer(config, data, resume=True, progress=False).fit()
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_faults_of_shards_are_named(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"2 of 3 shards are no files here, the first is .*none-1.tar"):
        scan_shards(str(tmp_path / "{shard-000,none-1,none-2}.tar"), 32)
    write_shard(tmp_path / "bare.tar", [("only.txt", b"words")])
    with pytest.raises(ValueError, match=r"no picture with a caption in the 1 shards .*only: no picture"):
        scan_shards(str(tmp_path / "bare.tar"), 32)
    (tmp_path / "odd.tar").write_bytes(b"no archive" * 100)
    whole = (tmp_path / "shard-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3])
    found = scan_shards(str(tmp_path / "{odd,cut,shard-002}.tar"), 32)
    assert 4 < len(found) < 8
    named = {path.name: reason for path, reason in found.skipped}
    assert named["odd.tar"].startswith("shard cannot be read to its end (")
    assert any(path.is_relative_to(tmp_path / "cut.tar") for path, _ in found.skipped)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ValueError, match=r"shards, which need the webdataset library .*pip install webdataset"):
        scan_shards(shards, 32)


def test_shards_end_to_end(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = ["--steps", "2", "--batch-size", "4", "--eval-pairs", "2", "--threads", "1", "--quiet", "--device", "cpu"]
    assert main([*fast, "--data", shards, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "12 pictures with captions, 8 files skipped" in printed
    assert "10 pairs to train on, 2 held out" in printed
    assert len((tmp_path / "run" / "skipped.txt").read_text().splitlines()) == 8

    asked = ["evaluate", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main(asked) == 0
    assert f"2 held-out pairs of {shards}" in capsys.readouterr().out
    results = [(tmp_path / "run" / part / "results.json").read_text() for part in ("", "evaluation")]
    assert results[0] == results[1], "what training measured, again"
    part = shards.replace("002", "001")
    assert main([*asked, "--data", part]) == 2
    assert f"{part!r} shares pictures with {shards!r}, on which the run was trained" in capsys.readouterr().err
    pair = [("one.two.jpg", encoded("jpeg")), ("a.jpg", encoded("jpeg", 1)), ("a.txt", b"a red thing")]
    mask = [("a.red.png", encoded("png", 2))]
    write_shard(tmp_path / "other.tar", [*pair, *mask, ("b.png", encoded("png", 3)), ("b.txt", b"a thing")])
    assert main([*asked, "--data", str(tmp_path / "other.tar"), "--out", str(tmp_path / "asked")]) == 0
    assert f"2 of the 2 pairs in {tmp_path / 'other.tar'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "asked" / "results.json").read_text())["words"] == 1

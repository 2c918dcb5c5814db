"""A folder of pictures: what is read, what is skipped, and how it is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import FolderStream, fingerprint, split
from sparc_kernels.train.data_folder import Unusable, load_image, read_caption, scan


def test_usable_pictures_are_found_and_the_rest_is_named(pictures: Path) -> None:
    folder = scan(pictures, 32)
    assert len(folder) == 12
    reasons = {path.name: reason for path, reason in folder.skipped}
    assert set(reasons) == {"broken.png", "cut.jpg", "mute.png", "empty.png", "vector.svg"}
    assert reasons["broken.png"].startswith("broken picture (")
    assert reasons["cut.jpg"].startswith("broken picture (")
    assert reasons["mute.png"] == "no caption file"
    assert reasons["empty.png"] == "empty caption"
    assert reasons["vector.svg"] == "no decoder for .svg files"
    assert folder.captions[folder.paths.index(pictures / "deep" / "plain3.png")] == "plain picture number 3"
    lines: list[str] = []
    folder.report(lines.append)
    assert "12 pictures with captions, 5 files skipped" in lines[0]
    assert any("2 x broken picture" in line for line in lines)
    assert any(line.strip() == "mute.png" for line in lines)


def test_pictures_become_squares_on_white(pictures: Path) -> None:
    clear = load_image(pictures / "deep" / "er" / "rgba.png", 16)
    assert clear.shape == (16, 16, 3)
    assert clear.dtype == np.uint8
    assert (clear == 255).all()  # fully transparent red is white
    wide = load_image(pictures / "deep" / "plain0.png", 30)  # 30 wide, 20 high
    assert (wide[:4] == 255).all()
    assert (wide[-4:] == 255).all()
    assert not (wide[10:20] == 255).all()
    grey = load_image(pictures / "deep" / "er" / "sixteen.png", 24)
    assert len(np.unique(grey)) > 50  # scaled, not clipped


def test_half_transparency_is_composited(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert abs(int(load_image(tmp_path / "half.png", 8)[4, 4, 0]) - 127) <= 1


@pytest.mark.parametrize(
    "data, caption",
    [
        ("Grüße, Welt\nzweite Zeile".encode(), "Grüße, Welt"),
        ("\ufeffmarked".encode(), "marked"),
        ("wide text\r\nmore".encode("utf-16"), "wide text"),
        ("caf\u00e9 \u201cquoted\u201d".encode("cp1252"), "café “quoted”"),
        (b"\x81 undefined in 1252", "\x81 undefined in 1252"),
        (b"  many   blanks\tand tabs \n", "many blanks and tabs"),
        (b"no newline", "no newline"),
    ],
)
def test_captions_in_other_encodings(tmp_path: Path, data: bytes, caption: str) -> None:
    path = tmp_path / "caption.txt"
    path.write_bytes(data)
    assert read_caption(path) == caption


@pytest.mark.parametrize("data", [b"", b"\n", b" \t\nsecond", b"\xef\xbb\xbf\n"])
def test_an_empty_first_line_is_no_caption(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "caption.txt"
    path.write_bytes(data)
    with pytest.raises(Unusable, match="empty caption"):
        read_caption(path)


def test_folders_without_a_usable_pair_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture with a same-stem .txt caption .*\(no picture\)"):
        scan(tmp_path, 32)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1 pictures, none usable; a.png: no caption file"):
        scan(tmp_path, 32)
    with pytest.raises(ValueError, match="is not a folder"):
        scan(tmp_path / "absent", 32)


def test_pairs_with_one_caption_stay_on_one_side(pictures: Path) -> None:
    for path in sorted(pictures.rglob("plain*.txt"))[:4]:
        path.write_text("the same words")
    folder = scan(pictures, 32)
    for seed in range(10):
        training, heldout = split(folder, TrainConfig(seed=seed, eval_pairs=4))
        assert sorted(training + heldout) == list(range(12))
        assert heldout
        assert not {folder.captions[i] for i in training} & {folder.captions[i] for i in heldout}


def test_a_single_caption_cannot_be_split(pictures: Path) -> None:
    for path in pictures.rglob("*.txt"):
        path.write_text("the same words")
    with pytest.raises(ValueError, match="has a single caption"):
        split(scan(pictures, 32), TrainConfig())


def test_epochs_are_permutations_and_positions_are_all_that_counts(pictures: Path) -> None:
    folder = scan(pictures, 32)
    stream = FolderStream(folder, list(range(10)), TrainConfig(batch_size=5, steps=200))
    epochs = [[stream[position][1] for position in range(start, start + 10)] for start in (0, 10)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(folder.captions[:10])
    assert epochs[0] != epochs[1]
    fresh = FolderStream(folder, list(range(10)), TrainConfig(batch_size=5, steps=200))
    np.testing.assert_array_equal(fresh[13][0], stream[13][0])
    assert fresh[13][0].shape == (32, 32, 3)
    with pytest.raises(ValueError, match="batch size 64 exceeds the 10 training pairs"):
        FolderStream(folder, list(range(10)), TrainConfig())


def test_the_fingerprint_follows_the_data(pictures: Path) -> None:
    before = fingerprint(scan(pictures, 32))
    assert fingerprint(scan(pictures, 32)) == before
    (pictures / "deep" / "plain0.txt").write_text("another caption")
    assert fingerprint(scan(pictures, 32)) != before

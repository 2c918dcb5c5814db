"""Pictures that are not as one would like them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparc_kernels.train import data_folder
from sparc_kernels.train.cli import main
from sparc_kernels.train.data_folder import load_image, scan
from tests.train.conftest import FAST
from tests.train.test_cli import is_picture
from tests.train.test_odd_input import coloured

RAMP = np.arange(32, dtype=np.uint16) * 8  # columns of a picture from dark to light


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path: Path, width: int, rows: Iterable[bytes], depth: int, colour: int, extra: bytes = b"") -> None:
    """A PNG that Pillow would not write, or not without holding all of it. ``colour``: 0 grey, 2 RGB."""
    packer = zlib.compressobj(1)
    count, parts = 0, []
    for row in rows:
        parts.append(packer.compress(b"\0" + row))
        count += 1
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, count, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", b"".join(parts) + packer.flush())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + extra + data + chunk(b"IEND", b""))


def test_pictures_beyond_pillows_guard_are_named(tmp_path: Path) -> None:
    root = coloured(tmp_path / "data", 2)
    png(root / "huge.png", 20000, (bytes(2500) for _ in range(20000)), 1, 0)
    (root / "huge.txt").write_text("four hundred million pixels")
    assert (root / "huge.png").stat().st_size < 1 << 20
    folder = scan(root, 32)
    assert len(folder) == 2
    assert folder.skipped == [(root / "huge.png", "too large (Pillow opens pictures of at most 179 million pixels)")]


def test_a_large_picture_is_shrunk_while_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = bytes(313) + b"\xff" * 312
    png(tmp_path / "large.png", 5000, (half for _ in range(5000)), 1, 0)
    sizes = []
    later = data_folder._rgb_on_white

    def seen(picture: Image.Image) -> Image.Image:
        sizes.append(picture.size)
        return later(picture)

    monkeypatch.setattr(data_folder, "_rgb_on_white", seen)
    pixels = load_image(tmp_path / "large.png", 16)
    assert sizes == [(4096, 4096)]
    assert (pixels[:, :7] == 0).all()
    assert (pixels[:, 9:] == 255).all()


@pytest.mark.parametrize(
    "suffix, mode",
    [
        *((".png", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")),
        *((".jpg", mode) for mode in ("L", "RGB", "CMYK")),
        *((".tif", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F")),
    ],
)
def test_shrinking_changes_little(suffix: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.kron(np.tile(RAMP, (32, 1)), np.ones((4, 4), np.uint16))
    base = Image.fromarray(wide.astype(np.uint8))
    kinds = {"I;16": lambda: Image.fromarray(wide), "F": lambda: Image.fromarray(wide.astype(np.float32))}
    picture = kinds.get(mode, lambda: base.convert("RGB").convert(mode))()
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise by a quarter
    picture.save(tmp_path / f"a{suffix}", exif=exif)
    whole = load_image(tmp_path / f"a{suffix}", 16)
    monkeypatch.setattr(data_folder, "SHRINK_SIDE", 64)
    shrunk = load_image(tmp_path / f"a{suffix}", 16)
    assert np.abs(whole.astype(int) - shrunk).mean() < (40 if mode == "1" else 4)  # one bit: dots for shades
    assert shrunk[-1].mean() > shrunk[0].mean() + 150  # upright: the ramp runs downwards
    assert shrunk.std() > 50


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(suffix: str, tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"red{suffix}")
    assert np.abs(load_image(tmp_path / f"red{suffix}", 16)[8, 8].astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("scale", [1, 200])
def test_sixteen_bits(scale: int, tmp_path: Path) -> None:
    grey = np.tile(RAMP * scale, (32, 1)).astype(">u2")
    rows = [row.tobytes() for row in grey]
    png(tmp_path / "grey.png", 32, rows, 16, 0)
    expected = (RAMP.astype(float) / RAMP.max() * 255).astype(np.uint8)
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", 32)[16, :, 0], expected)
    png(tmp_path / "clear.png", 32, rows, 16, 0, chunk(b"tRNS", struct.pack(">H", 0)))
    np.testing.assert_array_equal(load_image(tmp_path / "clear.png", 32)[16, :, 0], [255, *expected[1:]])
    png(tmp_path / "colour.png", 32, [np.repeat(row, 3).tobytes() for row in grey], 16, 2)
    np.testing.assert_array_equal(load_image(tmp_path / "colour.png", 32)[16, :, 0], grey[0].astype(int) // 256)


def test_numbers_that_are_none_do_not_blacken_a_picture(tmp_path: Path) -> None:
    values = np.tile(RAMP, (32, 1)).astype(np.float32)
    values[0, :2] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif", 32)[16, -1, 0] == 255
    Image.fromarray(values * np.nan).save(tmp_path / "b.tif")
    assert (load_image(tmp_path / "b.tif", 32) == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    """The corner that ends up at the top left, of a picture whose corners differ."""
    grey = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png", 32)[8::16, 8::16, 0]
    rows = {1: [0, 80], 2: [80, 0], 3: [240, 160], 4: [160, 240], 5: [0, 160], 6: [160, 0], 7: [240, 80], 8: [80, 240]}
    assert upright[0].tolist() == rows[orientation]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    for suffix in (".gif", ".png", ".webp"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
        with Image.open(path) as opened:
            assert getattr(opened, "n_frames", 1) == 3
        assert np.abs(load_image(path, 16)[8, 8].astype(int) - (255, 0, 0)).max() < 8


def test_a_palette_with_alpha(tmp_path: Path) -> None:
    picture = Image.new("P", (16, 16))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.putdata([0] * 64 + [1] * 64 + [2] * 128)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255, 128]))
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "P"
    pixels = load_image(tmp_path / "a.png", 16)
    assert pixels[1, 8].tolist() == [255, 255, 255]
    assert pixels[6, 8].tolist() == [255, 0, 0]
    assert pixels[12, 8].tolist() == [127, 127, 255]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (100, 5)])
def test_small_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 16).min() < 255


def test_one_picture_and_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FAST, "--batch-size", "1", "--out", str(tmp_path / "run"), "--data"]
    assert main([*flags, str(coloured(tmp_path / "one", 1))]) == 2
    assert "has a single caption; two are needed" in capsys.readouterr().err
    two = str(coloured(tmp_path / "two", 2))
    assert main([*FAST, "--out", str(tmp_path / "run"), "--data", two]) == 2
    assert "batch size 4 exceeds the 1 training pairs" in capsys.readouterr().err
    assert main([*flags, two]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["image_to_text_r1"] == 1
    assert is_picture(tmp_path / "run" / "alignment.png")

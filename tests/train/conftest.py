"""Small runs of the trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

for module in ("PIL", "tokenizers", "tqdm", "tensorboard", "matplotlib", "filelock"):
    pytest.importorskip(module, reason="the trainer's tests need the extra 'train'")

from PIL import Image  # noqa: E402

from sparc_kernels.train.cli import main  # noqa: E402
from sparc_kernels.train.config import TrainConfig  # noqa: E402

CLI = [sys.executable, "-m", "sparc_kernels.train"]
FAST = ["--steps", "4", "--batch-size", "4", "--eval-pairs", "4", "--threads", "1", "--quiet", "--device", "cpu"]


@pytest.fixture
def small(tmp_path: Path) -> TrainConfig:
    """A run of seconds: 8 steps of 4 scenes."""
    return TrainConfig(
        out=str(tmp_path / "run"),
        steps=8,
        batch_size=4,
        warmup_steps=2,
        eval_pairs=6,
        checkpoint_every=3,
        device="cpu",
        threads=1,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on scenes, with its results; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main([*FAST, "--steps", "1", "--out", str(out)]) == 0
    return out


@contextmanager
def float64() -> Iterator[None]:
    """Trainers made in the block have weights, and so losses, in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with 12 usable pictures of many kinds, and one of each thing that must be skipped."""
    root = tmp_path / "pictures"
    (root / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "deep" / f"plain{number}.png")
        (root / "deep" / f"plain{number}.txt").write_text(f"plain picture number {number}\nein Bild\n")
    base = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    clear = Image.new("RGBA", (24, 24), (255, 0, 0, 0))
    kinds = {
        "rgba.png": clear,
        "palette.png": base.convert("P"),
        "grey.png": base.convert("L"),
        "greyalpha.png": base.convert("LA"),
        "cmyk.jpg": base.convert("CMYK"),
        "sixteen.png": Image.fromarray(rng.integers(0, 60000, (24, 24), dtype=np.uint16)),
    }
    for name, picture in kinds.items():
        picture.save(root / "deep" / "er" / name)
        (root / "deep" / "er" / name).with_suffix(".txt").write_text(f"a {name.split('.')[0]} picture")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of use")
    (root / "broken.txt").write_text("a broken picture")
    base.save(root / "cut.jpg")
    whole = (root / "cut.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "cut.txt").write_text("half a picture")
    base.save(root / "mute.png")
    base.save(root / "empty.png")
    (root / "empty.txt").write_text("  \nsecond line\n")
    (root / "vector.svg").write_text("<svg/>")
    (root / "vector.txt").write_text("a drawing")
    (root / "notes.dat").write_text("neither picture nor caption")
    return root

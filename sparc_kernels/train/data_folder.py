"""A folder of pictures, each with a ``.txt`` of the same stem whose first line is its caption, some with masks.

What cannot be used (a broken picture or link, a format without a decoder, a missing or empty caption) is left
out, counted and named. Alpha channels are composited on white; pictures are padded to a square with white.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

Pixels = npt.NDArray[np.uint8]

# Pictures that Pillow cannot decode: named as skipped, not passed over in silence.
UNSUPPORTED = frozenset({".svg", ".svgz", ".heic", ".heif", ".raw", ".psd", ".xcf"})
CACHE_BYTES = 2 << 30
SHRINK_SIDE = 4096  # pictures with more pixels than a square of it are made to fit one before anything else
WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "F")  # 16 and 32 bits per pixel, which Pillow would clip at 255
MARGIN = 1.125  # pictures are kept this much larger than the model's input, for random crops


class Span(NamedTuple):
    """A file inside another one."""

    path: Path
    start: int
    size: int


Source = Path | Span


def opened(source: Source) -> Path | io.BytesIO:
    """For ``Image.open``."""
    if isinstance(source, Path):
        return source
    with open(source.path, "rb") as file:
        file.seek(source.start)
        return io.BytesIO(file.read(source.size))


@dataclass
class Folder:
    """The usable pairs below ``root``, sorted by path, and the skipped files with their reasons.

    ``masks``: of some pairs, by their number, the mask of each word that has one (``data_masks``).
    """

    root: Path
    image_size: int
    paths: list[Path] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    masks: dict[int, dict[str, Source]] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # of the files, in bytes
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    cache: list[Pixels] = field(default_factory=list)
    name: str = ""  # in reports; ``root`` unless given

    @property
    def stored_size(self) -> int:
        return round(self.image_size * MARGIN)

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: Path, source: Source, caption: str, size: int, pixels: Pixels | None) -> None:
        """One more pair; without its ``pixels`` none are kept from here on."""
        self.paths.append(path)
        self.sources.append(source)
        self.captions.append(caption)
        self.sizes.append(size)
        if pixels is None:
            self.cache.clear()
        else:
            self.cache.append(pixels)

    def order(self, members: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """The order of an epoch."""
        return rng.permutation(members)

    def picture(self, number: int) -> Pixels:
        """Picture ``number``, [stored_size, stored_size, 3] uint8; ``Unusable`` if it is not what ``scan`` found."""
        if self.cache:
            return self.cache[number]
        path = self.paths[number]
        try:
            return load_image(self.sources[number], self.stored_size)
        except Unusable as error:
            raise Unusable(f"{path.relative_to(self.root)}: {error}") from error

    def crop(self, number: int, rng: np.random.Generator | None = None) -> Pixels:
        """A random crop (the middle without ``rng``), [image_size, image_size, 3]."""
        room = self.stored_size - self.image_size
        top, left = (int(v) for v in rng.integers(0, room + 1, 2)) if rng else (room // 2, room // 2)
        return self.picture(number)[top : top + self.image_size, left : left + self.image_size]

    def report(self, write: Callable[[str], object], name_at_most: int = 5) -> None:
        """What was found, what was skipped and why, naming the first files of each reason."""
        masked = f", {len(self.masks)} of them with masks" if self.masks else ""
        write(
            f"{self.name or self.root}: {len(self)} pictures with captions{masked}, {len(self.skipped)} files skipped"
        )
        groups: dict[str, list[tuple[Path, str]]] = {}
        for path, reason in self.skipped:
            groups.setdefault(_kind(reason), []).append((path, reason))
        for kind, files in groups.items():
            write(f"  {len(files)} x {kind}")
            for path, reason in files[:name_at_most]:
                detail = "" if reason == kind else f": {reason}"
                write(f"    {path.relative_to(self.root)}{detail}")
            if len(files) > name_at_most:
                write(f"    ... and {len(files) - name_at_most} more, all of them in skipped.txt")


def scan(root: str | Path, image_size: int, progress: bool = False) -> Folder:
    """Decode every picture below ``root`` once and pair it with its caption."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(
            f"data folder {str(root)!r} is not a folder (nor the word 'scenes', nor shards, whose names end in .tar)"
        )
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    folder = Folder(root, image_size)
    files = _find(root, known | UNSUPPORTED, folder.skipped)
    keep = len(files) * folder.stored_size**2 * 3 <= CACHE_BYTES
    owners = _owners(files)
    for path in tqdm(files, desc="reading pictures", unit="file", disable=not progress):
        if path in owners:
            continue
        try:
            if path.suffix.lower() not in known:
                raise Unusable(f"no decoder for {path.suffix.lower()} files")
            caption = read_caption(path.with_suffix(".txt"))
            pixels = load_image(path, folder.stored_size)
        except Unusable as error:
            folder.skipped.append((path, str(error)))
            continue
        folder.add(path, path, caption, path.stat().st_size, pixels if keep else None)
    numbers = {path: number for number, path in enumerate(folder.paths)}
    for path, owner in owners.items():
        if owner in numbers:
            folder.masks.setdefault(numbers[owner], {})[path.stem.rpartition(".")[2]] = path
        else:
            folder.skipped.append((path, "mask of a picture that is not used"))
    if not folder.paths:
        found = f"{len(files)} pictures, none usable" if files else "no picture"
        detail = "".join(f"; {path.name}: {reason}" for path, reason in folder.skipped[:3])
        raise ValueError(f"no picture with a same-stem .txt caption in {str(root)!r} ({found}{detail})")
    return folder


def _owners(files: list[Path]) -> dict[Path, Path]:
    """Masks, ``name.WORD.png`` without a caption of their own, and the picture ``name.*`` that each belongs to."""
    pictures = {path.with_suffix(""): path for path in files}
    found = {}
    for path in files:
        stem, dot, word = path.stem.rpartition(".")
        owner = pictures.get(path.with_name(stem)) if dot and stem and word else None
        if owner is not None and path.suffix.lower() == ".png" and not path.with_suffix(".txt").exists():
            found[path] = owner
    return found


def _find(root: Path, suffixes: frozenset[str] | set[str], skipped: list[tuple[Path, str]]) -> list[Path]:
    """The files below ``root`` with one of the suffixes, sorted. Links are followed, and each folder is read once."""

    def unreadable(error: OSError) -> None:
        skipped.append((Path(error.filename), f"folder cannot be read ({error.strerror})"))

    files: list[Path] = []
    seen: dict[tuple[int, int], str] = {}
    for folder, below, names in os.walk(root, onerror=unreadable, followlinks=True):
        status = os.stat(folder)
        first = seen.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            skipped.append((Path(folder), f"folder was read already (as {first})"))
            below.clear()
            continue
        below.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        for path in sorted(Path(folder, name) for name in names):
            if os.path.islink(path) and not os.path.exists(path):
                skipped.append((path, "broken link"))
            elif path.suffix.lower() in suffixes and os.path.isfile(path):
                files.append(path)
    return sorted(files)


class Unusable(ValueError):
    """Why a file is skipped."""


def read_caption(path: Path) -> str:
    """The first line of a text file in UTF-8 or UTF-16 (by its mark), else as Windows-1252 or Latin-1."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Unusable("no caption file") from None
    except OSError as error:
        raise Unusable(f"caption cannot be read ({error.strerror})") from None
    return caption_of(data)


def caption_of(data: bytes) -> str:
    """The first line, whatever its encoding."""
    lines = _decode(data).split("\n", 1)
    caption = " ".join(lines[0].replace("\0", " ").split())
    if not caption:
        raise Unusable("empty caption")
    return caption


def _decode(data: bytes) -> str:
    encodings = ["utf-8-sig", "cp1252", "latin-1"]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings.insert(0, "utf-16")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes every byte")


def load_image(source: Source, size: int) -> Pixels:
    """Any picture Pillow reads, the first of several, turned upright, on white, padded to a square:
    [size, size, 3] uint8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(opened(source)) as file:
                if file.width * file.height > SHRINK_SIDE**2:
                    gap = None if file.mode.startswith("I;16") else 2.0  # Pillow has no quick reduction of these
                    file.thumbnail((SHRINK_SIDE, SHRINK_SIDE), reducing_gap=gap)
                picture = _rgb_on_white(ImageOps.exif_transpose(file))
                picture = ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, color="white")
                return np.asarray(picture, np.uint8)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unusable(f"too large (Pillow opens pictures of at most {most:.0f} million pixels)") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
        if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
            raise Unusable(f"cannot be read ({error.strerror})") from error
        raise Unusable(f"broken picture ({type(error).__name__}: {error})") from error


def _rgb_on_white(picture: Image.Image) -> Image.Image:
    """To RGB, transparent parts on white; ``WIDE_GREY`` is scaled to its own range."""
    if picture.mode in WIDE_GREY:
        grey = np.asarray(picture, np.float64)
        finite = grey[np.isfinite(grey)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        scaled = (np.clip(np.nan_to_num(grey, nan=low), low, high) - low) / max(high - low, 1e-12) * 255
        if "transparency" in picture.info:  # the grey that stands for transparent
            scaled[grey == picture.info["transparency"]] = 255
        picture = Image.fromarray(scaled.astype(np.uint8))
    elif picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def _kind(reason: str) -> str:
    """The reason without the file's particulars."""
    return reason.split(" (", 1)[0]

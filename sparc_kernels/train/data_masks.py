"""Masks of words: ``name.WORD.png`` beside ``name.png`` shows where the picture has what a word of its caption names.

White is the thing (grey by its share), black and transparent are not; ``_`` in WORD stands for a blank. A mask has the
size of its picture and goes through the same padding and crop. Held-out pairs alone need theirs, to be evaluated as
scenes are.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import Image, ImageOps

from sparc_kernels.train.data_folder import Folder, Source, Unusable, opened
from sparc_kernels.train.data_scenes import Floats, Scene, Word

KIND = "masked"  # where scenes say size, colour, texture or shape
TURNED = (5, 6, 7, 8)  # orientations in EXIF that swap width and height


def masked(folder: Folder, numbers: list[int]) -> list[Scene]:
    """These pairs with the words that have masks, none if no word has one that can be used; what cannot be is added to
    ``folder.skipped``."""
    if not any(number in folder.masks for number in numbers):
        return []
    scenes = [_scene(folder, number) for number in numbers]
    return scenes if any(scene.words for scene in scenes) else []


def _scene(folder: Folder, number: int) -> Scene:
    caption, image = folder.captions[number], folder.crop(number)
    coverage: list[Floats] = []
    words: list[Word] = []
    for name, source in sorted(folder.masks.get(number, {}).items()):
        try:
            places = named(caption, name)
            mask = _load(source, _size(folder.sources[number]), folder.stored_size)
            top = (folder.stored_size - folder.image_size) // 2  # of the middle, as folder.crop has it
            mask = mask[top : top + folder.image_size, top : top + folder.image_size]
            if not mask.any():
                raise Unusable("mask has nothing white in the middle of the picture")
        except Unusable as error:
            path = folder.paths[number]
            folder.skipped.append((path.with_name(f"{path.stem}.{name}.png"), str(error)))
            continue
        words += [Word(caption[start:end], KIND, len(coverage), start, end) for start, end in places]
        coverage.append(mask)
    none = np.zeros((0, folder.image_size, folder.image_size), np.float32)
    return Scene(image, caption, (), tuple(words), np.stack(coverage) if coverage else none)


def named(caption: str, name: str) -> list[tuple[int, int]]:
    """Where the caption has the word, or words, that a mask is named after."""
    word = name.replace("_", " ")
    found = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE)]
    if not found:
        raise Unusable(f"mask names no word of its caption ({word!r})")
    return found


def _size(source: Source) -> tuple[int, int]:
    """Width and height of a picture once it is upright."""
    with Image.open(opened(source)) as file:
        turned = file.getexif().get(0x0112) in TURNED
        return file.size[::-1] if turned else file.size


def _load(source: Source, size: tuple[int, int], side: int) -> Floats:
    """How much of each pixel the mask covers, padded to a square with none: [side, side] in [0, 1]."""
    try:
        with Image.open(opened(source)) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except Exception as error:  # as in load_image
        raise Unusable(f"broken mask ({type(error).__name__}: {error})") from error
    if picture.size != size:
        raise Unusable(f"mask has another size than its picture ({picture.size} and {size})")
    grey = Image.alpha_composite(Image.new("RGBA", size, "black"), picture).convert("L")
    padded = ImageOps.pad(grey, (side, side), Image.Resampling.BOX, color=0)
    coverage: Floats = np.asarray(padded, np.float32) / np.float32(255)
    return coverage

"""Scenes drawn on the fly: a few shapes on a background, a caption naming them, and where each word points.

A scene is a function of (seed, split, index) alone: a stream of them needs no storage and resumes anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 30),
    "purple": (140, 60, 180),
    "orange": (250, 130, 20),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = {"small": (0.15, 0.175), "large": (0.235, 0.275)}  # radius as a share of the picture's side
KINDS = ("size", "colour", "texture", "shape")
SPLITS = {"train": 0, "heldout": 1}


@dataclass(frozen=True)
class Item:
    """One drawn shape; ``x``, ``y`` and ``radius`` in pixels."""

    size: str
    colour: str
    texture: str
    shape: str
    x: int
    y: int
    radius: int

    def words(self) -> list[tuple[str, str]]:
        """(kind, word) in the order of the caption; a plain texture is not named."""
        named = [(kind, getattr(self, kind)) for kind in KINDS]
        return [(kind, word) for kind, word in named if word != "plain"]


@dataclass(frozen=True)
class Word:
    """A word of the caption that speaks of one shape: characters [start, end) of the caption."""

    text: str
    kind: str
    item: int
    start: int
    end: int


@dataclass(frozen=True)
class Scene:
    """``image`` [S, S, 3] uint8; ``coverage`` [items, S, S]: how much of each pixel a shape covers."""

    image: npt.NDArray[np.uint8]
    caption: str
    items: tuple[Item, ...]
    words: tuple[Word, ...]
    coverage: Floats

    def patch_masks(self, patch_size: int, least: float = 0.1) -> Bools:
        """Patches that each shape covers by at least ``least``, and its fullest patch: [items, patches]."""
        items, side, _ = self.coverage.shape
        grid = side // patch_size
        cells = self.coverage.reshape(items, grid, patch_size, grid, patch_size)
        cells = cells.mean((2, 4)).reshape(items, grid * grid)
        masks: Bools = (cells >= least) | (cells == cells.max(1, keepdims=True))
        return masks


def scene(seed: int, split: str, index: int, image_size: int) -> Scene:
    """The scene number ``index`` of a split, ``image_size`` pixels square."""
    rng = np.random.default_rng((seed, SPLITS[split], index))
    items = _place(rng, image_size)
    text, words = _describe(items)
    image, coverage = _paint(rng, items, image_size)
    return Scene(image, text, items, words, coverage)


def caption(seed: int, split: str, index: int, image_size: int) -> str:
    """The caption of a scene without its picture, which costs far more."""
    return _describe(_place(np.random.default_rng((seed, SPLITS[split], index)), image_size))[0]


def _place(rng: np.random.Generator, side: int) -> tuple[Item, ...]:
    """Two or three shapes that do not touch, each within the picture."""
    wanted = int(rng.integers(2, 4))
    placed: list[Item] = []
    while len(placed) < 2:  # two large shapes may leave no room for the first draw of places
        placed = []
        for _ in range(40):
            if len(placed) < wanted and (item := _draw_item(rng, side, placed)):
                placed.append(item)
    return tuple(placed)


def _draw_item(rng: np.random.Generator, side: int, placed: list[Item]) -> Item | None:
    """A shape at a random place, or None where that place is taken."""
    size = _pick(rng, tuple(SIZES))
    radius = max(2, round(float(rng.uniform(*SIZES[size])) * side))
    x, y = (int(v) for v in rng.integers(radius, side - radius + 1, 2))
    gap = max(1, side // 32)
    if any(math.hypot(x - o.x, y - o.y) < radius + o.radius + gap for o in placed):
        return None
    colour, texture, shape = (_pick(rng, tuple(names)) for names in (COLOURS, TEXTURES, SHAPES))
    return Item(size, colour, texture, shape, x, y, radius)


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _relation(first: Item, second: Item) -> str:
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _describe(items: tuple[Item, ...]) -> tuple[str, tuple[Word, ...]]:
    text = ""
    words: list[Word] = []
    for number, item in enumerate(items):
        if number == 1:
            text += f" {_relation(items[0], item)} "
        elif number > 1:
            text += " and "
        text += "a"
        for kind, word in item.words():
            text += " "
            words.append(Word(word, kind, number, len(text), len(text) + len(word)))
            text += word
    return text, tuple(words)


def _paint(rng: np.random.Generator, items: tuple[Item, ...], side: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    tone = rng.uniform(95, 185, 3) * 0.35 + rng.uniform(95, 185) * 0.65
    slope_x, slope_y = rng.uniform(-25, 25, 2)
    light = (slope_x * ramp)[None, :] + (slope_y * ramp)[:, None]
    canvas = tone.astype(np.float32) + light[..., None] + 6 * rng.standard_normal((side, side, 1), np.float32)
    coverage = np.zeros((len(items), side, side), np.float32)
    for number, item in enumerate(items):
        box = np.s_[item.y - item.radius : item.y + item.radius, item.x - item.radius : item.x + item.radius]
        alpha = _stamp(item.shape, item.radius)
        coverage[number][box] = alpha
        ink = np.asarray(COLOURS[item.colour], np.float32) + rng.normal(0, 6, 3).astype(np.float32)
        contrast = ink * 0.5 + (0 if ink.mean() > 140 else 255) * 0.5
        pattern = _pattern(item.texture, item.radius, max(2, side // 32), int(rng.integers(2)))[..., None]
        fill = ink * (1 - pattern) + contrast * pattern
        canvas[box] += alpha[..., None] * (fill - canvas[box])
    return canvas.clip(0, 255).astype(np.uint8), coverage


@lru_cache(maxsize=1024)
def _pattern(texture: str, radius: int, unit: int, turn: int) -> Floats:
    """1 where the texture's second tone shows, [2 radius, 2 radius]; ``unit`` is the stripe's width."""
    y, x = np.mgrid[: 2 * radius, : 2 * radius]
    if turn:
        x, y = y, x
    marks = {
        "plain": np.zeros_like(x, bool),
        "striped": (x // unit) % 2 == 1,
        "checked": (x // (2 * unit) + y // (2 * unit)) % 2 == 1,
        "dotted": (x % (3 * unit) < unit * 1.5) & (y % (3 * unit) < unit * 1.5),
    }
    return marks[texture].astype(np.float32)


@lru_cache(maxsize=1024)
def _stamp(shape: str, radius: int) -> Floats:
    """Coverage of a shape in its box, [2 radius, 2 radius] in [0, 1], drawn at four times the size.

    It stays within the circle of that radius.
    """
    scale = 4
    r = radius * scale
    picture = Image.new("L", (2 * r, 2 * r))
    draw = ImageDraw.Draw(picture)
    edge = 2 * r - 1
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, edge, edge), fill=255)
        if shape == "ring":
            hole = round(r * 0.52)
            draw.ellipse((r - hole, r - hole, r + hole, r + hole), fill=0)
    elif shape == "square":
        inset = round(r * 0.28)
        draw.rectangle((inset, inset, edge - inset, edge - inset), fill=255)
    elif shape == "cross":
        arm, inset = round(r * 0.34), round(r * 0.06)
        draw.rectangle((inset, r - arm, edge - inset, r + arm), fill=255)
        draw.rectangle((r - arm, inset, r + arm, edge - inset), fill=255)
    else:
        reaches = (1, 1, 1) if shape == "triangle" else (1, 0.42) * 5
        draw.polygon(_rays(r, reaches), fill=255)
    small = picture.resize((2 * radius, 2 * radius), Image.Resampling.BOX)
    coverage: Floats = np.asarray(small, np.float32) / np.float32(255)
    return coverage


def _rays(r: int, reaches: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners around the middle of the box, the first one at the top; reaches are shares of the radius."""
    turns = [2 * math.pi * corner / len(reaches) for corner in range(len(reaches))]
    return [(r + r * reach * math.sin(turn), r - r * reach * math.cos(turn)) for turn, reach in zip(turns, reaches)]

"""Pictures of a run: alignment maps over the pixels, and loss curves."""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch

from sparc_kernels.functional import alignment_weights
from sparc_kernels.train.checkpoint import read_log, writing
from sparc_kernels.train.data import Data, to_tensor
from sparc_kernels.train.data_scenes import Scene
from sparc_kernels.train.evaluate import Towers
from sparc_kernels.train.record import LOG

matplotlib.use("Agg")
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

_log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float64]
COLOURS = {
    "sparc": "#0b6e99",
    "clip": "#d1602d",
    "siglip": "#5b7f2b",
    "filip": "#7b4f9d",
    "pacl": "#b08900",
    "gloria": "#a33b5e",
}
PANELS = {
    "global_loss": "global loss",
    "local_loss": "local loss",
    "logit_scale": "logit scale",
    "lr": "learning rate",
}
TITLE, SMALL, INK = 11, 8, "#222222"
FORMATS = (".png", ".jpg", ".pdf", ".svg")
PER_LINE = 8  # maps
HEAT = "inferno"
UNDRAWN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories of Unicode without ink: controls, marks of format, blanks


@torch.no_grad()
def caption_maps(towers: Towers, data: Data, number: int) -> list[tuple[str, Floats]]:
    """Each word of a held-out caption with the mean alignment map of its tokens, [grid, grid]."""
    towers.model.eval()
    text = data.captions[number]
    batch = towers.tokenizer([text])
    pixels = to_tensor(data.pixels[number : number + 1]).to(towers.device)
    patches, tokens = towers.model(pixels, batch.ids.to(towers.device), batch.mask.to(towers.device))
    weights = alignment_weights(patches, tokens)[0].cpu().double().numpy()
    grid = towers.config.model.grid
    maps, place = [], 0
    for word in text.split():
        start = text.index(word, place)
        place = start + len(word)
        if rows := batch.tokens_of(0, start, place):
            maps.append((word, weights[rows].mean(0).reshape(grid, grid)))
    return maps


def named_words(data: Data, number: int, at_most: int) -> list[int]:
    """Which words of a caption to draw: those of which it is known what they speak of, else the longest ones."""
    words = data.captions[number].split()
    if data.scenes and data.scenes[number].words:
        spoken = {word.start for word in data.scenes[number].words}
        starts = np.cumsum([0] + [len(word) + 1 for word in words])
        chosen = [place for place in range(len(words)) if int(starts[place]) in spoken]
    else:
        chosen = sorted(sorted(range(len(words)), key=lambda place: -len(words[place]))[:at_most])
    return chosen[:at_most]


def draw_alignment(runs: Sequence[Towers], data: Data, path: Path, pictures: int = 4, words: int = PER_LINE) -> None:
    """For each picture and loss: the picture, then each word's map over the greyed pixels, ``PER_LINE`` in a row."""
    pictures = min(pictures, len(data.captions))
    plain: dict[Any, Any] = {
        "font.family": _families(data.captions[:pictures]),
        "text.parse_math": False,
        "text.usetex": False,
    }
    with matplotlib.rc_context(plain), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # _families has said it
        _draw_rows(runs, data, path, pictures, words)


def _draw_rows(runs: Sequence[Towers], data: Data, path: Path, pictures: int, words: int) -> None:
    chosen = [named_words(data, number, words) for number in range(pictures)]
    lines = [max(1, -(-len(places) // PER_LINE)) for places in chosen]  # of a picture, for each loss
    rows, columns = sum(lines) * len(runs), 1 + max(1, min(PER_LINE, max(map(len, chosen))))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(7.0, 1.32 * columns + 0.6), 1.27 * rows + 0.28 * pictures + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    row = 0
    for number, places in enumerate(chosen):
        for which, run in enumerate(runs):
            _label_row(axes[row, 0], data, number, run.config.loss, first=which == 0)
            maps = caption_maps(run, data, number)
            free = axes[row : row + lines[number], 1:].flat
            for axis, place in zip(free, [place for place in places if place < len(maps)]):
                _draw_map(axis, data.pixels[number], *maps[place])
                if data.scenes:
                    _draw_outline(axis, data.scenes[number], place, run.config.model.grid)
            row += lines[number]
    title = "Where each word looks: alignment weights, each map scaled by its own maximum"
    note = "\nwhite: the patches the word speaks of" if data.scenes else ""
    figure.suptitle(title + note, fontsize=TITLE, color=INK)
    scale = figure.colorbar(ScalarMappable(cmap=_heat_on_grey()), ax=axes, aspect=18 * rows, fraction=0.03, pad=0.01)
    scale.set_label("share of the maximum", fontsize=SMALL, color=INK)
    scale.ax.tick_params(labelsize=SMALL)
    _save(figure, path)


def _families(texts: Sequence[str]) -> list[str]:
    """The default family, then what other fonts of this machine it takes to draw the texts. What none has is said."""
    families = list(matplotlib.rcParams["font.family"])
    missing = {character for text in texts for character in text if unicodedata.category(character) not in UNDRAWN}
    missing -= _drawn_by(font_manager.findfont(font_manager.FontProperties()), missing)
    if not missing:
        return families
    found: dict[str, set[str]] = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.style == "normal" and not entry.name.startswith("Last Resort"):  # that one has a box for everything
            found.setdefault(entry.name, _drawn_by(entry.fname, missing))
    while best := max(found, key=lambda name: len(found[name] & missing), default=None):
        if not found[best] & missing:
            break
        families.append(best)
        missing -= found[best]
    if missing:
        _log.warning("warning: no font of this machine can draw %s: boxes in the figure", " ".join(sorted(missing)))
    return families


def _drawn_by(font: str, characters: set[str]) -> set[str]:
    """Those of the characters that a font file has a glyph for."""
    try:
        known = FT2Font(font).get_charmap()
    except (OSError, RuntimeError):  # gone since matplotlib listed it, or not readable by FreeType
        return set()
    return {character for character in characters if ord(character) in known}


def _label_row(axis: Any, data: Data, number: int, loss: str, first: bool) -> None:
    axis.imshow(data.pixels[number])
    colour = COLOURS.get(loss, INK)
    place = {"transform": axis.transAxes, "rotation": 90, "va": "center", "ha": "right"}
    axis.text(-0.08, 0.5, loss, color=colour, size=TITLE, **place)
    if first:
        text = data.captions[number]
        short = text if len(text) <= 110 else text[:107] + "..."
        axis.set_title(" ", fontsize=SMALL + 1, pad=14)  # room for the caption, which is wider than its column
        title = axis.annotate(short, (0, 1), (0, 16), "axes fraction", "offset points", size=SMALL + 1, color=INK)
        title.set_in_layout(False)


def _draw_map(axis: Any, pixels: npt.NDArray[np.uint8], word: str, weights: Floats) -> None:
    grey = pixels.mean(2) / 255
    side = pixels.shape[0]
    axis.imshow(0.35 + 0.5 * grey, cmap="gray", vmin=0, vmax=1)
    heat = weights / max(weights.max(), 1e-12)
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    axis.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=_opacity(heat), extent=extent)
    axis.set_title(word, fontsize=SMALL, color=INK, pad=2)


def _opacity(heat: Floats) -> Floats:
    return 0.15 + 0.7 * heat


def _heat_on_grey(grey: float = 0.6) -> ListedColormap:
    """The colours of the maps as they look over pixels of a middle grey."""
    heat = np.linspace(0, 1, 256)
    opacity = _opacity(heat)[:, None]
    return ListedColormap(list(opacity * matplotlib.colormaps[HEAT](heat)[:, :3] + (1 - opacity) * grey))


def _draw_outline(axis: Any, scene: Scene, place: int, grid: int) -> None:
    """The border of the patches that word number ``place`` of a scene's caption speaks of."""
    start = len(" ".join(scene.caption.split()[:place])) + (place > 0)
    word = next((word for word in scene.words if word.start == start), None)
    if word is None:
        return
    side = scene.image.shape[0]
    mask = scene.patch_masks(side // grid)[word.item].reshape(grid, grid)
    padded = np.pad(mask, 1)
    lines = []
    for y, x in zip(*np.nonzero(padded)):  # corners in units of patches, one to the right and below by the padding
        sides = {(0, -1): ((x, y), (x, y + 1)), (0, 1): ((x + 1, y), (x + 1, y + 1))}
        sides |= {(-1, 0): ((x, y), (x + 1, y)), (1, 0): ((x, y + 1), (x + 1, y + 1))}
        lines += [corners for (dy, dx), corners in sides.items() if not padded[y + dy, x + dx]]
    corners = (np.array(lines, float) - 1) * (scene.image.shape[0] / grid) - 0.5
    axis.add_collection(LineCollection(list(corners), colors="white", linewidths=1.2))


def draw_curves(runs: Sequence[Path], names: Sequence[str], path: Path) -> None:
    """``PANELS`` over the steps, from the CSV logs of one run or several."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.3 * len(PANELS), 2.9), layout="constrained")
    for run, name in zip(runs, names):
        rows = read_log(run / LOG)
        steps = np.array([int(row["step"]) for row in rows])
        for axis, column in zip(axes, PANELS):
            values = np.array([float(row[column] or "nan") for row in rows])
            if np.isnan(values).all():
                continue
            colour = COLOURS.get(name, INK)
            smooth = _smoothed(values) if column.endswith("loss") else values
            if column.endswith("loss"):
                axis.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axis.plot(steps, smooth, color=colour, linewidth=1.7, label=name)
    for axis, title in zip(axes, PANELS.values()):
        axis.set_title(title, fontsize=TITLE, color=INK)
        axis.set_xlabel("step", fontsize=SMALL + 1)
        axis.tick_params(labelsize=SMALL)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=SMALL + 1)
    axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _save(figure, path)


def _smoothed(values: Floats) -> Floats:
    """A centred mean over about a fortieth of the curve."""
    width = min(len(values), 2 * (len(values) // 80) + 1)
    padded = np.pad(values, width // 2, mode="edge")
    smooth: Floats = np.convolve(padded, np.ones(width) / width, mode="valid")
    return smooth


def _save(figure: Figure, path: Path) -> None:
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110, facecolor="white")
    finally:
        plt.close(figure)

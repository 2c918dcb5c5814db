"""Each seed, mean and spread, as a small SVG that depends on the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.report import plots as house
from benchmarks.study.page import GROUNDING, Found, measures
from sparc_kernels.train.report import ROWS

SHOWN = ("pointing", "pointing_size", "pointing_colour", "pointing_texture", "pointing_shape", "iou")
WITHOUT_TRUTH = ("image_to_text_r1", "text_to_image_r1")
COMPARED = (*(name for name, _, _ in GROUNDING), "image_to_text_r1")


def draw(found: Found, path: Path, shown: Sequence[str] = SHOWN) -> None:
    """A panel per measure, a row per loss: a dot for each seed, a bar of one standard deviation around the mean."""
    known = {name: (chance, words) for name, chance, words in measures(found, (*ROWS, *GROUNDING))}
    shown = [name for name in shown if name in known] or list(WITHOUT_TRUTH)
    losses = list(found.runs)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    size = (2.6 * columns + 2, lines * (0.9 + 0.22 * len(losses)))
    _, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True)
    for panel, name in zip(panels.flat, shown):
        chance, words = known[name]
        for place, loss in enumerate(losses):
            values = [100 * value for value in found.values(loss, name)]
            error = statistics.stdev(values) if len(values) > 1 else 0
            panel.errorbar(statistics.mean(values), place, xerr=error, fmt="|", color="black", capsize=3, markersize=9)
            panel.plot(values, [place] * len(values), "o", color=house.COLOURS["triton"], alpha=0.6, markersize=4)
        panel.axvline(100 * statistics.mean(found.values(losses[0], chance)), color="black", linewidth=0.7, ls=":")
        panel.set_title(words.strip().removeprefix("grounding, "), fontsize=8)
        panel.set_xlabel("%")
        panel.set_yticks(range(len(losses)), losses)
        panel.set_ylim(len(losses) - 0.5, -0.5)
    house.save(path)

"""``python -m benchmarks.study.maps``: what the maps of the study's runs on scenes get wrong; trains nothing.

The tables of docs/training.md ("Why words for shapes and extents gain nothing"), means over the seeds that have ended.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report.tables import table
from benchmarks.study.page import spread
from benchmarks.study.runs import LOSSES, STUDIED, Subject, finished
from sparc_kernels.functional import alignment_weights
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.data_scenes import KINDS, SHAPES, Scene, Word
from sparc_kernels.train.evaluate import encode, grounding
from sparc_kernels.train.trainer import Trainer

AS_IS, CENTRED = "as measured above", "minus the kind's mean"


@dataclass(frozen=True)
class Said:
    """A word of a held-out caption: ``token`` [D], and the picture's number."""

    number: int
    word: Word
    token: Tensor


@dataclass(frozen=True)
class Embedded:
    """The held-out scenes of a run: ``patches`` [N, P, D], and the words in the order of their captions."""

    scenes: list[Scene]
    patches: Tensor
    said: list[Said]
    patch_size: int

    def kind_means(self) -> dict[str, Tensor]:
        """The mean token [D] of the words of each kind."""
        kinds = {s.word.kind for s in self.said}
        return {kind: torch.stack([s.token for s in self.said if s.word.kind == kind]).mean(0) for kind in kinds}


def embedded(config: TrainConfig) -> Embedded:
    """From the last checkpoint of a run on scenes."""
    data = load_data(config)
    trainer = Trainer(config, data, resume=True, progress=False)
    patches, said = [], []
    for encoded in encode(trainer, data):
        patches.append(encoded.patches)
        for row in range(len(encoded.patches)):
            number = encoded.start + row
            for word in data.scenes[number].words:
                tokens = encoded.batch.tokens_of(row, word.start, word.end)
                said.append(Said(number, word, encoded.tokens[row, tokens].mean(0)))
    return Embedded(data.scenes, torch.cat(patches), said, config.model.patch_size)


def of_maps(found: Embedded, centred: bool) -> dict[str, float]:
    """Pointing and IoU, of words as they are or without what all words of their kind share."""
    means = found.kind_means()
    rows: dict[int, list[Tensor]] = defaultdict(list)
    for s in found.said:
        token = s.token - means[s.word.kind] if centred else s.token
        rows[s.number].append(alignment_weights(found.patches[s.number][None], token[None, None])[0, 0])
    maps = [torch.stack(rows[number]) for number in range(len(found.scenes))]
    return grounding(found.scenes, maps, found.patch_size)


def of_shapes(found: Embedded) -> Iterator[tuple[str, float, float, float, float]]:
    """(shape, share of the picture in its mask, pointing, chosen, correlation) of the words for shapes.

    - chosen: how often the word is on average more similar to the patches of its shape than to those of others.
    - correlation of two things in pictures without such a shape: how similar the word is to their mean patch, and how
      much of them shapes cover.
    """
    masks = [torch.from_numpy(scene.patch_masks(found.patch_size)) for scene in found.scenes]
    covered = np.array([scene.coverage.sum(0).mean() for scene in found.scenes])
    pictures = F.normalize(found.patches.mean(1), dim=1)
    for shape in SHAPES:
        areas, hits, chosen, tokens = [], [], [], []
        for s in (s for s in found.said if s.word.text == shape):
            similarity, mine = found.patches[s.number] @ s.token, masks[s.number]
            areas.append(mine[s.word.item].float().mean().item())
            hits.append(float(mine[s.word.item][similarity.argmax()]))
            means = torch.stack([similarity[mask].mean() for mask in mine])
            chosen.append(float(means.argmax() == s.word.item))
            tokens.append(s.token)
        similar = (pictures @ F.normalize(torch.stack(tokens).mean(0), dim=0)).numpy()
        without = np.array([all(item.shape != shape for item in scene.items) for scene in found.scenes])
        correlation = np.corrcoef(similar[without], covered[without])[0, 1]
        yield shape, _mean(areas), _mean(hits), _mean(chosen), float(correlation)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.maps", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where the study's runs lie (%(default)s)")
    parser.add_argument("--losses", nargs="+", metavar="NAME", choices=tuple(LOSSES), default=tuple(STUDIED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    chosen = parser.parse_args(arguments)
    subject = Subject("scenes", "scenes", chosen.steps)
    shapes, words = [], []
    for loss in chosen.losses:
        configs = [subject.config(loss, seed, chosen.out) for seed in range(chosen.seeds)]
        runs = [embedded(config) for config in configs if finished(config)]
        if not runs:
            continue
        shapes += _shape_rows(loss, runs)
        for name, centred in ((AS_IS, False), (CENTRED, True)):
            results = [of_maps(found, centred) for found in runs]
            measures = ("pointing", *(f"pointing_{kind}" for kind in KINDS), "iou")
            words.append([loss, name, *(spread([result[measure] for result in results]) for measure in measures)])
    print(table(["%", "word", "pointing", *(f"of {kind}" for kind in KINDS), "IoU"], words, 2), end="\n\n")
    print(table(["%", "shape", "mask", "pointing", "chosen", "correlation with area, of 100"], shapes, 2))


def _shape_rows(loss: str, runs: Sequence[Embedded]) -> list[list[str]]:
    of_runs = [list(of_shapes(found)) for found in runs]
    columns = [list(zip(*of_shape)) for of_shape in zip(*of_runs)]  # a shape: its name, areas, hits, ... of all runs
    return [[loss, shape[0][0], *(spread([float(x) for x in values]) for values in shape[1:])] for shape in columns]


if __name__ == "__main__":
    main()

"""How long a step of each loss takes beside one of CLIP's, in one process and in turn."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure.machine import OthersShare, environment
from benchmarks.study.runs import CLIP, Subject
from sparc_kernels.train.checkpoint import write_atomic
from sparc_kernels.train.data import batches, load_data
from sparc_kernels.train.trainer import Trainer

FILE = "step_times.json"
BATCHES = 4


@dataclass(frozen=True)
class Pace:
    """By loss: a step's time over that of CLIP's step of the same round, the median of ``rounds``; and the share of it
    that the loss takes. ``busy``: how much of the machine other processes used meanwhile."""

    over_clip: dict[str, float]
    loss_share: dict[str, float]
    rounds: int
    busy: float
    machine: dict[str, Any]

    def cells(self, loss: str) -> tuple[str, str]:
        """Of the table: the ratio, and the share in percent."""
        if loss not in self.over_clip:
            return "", ""
        return f"{self.over_clip[loss]:.2f}", f"{100 * self.loss_share[loss]:.0f}"

    def said(self) -> str:
        machine = f"{self.machine['device']}, torch {self.machine['torch']}"
        return (
            f"Time of a step over that of CLIP's beside it: medians of {self.rounds} rounds in which each loss made "
            f"one, on {machine}, {100 * self.busy:.0f} % of which other processes used."
        )


def measured(subject: Subject, out: Path, rounds: int) -> Pace:
    """Steps of fresh towers on the same batches of scenes, kept in ``out``; nothing else is written."""
    losses = dict.fromkeys((CLIP, *subject.losses))
    configs = {loss: subject.config(loss, 0, out) for loss in losses}
    data = load_data(configs[CLIP])
    pairs = list(islice(batches(data, configs[CLIP], 0, range(configs[CLIP].batch_size)), BATCHES))
    trainers = {loss: Trainer(config, data, progress=False) for loss, config in configs.items()}
    seconds: dict[str, list[float]] = {loss: [] for loss in losses}
    with OthersShare() as others:
        for number in range(-1, rounds):  # the first round warms up
            for loss, trainer in trainers.items():
                started = time.perf_counter()
                trainer.train_step(*pairs[number % len(pairs)])
                if number >= 0:
                    seconds[loss].append(time.perf_counter() - started)
    over_clip = {
        loss: statistics.median(own / clip for own, clip in zip(seconds[loss], seconds[CLIP])) for loss in losses
    }
    share = {loss: trainer.clock.loss_share() for loss, trainer in trainers.items()}
    pace = Pace(over_clip, share, rounds, others.share, environment(trainers[CLIP].device))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / FILE, json.dumps(vars(pace), indent=1))
    return pace


def kept(out: Path) -> Pace | None:
    """What ``measured`` left in ``out``."""
    path = out / FILE
    return Pace(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def missing(pace: Pace | None, losses: Sequence[str]) -> bool:
    """Whether there is a loss without a time."""
    return pace is None or not pace.over_clip.keys() >= set(losses)

"""The runs of the study, one after the other; those that are finished are kept."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measure.machine import environment
from sparc_kernels.train.checkpoint import CHECKPOINT, write_atomic
from sparc_kernels.train.config import LOSSES as TRAINED
from sparc_kernels.train.config import TrainConfig, differences
from sparc_kernels.train.data import Data, load_data
from sparc_kernels.train.evaluate import evaluate
from sparc_kernels.train.lock import locked
from sparc_kernels.train.signals import noted_signals
from sparc_kernels.train.trainer import Trainer

RESULTS = "study.json"
CLIP = "clip"
# Threshold and local weight of SPARC beside CLIP's loss. Without a threshold it is 1 / patches, as in the paper.
STUDIED: dict[str, dict[str, Any]] = {
    CLIP: {"loss": "clip"},
    **{
        f"sparc, sigma {'1/P' if sigma is None else sigma}, local {weight}": {
            "similarity_threshold": sigma,
            "local_weight": float(weight),
        }
        for sigma in (None, 0.5)
        for weight in (1, 5)
    },
}
# What `make compare-losses` adds to them: every other loss of the trainer.
LOSSES = STUDIED | {name: {"loss": name} for name in TRAINED if name not in (CLIP, "sparc")}
VERSION = 2  # of a record: an older one lacks measures, and is made again from its run's checkpoint


@dataclass(frozen=True)
class Subject:
    """Data that the losses are compared on: ``data`` as the trainer takes it, with so many ``steps``."""

    name: str
    data: str
    steps: int
    losses: tuple[str, ...] = tuple(STUDIED)
    options: tuple[tuple[str, Any], ...] = ()

    def config(self, loss: str, seed: int, out: Path) -> TrainConfig:
        """Of one run, in its folder under ``out``."""
        warm_up = min(TrainConfig.warmup_steps, self.steps // 4)
        return TrainConfig(
            out=str(out / self.name / _folder(loss) / str(seed)),
            data=self.data,
            seed=seed,
            steps=self.steps,
            warmup_steps=warm_up,
            threads=1,  # so small a model gains nothing from a second one
            **{**LOSSES[loss], **dict(self.options)},
        )


Results = dict[str, float]


def _folder(loss: str) -> str:
    return loss.replace(",", "").replace("/", "_").replace(" ", "-")


def train(subjects: Sequence[Subject], seeds: Sequence[int], out: Path) -> int:
    """Every run that is not finished, seed by seed; 0, or the number of the signal that ended them early."""
    with locked([out]):
        for seed in seeds:
            for subject in subjects:
                data: Data | None = None
                for loss in subject.losses:
                    config = subject.config(loss, seed, out)
                    if finished(config) is None:
                        data = data or load_data(config)
                        if stopped := _run(config, data):
                            print(f"{signal.Signals(stopped).name}: the same command continues", file=sys.stderr)
                            return stopped
    return 0


def _run(config: TrainConfig, data: Data) -> int:
    trainer = Trainer(config, data, resume=(Path(config.out) / CHECKPOINT).exists())
    with noted_signals() as signals:
        stopped = trainer.fit(signals)
    if not stopped:
        record = {
            "version": VERSION,
            "config": config.to_dict(),
            "results": evaluate(trainer, data),
            "parameters": sum(parameter.numel() for parameter in trainer.parameters),
            "train_pairs": len(data.train_captions) if config.data != "scenes" else config.steps * config.batch_size,
            "heldout_pairs": len(data.captions),
            "seconds": trainer.seconds,
            "machine": environment(trainer.device),
        }
        write_atomic(Path(config.out) / RESULTS, json.dumps(record, indent=1))
    return stopped


def finished(config: TrainConfig) -> dict[str, Any] | None:
    """What a run left, or None if it has not ended. One of another configuration is an error."""
    path = Path(config.out) / RESULTS
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if changed := differences(replace(TrainConfig.from_dict(record["config"]), data=config.data), config):
        raise ValueError(f"{str(path)!r} is of another configuration: {'; '.join(changed)}; give another --out")
    return record if record.get("version") == VERSION else None


def collect(subject: Subject, seeds: Sequence[int], out: Path) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """(loss, seed, record) of each run of a subject that has ended."""
    for loss in subject.losses:
        for seed in seeds:
            if record := finished(subject.config(loss, seed, out)):
                yield loss, seed, record

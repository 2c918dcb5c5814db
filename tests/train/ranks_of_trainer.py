"""What each process of ``torchrun`` checks of the trainer; test_processes.py runs it.

torchrun --nproc-per-node 3 -m tests.train.ranks_of_trainer FOLDER
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from sparc_kernels.train.cli import run
from sparc_kernels.train.config import ALL_TOKENS_MEET, IN_A_RING, LOSSES, TrainConfig
from sparc_kernels.train.data import Data, load_data
from sparc_kernels.train.processes import ALONE, Processes, joined
from sparc_kernels.train.trainer import Trainer
from tests.train.conftest import float64
from tests.train.test_trainer import curve

STEPS, PAIRS = 6, 7  # three processes share them unevenly
CLOSE = 1e-11
Curve = list[dict[str, str]]


def same(found: Curve, expected: Curve) -> None:
    assert len(found) == len(expected) == STEPS, (len(found), len(expected))
    for row, wanted in zip(found, expected):
        for name, value in wanted.items():
            near = CLOSE * (100 if name == "grad_norm" else 1)
            close = row[name] == value or math.isclose(float(row[name]), float(value), rel_tol=near, abs_tol=near)
            assert close, f"step {row['step']}: {name} is {row[name]}, of one process {value}"


@functools.cache
def drawn() -> Data:
    return load_data(TrainConfig(eval_pairs=4))


class Runs:
    """Runs of one loss: alone in the first process, or together."""

    def __init__(self, folder: Path, loss: str, processes: Processes) -> None:
        self.folder, self.processes = folder, processes
        self.config = TrainConfig(
            loss=loss, steps=STEPS, batch_size=PAIRS, warmup_steps=2, eval_pairs=4, checkpoint_every=4, device="cpu"
        )

    def train(
        self,
        name: str,
        processes: Processes,
        chunks: int = 1,
        stop_after: int = 0,
        resume: bool = False,
        exchange: str = "gather",
    ) -> None:
        """``stop_after``: in that step the last process, and no other, gets a signal."""
        config = replace(self.config, out=str(self.folder / name), accumulate=chunks, exchange=exchange)
        trainer = Trainer(config, drawn(), resume, progress=False, processes=processes)
        noted: list[int] = []

        def strike(*_: object) -> None:
            if trainer.step == stop_after - 1 and processes.rank == processes.size - 1:
                noted.append(signal.SIGTERM)

        trainer.model.register_forward_pre_hook(strike)
        stopped = trainer.fit(noted)
        assert stopped == (signal.SIGTERM if stop_after else 0)
        assert trainer.step == (stop_after or STEPS)

    def alone(self, name: str, stop_after: int = 0, resume: bool = False) -> Curve:
        if self.processes.first:
            self.train(name, ALONE, stop_after=stop_after, resume=resume)
        dist.barrier()
        return curve(self.folder / name)

    def together(
        self, name: str, sharded: bool = False, chunks: int = 1, stop_after: int = 0, resume: bool = False
    ) -> Curve:
        self.train(name, replace(self.processes, sharded=sharded), chunks, stop_after, resume)
        dist.barrier()
        return curve(self.folder / name)


@contextmanager
def attention_from_the_start() -> Iterator[None]:
    """Towers made in the block attend at once. With attention from zero, equal words of a caption are equal tokens at
    first, and of those that tie in a maximum rounding chooses the one whose attention learns from it."""
    with patch.object(nn.init, "zeros_", lambda weight: nn.init.normal_(weight, std=0.1)):
        yield


def check(folder: Path, loss: str, processes: Processes) -> None:
    """One curve, however many processes, in either wrapper, in chunks or not; each loss in some of these ways."""
    runs = Runs(folder, loss, processes)
    expected = runs.alone("alone")
    if loss not in ("clip", "pacl"):
        same(runs.together("fsdp-chunks", sharded=True, chunks=2), expected)
    if loss not in ("siglip", "gloria"):
        ddp = runs.together("ddp")
        same(ddp, expected)
    if loss in IN_A_RING:
        runs.train("ring", processes, chunks=2, exchange="ring")
        dist.barrier()
        same(curve(folder / "ring"), expected)
    if loss == "sparc":
        same(runs.together("ddp-chunks", chunks=2), expected)
        check_resumed(runs, expected, ddp)
    print(f"rank {processes.rank}: {loss} follows one curve", flush=True)


def check_resumed(runs: Runs, expected: Curve, ddp: Curve) -> None:
    """A signal in one process stops all after the same step. The rest follows the curve: bit for bit in as many
    processes, up to rounding in more or fewer."""
    runs.together("again", stop_after=3)
    assert runs.together("again", resume=True) == ddp
    runs.alone("more", stop_after=3)
    same(runs.together("more", sharded=True, resume=True), expected)
    runs.together("fewer", sharded=True, stop_after=3)
    same(runs.alone("fewer", resume=True), expected)


def check_end(folder: Path, processes: Processes) -> None:
    """What the command line does, up to the results of parameters that lie in pieces."""
    options = {"steps": 2, "batch_size": PAIRS, "eval_pairs": 4, "quiet": True, "out": str(folder), "device": "cpu"}
    assert run(options, replace(processes, sharded=True)) == 0
    assert not dist.is_initialized(), "the first process evaluates without keeping the others"
    if processes.first:
        assert 0 <= json.loads((folder / "results.json").read_text())["pointing"] <= 1
        print("results written", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with float64(), joined() as all_ranks:
        for each in LOSSES:
            with attention_from_the_start() if each in ALL_TOKENS_MEET else nullcontext():
                check(Path(sys.argv[1], each), each, all_ranks)
        check_end(Path(sys.argv[1], "end"), all_ranks)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a process that ends in peace, with PyTorch alone as well

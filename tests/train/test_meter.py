"""What a run says of its speed is what a clock says."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sparc_kernels.train import checkpoint, meter
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.meter import BEGIN, Pace, StepClock
from sparc_kernels.train.record import LOG, TIMES
from sparc_kernels.train.trainer import Trainer
from tests.train.test_trainer import curve, train

SLOW = 0.05


class Sleepy(torch.autograd.Function):
    """Takes ``SLOW`` seconds in either direction."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        time.sleep(SLOW)
        return x.clone()

    @staticmethod
    def backward(ctx: object, *slopes: Tensor) -> Tensor:
        time.sleep(SLOW)
        return slopes[0]


def rows(run: str | Path) -> list[dict[str, float]]:
    return [{name: float(row[name]) for name in ("step", *TIMES)} for row in checkpoint.read_log(Path(run) / LOG)]


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("slow", ["towers", "loss"])
def test_the_share_of_the_loss(chunks: int, slow: str, small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through the loss count, neither way through the towers does, in chunks or not; and data do not."""
    config = replace(small, steps=2, log_every=2, accumulate=chunks)
    trainer = Trainer(config, load_data(config), progress=False)
    module = trainer.loss if slow == "loss" else trainer.model.image_tower.adapter

    if slow == "loss":
        module.register_forward_pre_hook(lambda _, features: (Sleepy.apply(features[0]), *features[1:]))
    else:
        module.register_forward_hook(lambda *given: Sleepy.apply(given[2]))
    trainer.fit()
    (row,) = rows(config.out)
    passes = 2 if slow == "loss" else 2 * chunks + (chunks if chunks > 1 else 0)
    slept = 2 * passes * SLOW / row["seconds"]
    assert slept > 0.1, "else the machine is too slow for this test"
    if slow == "loss":
        assert slept - 0.01 < row["loss_share"] < 1
    else:
        assert 0 < row["loss_share"] < 1 - slept


def test_watching_changes_no_bit(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small)
    with monkeypatch.context() as patch:
        patch.setattr(StepClock, "watch", lambda self, *features: features)
        patch.setattr(StepClock, "loss_share", lambda self: 0.0)
        patch.setattr(StepClock, "end", lambda self: None)
        train(replace(small, out=small.out + "-unwatched"))
    assert curve(small.out) == curve(small.out + "-unwatched")


def test_rows_of_the_log(small: TrainConfig) -> None:
    """Every third step and the last; the rows are those of a log of every step, and a resumed run continues them."""
    train(small)
    seldom = replace(small, out=small.out + "-seldom", log_every=3)
    trainer = Trainer(seldom, load_data(seldom), progress=False)
    stopped: list[int] = []
    trainer.model.register_forward_pre_hook(lambda *_: stopped.append(15) if trainer.step == 4 else None)
    assert trainer.fit(stopped) == 15
    assert [row["step"] for row in rows(seldom.out)] == [3]
    train(seldom, resume=True)
    assert curve(seldom.out) == [row for row in curve(small.out) if row["step"] in ("3", "6", "8")]
    with pytest.raises(ValueError, match="log_every must be at least 1, got 0"):
        replace(small, log_every=0)


def test_times_are_those_of_the_clock(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wall time counts waiting for data, seconds of steps do not. Both go on in a resumed run and reach TensorBoard."""
    config = replace(small, steps=6, log_every=3)
    scalars: dict[str, list[float]] = {}
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda _, tag, x, step: scalars.setdefault(tag, []).append(x))
    data = load_data(config)
    fetch = type(data.train).__getitem__

    def slow(self: object, position: int) -> object:
        time.sleep(SLOW / 4)
        return fetch(data.train, position)

    monkeypatch.setattr(type(data.train), "__getitem__", slow)
    trainer = Trainer(config, data, progress=False)
    stopped: list[int] = []
    trainer.model.register_forward_pre_hook(lambda *_: stopped.append(15) if trainer.step == 3 else None)
    began = time.perf_counter()
    trainer.fit(stopped)
    took = time.perf_counter() - began
    resumed = Trainer(config, data, resume=True, progress=False)
    began = time.perf_counter()
    resumed.fit()
    took += time.perf_counter() - began
    first, last = rows(config.out)
    assert last["seconds"] < last["wall_seconds"] - 6 * SLOW
    assert first["wall_seconds"] < last["wall_seconds"] <= took + 1e-3
    assert first["pairs_per_second"] == pytest.approx(12 / first["wall_seconds"], rel=0.1)
    assert scalars.keys() >= set(TIMES)
    assert scalars["loss_share"] == [first["loss_share"], last["loss_share"]]


def test_old_runs_go_on(small: TrainConfig) -> None:
    """Logs and checkpoints from before there were these columns."""
    train(small)
    state = checkpoint.load(Path(small.out))
    del state["wall_seconds"], state["config"]["log_every"]
    checkpoint.save(Path(small.out), state)
    log = Path(small.out) / LOG
    log.write_text("\n".join(line.rsplit(",", 3)[0] for line in log.read_text().splitlines()) + "\n")
    trainer = train(small, resume=True)
    assert trainer.wall >= state["seconds"]
    assert [row["wall_seconds"] for row in checkpoint.read_log(log)] == [""] * 8


class Stream:
    """A GPU that works through what it is given only when somebody waits; times in milliseconds, as CUDA's."""

    def __init__(self) -> None:
        self.given, self.done, self.waits = 0.0, 0.0, 0

    def event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.at = stream, float("inf")

    def record(self) -> None:
        self.at = self.stream.given

    def synchronize(self) -> None:
        if self.stream.done < self.at:
            self.stream.waits, self.stream.done = self.stream.waits + 1, self.stream.given

    def elapsed_time(self, other: Event) -> float:
        assert max(self.at, other.at) <= self.stream.done, "CUDA: not ready"
        return other.at - self.at


def test_events_are_waited_for_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for CUDA: three steps of 10 ms with a loss of 4, whose value is read in the middle."""
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", stream.event)
    clock = StepClock(torch.device("cuda"))
    for _ in range(3):
        clock.mark(BEGIN)
        stream.given += 2
        patches, tokens = (torch.ones(2, requires_grad=True) for _ in range(2))
        watched = clock.watch(patches * 1, tokens * 1)
        stream.given += 3
        loss = sum(x.sum() for x in watched)
        loss.register_hook(lambda _: setattr(stream, "given", stream.given + 1))
        loss.backward()
        stream.given += 3
        stream.done = stream.given  # loss.item()
        stream.given += 1  # the optimizer
        clock.end()
    assert stream.waits == 0
    assert clock.loss_share() == pytest.approx(0.4)
    assert stream.waits == 1
    assert math.isnan(clock.loss_share()), "no step, no share"


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    pace = Pace(8, wall=40.0)
    for _ in range(3):
        pace.step()
    now[0] += 2
    assert (pace.wall, pace.pairs_per_second()) == (42, 12)
    pace.step()
    now[0] += 4
    assert (pace.wall, pace.pairs_per_second()) == (46, 2)

"""How fast a run is, and what share of a step its loss takes: measured in every step, by four marks.

A step lasts from its batch to the end of the optimizer's work, its loss from the moment when it has the features of the
towers to the moment when it has handed back their gradients. On the CPU a mark is the time; on CUDA it is an event in
the stream, which no kernel and no host waits for. The host waits once for each row of the log, for the end of its step.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

BEGIN, FEATURES, GRADIENTS, END = "begin", "features", "gradients", "end"


class StepClock:
    """The marks of one step after the other, added up until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._marks: dict[str, Any] = {}
        self._ended: dict[str, Any] = {}  # of the last whole step, not added yet
        self._step = self._loss = 0.0

    def mark(self, what: str) -> None:
        if self.cuda:
            self._marks[what] = torch.cuda.Event(enable_timing=True)
            self._marks[what].record()
        else:
            self._marks[what] = time.perf_counter()

    def watch(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The features as they are, marked on their way into the loss, and their gradients on the way out."""
        watched: tuple[Tensor, Tensor] = _Watched.apply(self, patches, tokens)
        return watched

    def end(self) -> None:
        """The end of a step. The one before is added: on CUDA the host has waited for it in the meantime."""
        self.mark(END)
        self._add()
        self._ended, self._marks = self._marks, {}

    def loss_share(self) -> float:
        """The share of the loss in the steps since the last call; nan where there were none."""
        self._add()
        share = self._loss / self._step if self._step else float("nan")
        self._step = self._loss = 0.0
        return share

    def _add(self) -> None:
        marks, self._ended = self._ended, {}
        if not marks:
            return
        if self.cuda:
            marks[END].synchronize()
        self._step += self._between(marks[BEGIN], marks[END])
        self._loss += self._between(marks[FEATURES], marks[GRADIENTS])

    def _between(self, first: Any, last: Any) -> float:
        """Seconds."""
        seconds: float = first.elapsed_time(last) / 1e3 if self.cuda else last - first
        return seconds


class _Watched(torch.autograd.Function):
    """The identity. One node for both features, so that its backward begins when the loss's has ended, not before."""

    @staticmethod
    def forward(ctx: Any, clock: StepClock, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.clock = clock
        clock.mark(FEATURES)
        return patches, tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.clock.mark(GRADIENTS)
        return None, *gradients


class Pace:
    """Wall time of training, data and checkpoints included, and the pairs per second of it. ``wall``: what there was
    before, of a run that goes on."""

    def __init__(self, pairs_per_step: int, wall: float = 0.0) -> None:
        self.pairs_per_step = pairs_per_step
        self._began = time.perf_counter() - wall
        self._last, self._steps = self._began + wall, 0

    @property
    def wall(self) -> float:
        return time.perf_counter() - self._began

    def step(self) -> None:
        self._steps += 1

    def pairs_per_second(self) -> float:
        """Of the steps since the last call."""
        now = time.perf_counter()
        pairs, self._steps = self._steps * self.pairs_per_step, 0
        seconds, self._last = now - self._last, now
        return pairs / seconds

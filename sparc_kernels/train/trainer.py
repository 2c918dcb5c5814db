"""The training loop from top to bottom: set up or resume; forward, backward, step, log, checkpoint, again.

The data are beside it in ``data``, the towers in ``model``, forward and backward in ``step``, what measures them in
``meter``, how a file is written whole in ``checkpoint``, and what several processes do together in ``processes``.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from sparc_kernels.modules import SparcLoss
from sparc_kernels.train import checkpoint
from sparc_kernels.train.config import ALL_TOKENS_MEET, TrainConfig, differences
from sparc_kernels.train.data import Data, batches
from sparc_kernels.train.losses import ScaledLoss, build_loss, whole
from sparc_kernels.train.meter import BEGIN, Pace, StepClock
from sparc_kernels.train.model import DualEncoder, tower_autocast
from sparc_kernels.train.optimizer import lr_factor, make_optimizer
from sparc_kernels.train.processes import ALONE, Processes, pick_device
from sparc_kernels.train.record import OF_STEP, Record
from sparc_kernels.train.step import Batch, TowersAndLoss, backward, settle
from sparc_kernels.train.tokenizer import CaptionTokenizer

STATEFUL = ("model", "loss", "optimizer", "schedule")


def set_up(config: TrainConfig, processes: Processes) -> torch.device:
    """Seeds, threads and deterministic algorithms; gives the device."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device, processes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    seed_all(config.seed)
    return device


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


class Trainer:
    """One run in the folder ``config.out``: set up here (``resume``: at its last checkpoint), trained by ``fit``.

    Of several ``processes`` each makes one, with the same arguments; they train together, and the first one writes.
    """

    def __init__(
        self, config: TrainConfig, data: Data, resume: bool = False, progress: bool = True, processes: Processes = ALONE
    ) -> None:
        self.config, self.data, self.progress, self.processes = config, data, progress, processes
        self.run = Path(config.out)
        config.check_share(processes.size)
        self.device = set_up(config, processes)
        self.step, self.seconds, self.wall, self.resumed = 0, 0.0, 0.0, resume
        saved = checkpoint.load(self.run) if resume else None

        # The tokenizer: learned from the captions, or the run's own.
        if saved is None:
            sizes = config.model.vocab_size, config.model.max_tokens
            text = processes.from_first(lambda: CaptionTokenizer.train(data.train_captions, *sizes).to_json())
        else:
            if changed := differences(TrainConfig.from_dict(saved["config"]), config):
                raise ValueError(f"cannot resume {str(self.run)!r} with another configuration: {'; '.join(changed)}")
            if saved["data"] != data.fingerprint:
                raise ValueError(f"cannot resume {str(self.run)!r}: the data in {config.data!r} have changed")
            if saved["data_position"] != saved["step"] * config.batch_size:
                raise ValueError(f"checkpoint of {str(self.run)!r}: step and data position contradict each other")
            text = saved["tokenizer"]
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.wall = saved.get("wall_seconds", self.seconds)
        self.tokenizer = CaptionTokenizer.from_json(text, config.model.max_tokens)
        processes.check_same(f"the data in {config.data!r}", data.fingerprint)
        processes.check_same(f"the step of the checkpoint in {str(self.run)!r}", self.step)

        # Towers and loss, the same in all processes before FSDP2 leaves each a piece of them.
        self.model = DualEncoder(config.model, self.tokenizer.vocab_size).to(self.device)
        self.loss: SparcLoss | ScaledLoss = build_loss(config, "world" if processes.joined else None).to(self.device)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.loss.load_state_dict({name: x.reshape(1) for name, x in saved["loss"].items()})  # once they were []
        layers = [module for module in self.model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
        self.clock = StepClock(self.device)
        self.towers_and_loss = TowersAndLoss(self.model, self.loss, self.autocast, self.clock)
        self.wrapped = processes.wrapped(self.towers_and_loss, self.device, layers)
        settle(self.wrapped, config.model.image_size, self.device)

        # Optimizer, schedule, and all else that the next step depends on, as it was.
        self.optimizer = make_optimizer([self.model, self.loss], config)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = LambdaLR(self.optimizer, lambda step: lr_factor(step, config))
        if saved is not None:
            self.optimizer.load_state_dict(checkpoint.optimizer_state(saved["optimizer"], self.parameters))
            self.schedule.load_state_dict(saved["schedule"])
        states = [] if saved is None else [saved["rng"], *saved.get("rng_of_others", [])]
        if processes.rank < len(states):
            checkpoint.set_rng_state(states[processes.rank], self.device)
        elif not processes.first:  # random numbers of its own
            seed_all(int(np.random.SeedSequence((config.seed, processes.rank, self.step)).generate_state(1)[0]))

    def fit(self, stop: Sequence[int] = ()) -> int:
        """Train to the last step; checkpoints stand before the first, at every interval and at the end.

        Once ``stop`` holds something in any of the processes (``noted_signals``), training ends in all of them after
        the step they are in, with a checkpoint. Returns what was held, or 0.
        """
        config = self.config
        record = self._record() if self.processes.first else None
        pace = Pace(config.batch_size, self.wall)
        if self.step == 0:
            self.save()
        self.model.train()
        stopping = 0
        with closing(record) if record else nullcontext():
            for pixels, captions in batches(self.data, config, self.step, self.processes.share(config.batch_size)):
                started = time.perf_counter()
                row = self.train_step(pixels, captions)
                self.step += 1
                self.seconds += time.perf_counter() - started
                pace.step()

                # Log, and at times a checkpoint that counts on the rows so far.
                if record:
                    record.show(row)
                    if self.step % config.log_every == 0 or self.step == config.steps:
                        record.write({"step": self.step, **row, **self._times(pace)})
                self.wall = pace.wall
                stopping = self._asked_to(stop)  # once: what comes later stops the next step
                if self.step % config.checkpoint_every == 0 or self.step == config.steps or stopping:
                    if record:
                        record.sync()
                    self.save()
                if stopping:
                    break
        return stopping or self._asked_to(stop)

    def train_step(self, pixels: Tensor, captions: list[str]) -> dict[str, Any]:
        """One step on the pairs of this process; the row of the log."""
        config = self.config
        self.clock.mark(BEGIN)
        tokens = self.tokenizer(captions)
        if config.loss in ALL_TOKENS_MEET:
            tokens = tokens.padded(self.processes.largest(tokens.ids.shape[1]))
        batch = Batch(*(x.to(self.device, non_blocking=True) for x in (pixels, tokens.ids, tokens.mask)))

        # Forward and backward: the towers perhaps in bfloat16, the loss after them.
        self.optimizer.zero_grad(set_to_none=True)
        loss, *parts = backward(self.wrapped, batch, config.accumulate)
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)))
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {self.step + 1}: loss {value}, gradient norm {norm}; a lower --lr may help. "
                f"The last checkpoint stands in {str(self.run)!r}"
            )

        # Step.
        scale, rate = self.loss.logit_scale.item(), self.schedule.get_last_lr()[0]
        learned = getattr(self.loss, "logit_bias", None)
        bias = "" if learned is None else whole(learned).item()
        self.optimizer.step()
        self.schedule.step()
        self.loss.clamp_logit_scale()  # under FSDP2 the forward pass clamps a copy
        self.clock.end()
        shares: list[Any] = [part.item() for part in parts] or [value, ""]
        return dict(zip(OF_STEP, (value, *shares, scale, bias, rate, norm)))

    def _times(self, pace: Pace) -> dict[str, float]:
        """``record.TIMES``: seconds so far in steps and in all, then of the steps since the last row."""
        share, pairs = self.clock.loss_share(), pace.pairs_per_second()
        figures = {"wall_seconds": round(pace.wall, 3), "pairs_per_second": round(pairs, 2)}
        return {"seconds": round(self.seconds, 3), **figures, "loss_share": round(share, 4)}

    def _record(self) -> Record:
        """The files of the run, begun or continued; and a line that says so."""
        config = self.config
        self.run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomic(self.run / "config.json", json.dumps(config.to_dict(), indent=2))
        size = sum(parameter.numel() for parameter in self.model.parameters())
        start = f"resumed after step {self.step} of" if self.resumed else "for"
        kind = "FSDP2" if self.processes.sharded else "DDP"
        processes = f" in {self.processes.size} processes ({kind})" if self.processes.joined else ""
        tqdm.write(
            f"{config.loss}: preset {config.preset}, {size / 1e6:.2f} M parameters, vocabulary "
            f"{self.tokenizer.vocab_size}, {start} {config.steps} steps of {config.batch_size} pairs on "
            f"{self.device}{processes}"
        )
        return Record(self.run, self.step, config.steps, config.loss, self.progress)

    def _asked_to(self, stop: Sequence[int]) -> int:
        return self.processes.largest(stop[0] if stop else 0)

    def save(self) -> None:
        """A checkpoint from which the next step is the one that would have followed, in any number of processes."""
        generators = self.processes.gathered(checkpoint.rng_state(self.device))
        stateful = {}
        if self.processes.first or self.processes.sharded:
            stateful = {name: getattr(self, name).state_dict() for name in STATEFUL}
        if self.processes.sharded:
            stateful = checkpoint.whole_state(stateful)
        if not self.processes.first:
            return
        state = {
            **stateful,
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer.to_json(),
            "data": self.data.fingerprint,
            "step": self.step,
            "data_position": self.step * self.config.batch_size,
            "seconds": self.seconds,
            "wall_seconds": self.wall,
            "rng": generators[0],
            "rng_of_others": generators[1:],
        }
        checkpoint.save(self.run, state)

    def put_together(self) -> None:
        """After training: ``model`` whole in the first process, where FSDP2 has left it in pieces. All call it."""
        if self.processes.sharded:
            state = checkpoint.whole_state(self.model.state_dict())
            if self.processes.first:
                self.model = DualEncoder(self.config.model, self.tokenizer.vocab_size).to(self.device)
                self.model.load_state_dict(state)

    def autocast(self) -> torch.autocast:
        return tower_autocast(self.config, self.device)

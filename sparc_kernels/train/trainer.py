"""The training loop from top to bottom: set up or resume; forward, backward, step, log, checkpoint, again.

The data are beside it in ``data``, the towers in ``model``, how a file is written whole in ``checkpoint``.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from sparc_kernels.modules import SparcLoss
from sparc_kernels.train import checkpoint
from sparc_kernels.train.board import Board
from sparc_kernels.train.config import TrainConfig, differences
from sparc_kernels.train.data import Data, batches
from sparc_kernels.train.model import DualEncoder, GlobalLoss, build_loss
from sparc_kernels.train.tokenizer import CaptionTokenizer

LOG = "log.csv"
STATEFUL = ("model", "loss", "optimizer", "schedule")
COLUMNS = ("step", "loss", "global_loss", "local_loss", "logit_scale", "logit_bias", "lr", "grad_norm", "seconds")


def lr_factor(step: int, config: TrainConfig) -> float:
    """Share of the peak rate at a step counted from 0: linear warm-up to 1, half a cosine to ``min_lr``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.min_lr / config.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_up(config: TrainConfig) -> torch.device:
    """Seeds, threads and deterministic algorithms; gives the device."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002
    torch.manual_seed(config.seed)
    return device


class Trainer:
    """One run in the folder ``config.out``: set up here (``resume``: at its last checkpoint), trained by ``fit``."""

    def __init__(self, config: TrainConfig, data: Data, resume: bool = False, progress: bool = True) -> None:
        self.config, self.data, self.progress = config, data, progress
        self.run = Path(config.out)
        self.device = set_up(config)
        self.step, self.seconds, self.resumed = 0, 0.0, resume
        saved = checkpoint.load(self.run) if resume else None

        # The tokenizer: learned from the captions, or the run's own.
        if saved is None:
            sizes = config.model.vocab_size, config.model.max_tokens
            self.tokenizer = CaptionTokenizer.train(data.train_captions, *sizes)
        else:
            if changed := differences(TrainConfig.from_dict(saved["config"]), config):
                raise ValueError(f"cannot resume {str(self.run)!r} with another configuration: {'; '.join(changed)}")
            if saved["data"] != data.fingerprint:
                raise ValueError(f"cannot resume {str(self.run)!r}: the data in {config.data!r} have changed")
            self.tokenizer = CaptionTokenizer.from_json(saved["tokenizer"], config.model.max_tokens)

        # Towers, loss, optimizer, schedule.
        self.model = DualEncoder(config.model, self.tokenizer.vocab_size).to(self.device)
        self.loss: SparcLoss | GlobalLoss = build_loss(config).to(self.device)
        self.optimizer = make_optimizer([self.model, self.loss], config)
        self.schedule = LambdaLR(self.optimizer, lambda step: lr_factor(step, config))

        # All that the next step depends on, as it was.
        if saved is not None:
            for name in STATEFUL:
                getattr(self, name).load_state_dict(saved[name])
            self.step, self.seconds = saved["step"], saved["seconds"]
            if saved["data_position"] != self.step * config.batch_size:
                raise ValueError(f"checkpoint of {str(self.run)!r}: step and data position contradict each other")
            checkpoint.set_rng_state(saved["rng"])

    def fit(self, stop: Sequence[int] = ()) -> None:
        """Train to the last step; checkpoints stand before the first, at every interval and at the end.

        Once ``stop`` holds something (``noted_signals``), training ends after the step, with a checkpoint.
        """
        config = self.config
        self.run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomic(self.run / "config.json", json.dumps(config.to_dict(), indent=2))
        log = checkpoint.CsvLog(self.run / LOG, COLUMNS, self.step)
        board = Board(self.run / "tensorboard", self.step + 1)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.step == 0:
            self.save()
        size = sum(parameter.numel() for parameter in self.model.parameters())
        start = f"resumed after step {self.step} of" if self.resumed else "for"
        tqdm.write(
            f"{config.loss}: preset {config.preset}, {size / 1e6:.2f} M parameters, vocabulary "
            f"{self.tokenizer.vocab_size}, {start} {config.steps} steps of {config.batch_size} pairs on {self.device}"
        )
        bar = tqdm(total=config.steps, initial=self.step, desc=config.loss, unit="step", disable=not self.progress)
        self.model.train()
        with ExitStack() as stack:  # each is closed, whichever of them fails
            for each in (log, board, bar):
                stack.callback(each.close)
            for pixels, captions in batches(self.data, config, self.step):
                started = time.perf_counter()

                # Forward: the towers perhaps in bfloat16, the loss after them.
                tokens = self.tokenizer(captions)
                pixels, mask = pixels.to(self.device, non_blocking=True), tokens.mask.to(self.device)
                with self.autocast():
                    patch_embeds, token_embeds = self.model(pixels, tokens.ids.to(self.device), mask)
                result = self.loss(patch_embeds, token_embeds, mask)
                loss, *parts = [result] if isinstance(result, Tensor) else result

                # Backward.
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm))
                value = loss.item()
                if not (math.isfinite(value) and math.isfinite(norm)):
                    raise FloatingPointError(
                        f"step {self.step + 1}: loss {value}, gradient norm {norm}; a lower --lr may help. "
                        f"The last checkpoint stands in {str(self.run)!r}"
                    )

                # Step.
                scale, rate = self.loss.logit_scale.item(), self.schedule.get_last_lr()[0]
                learned = getattr(self.loss, "logit_bias", None)
                bias = "" if learned is None else learned.item()
                self.optimizer.step()
                self.schedule.step()
                self.step += 1
                self.seconds += time.perf_counter() - started

                # Log, and at times a checkpoint that counts on the rows so far.
                shares = [part.item() for part in parts] or [value, ""]
                row = dict(zip(COLUMNS, (self.step, value, *shares, scale, bias, rate, norm, round(self.seconds, 3))))
                log.write(row)
                board.write({name: row[name] for name in COLUMNS[1:-1] if row[name] != ""}, self.step)
                bar.update()
                bar.set_postfix(loss=f"{value:.3f}", lr=f"{rate:.1e}", refresh=False)
                stopping = bool(stop)  # asked once: what comes later stops the next step
                if self.step % config.checkpoint_every == 0 or self.step == config.steps or stopping:
                    log.sync()
                    self.save()
                if stopping:
                    break

    def save(self) -> None:
        """A checkpoint from which the next step is the one that would have followed."""
        state = {
            **{name: getattr(self, name).state_dict() for name in STATEFUL},
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer.to_json(),
            "data": self.data.fingerprint,
            "step": self.step,
            "data_position": self.step * self.config.batch_size,
            "seconds": self.seconds,
            "rng": checkpoint.rng_state(),
        }
        checkpoint.save(self.run, state)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms, positions and the logit scale are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            (free if parameter.dim() < 2 or name.endswith("positions") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)

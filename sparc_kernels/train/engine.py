"""The training loop: AdamW, warm-up and cosine, autocast, clipping, logs, checkpoints, exact resume."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sparc_kernels.modules import SparcLoss
from sparc_kernels.train import checkpoint
from sparc_kernels.train.config import TrainConfig, differences
from sparc_kernels.train.data import Data, batches
from sparc_kernels.train.model import ClipLoss, DualEncoder, build_loss
from sparc_kernels.train.tokenizer import CaptionTokenizer

LOG = "log.csv"
STATEFUL = ("model", "loss", "optimizer", "schedule")
COLUMNS = ("step", "loss", "global_loss", "local_loss", "logit_scale", "lr", "grad_norm", "seconds")


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
    """One run in the folder ``config.out``; ``resume`` continues its last checkpoint."""

    def __init__(self, config: TrainConfig, data: Data, resume: bool = False, progress: bool = True) -> None:
        self.config, self.data, self.progress = config, data, progress
        self.run = Path(config.out)
        self.device = set_up(config)
        saved = checkpoint.load(self.run) if resume else None
        if saved is None:
            self.tokenizer = CaptionTokenizer.train(
                data.train_captions, config.model.vocab_size, config.model.max_tokens
            )
        else:
            if changed := differences(TrainConfig.from_dict(saved["config"]), config):
                raise ValueError(f"cannot resume {str(self.run)!r} with another configuration: {'; '.join(changed)}")
            if saved["data"] != data.fingerprint:
                raise ValueError(f"cannot resume {str(self.run)!r}: the data in {config.data!r} have changed")
            self.tokenizer = CaptionTokenizer.from_json(saved["tokenizer"], config.model.max_tokens)
        self.model = DualEncoder(config.model, self.tokenizer.vocab_size).to(self.device)
        self.loss: SparcLoss | ClipLoss = build_loss(config).to(self.device)
        self.optimizer = make_optimizer([self.model, self.loss], config)
        self.schedule = LambdaLR(self.optimizer, lambda step: lr_factor(step, config))
        self.step, self.seconds = 0, 0.0
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        for name in STATEFUL:
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.seconds = saved["step"], saved["seconds"]
        if saved["data_position"] != self.step * self.config.batch_size:
            raise ValueError(f"checkpoint of {str(self.run)!r}: step and data position contradict each other")
        checkpoint.set_rng_state(saved["rng"])

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

    def fit(self) -> None:
        """Train to the last step; checkpoints stand before the first, at every interval and at the end."""
        self.run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomic(self.run / "config.json", json.dumps(self.config.to_dict(), indent=2))
        log = checkpoint.CsvLog(self.run / LOG, COLUMNS, self.step)
        writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step + 1)
        if self.step == 0:
            self.save()
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc=self.config.loss,
            unit="step",
            disable=not self.progress,
        )
        try:
            for pixels, captions in batches(self.data, self.config, self.step):
                row = self._train_step(pixels, captions)
                log.write(row)
                for name in COLUMNS[1:-1]:
                    if row[name] != "":
                        writer.add_scalar(name, row[name], self.step)
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}", refresh=False)
                if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                    log.sync()
                    self.save()
        finally:
            bar.close()
            writer.close()
            log.close()

    def _train_step(self, pixels: Tensor, captions: list[str]) -> dict[str, Any]:
        started = time.perf_counter()
        self.model.train()
        tokens = self.tokenizer(captions)
        mask = tokens.mask.to(self.device)
        with self.autocast():
            patch_embeds, token_embeds = self.model(
                pixels.to(self.device, non_blocking=True), tokens.ids.to(self.device), mask
            )
        result = self.loss(patch_embeds, token_embeds, mask)
        loss, parts = (result, ()) if isinstance(result, Tensor) else (result.loss, result[1:])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {self.step + 1}: loss {value}, gradient norm {float(norm)}; a lower --lr may help. "
                f"The last checkpoint stands in {str(self.run)!r}"
            )
        rate = self.schedule.get_last_lr()[0]
        scale = self.loss.logit_scale.item()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        global_loss, local_loss = (parts[0].item(), parts[1].item()) if parts else (value, "")
        values = (self.step, value, global_loss, local_loss, scale, rate, float(norm), round(self.seconds, 3))
        return dict(zip(COLUMNS, values))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            yield


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms, positions and the logit scale are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            (free if parameter.dim() < 2 or name.endswith("positions") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)

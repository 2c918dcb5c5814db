"""AdamW and the rate that it takes at each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from sparc_kernels.train.config import TrainConfig


def lr_factor(step: int, config: TrainConfig) -> float:
    """Share of the peak rate at a step counted from 0: linear warm-up to 1, half a cosine to ``min_lr``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.min_lr / config.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms, positions and the logit scale are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            (free if parameter.dim() < 2 or name.endswith("positions") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)

"""Backends train along one curve, as closely as float32 lets any two runs do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from sparc_kernels import _native
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.losses import GlobalLoss
from tools.curve_parity import EAGER, FUSED, NUDGED, curves, distances

STEPS = 8  # from 20 on the runs of eager are apart
# As tests/tolerance.py has it for float32: four times as far as eager, and a few roundings of the loss.
FACTOR, FLOOR = 4.0, 1e-6

pytestmark = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))


def apart(config: TrainConfig) -> tuple[float, float]:
    """How far the fused run got from eager, and how far it may: by what the last bit of the weights does to eager."""
    found = curves(replace(config, steps=STEPS, batch_size=6, eval_pairs=2, checkpoint_every=STEPS))
    far = distances(found, EAGER)
    rounding = far[NUDGED][-1]
    assert 1e-9 < rounding < 1e-4, "float32 shows, and the runs have not come to chaos"
    return far[FUSED][-1], FACTOR * rounding + FLOOR


@pytest.mark.parametrize("loss", ["sparc", "siglip"])
def test_fused_and_eager_follow_one_curve(small: TrainConfig, loss: str) -> None:
    found, allowed = apart(replace(small, loss=loss))
    assert found <= allowed


def test_a_small_fault_of_a_backend_shows(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of one side that are a thousandth too large, where the loss is right."""
    forward = GlobalLoss.forward

    def faulty(self: GlobalLoss, patch_embeds: Tensor, *others: Any) -> Any:
        if self.backend == "cpu" and patch_embeds.requires_grad:
            patch_embeds.register_hook(lambda grad: 1.001 * grad)
        return forward(self, patch_embeds, *others)

    monkeypatch.setattr(GlobalLoss, "forward", faulty)
    found, allowed = apart(replace(small, loss="siglip"))
    assert found > allowed

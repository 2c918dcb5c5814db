"""The NaN poison that the other tests rely on works."""

from __future__ import annotations

import torch


def test_empty_is_poisoned() -> None:
    assert torch.empty(64).isnan().all()
    assert torch.zeros(3, dtype=torch.bfloat16).new_empty(64).isnan().all()
    assert torch.empty_strided((4, 4), (4, 1), dtype=torch.float64).isnan().all()

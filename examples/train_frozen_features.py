"""Frozen towers: features memory-mapped from the disk, and two linear adapters trained on them.

    python examples/train_frozen_features.py

The loss is then most of the step. Every batch is taken by the eager backend too, to print the ratio of the times.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparc_kernels import SparcLoss


def write_features(folder: Path, pairs: int = 96, patches: int = 100, tokens: int = 32) -> None:
    """Stand-ins for what frozen towers gave: float16 patches [N, P, 192], tokens [N, L, 128], and masks [N, L]."""
    random = np.random.default_rng(0)
    np.save(folder / "patches.npy", random.standard_normal((pairs, patches, 192)).astype(np.float16))
    np.save(folder / "tokens.npy", random.standard_normal((pairs, tokens, 128)).astype(np.float16))
    np.save(folder / "mask.npy", np.arange(tokens) < random.integers(4, tokens + 1, (pairs, 1)))


class Adapters(nn.Module):
    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.patch_adapter, self.token_adapter = nn.Linear(192, dim), nn.Linear(128, dim)
        self.criterion = SparcLoss()

    def forward(self, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.criterion(self.patch_adapter(patches.float()), self.token_adapter(tokens.float()), mask)


def main(folder: Path, epochs: int = 6) -> list[float]:
    torch.manual_seed(0)
    model, data = Adapters(), [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("patches", "tokens", "mask")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, seconds = [], {"auto": [], "eager": []}
    for rows in torch.cat([torch.randperm(len(data[0])) for _ in range(epochs)]).split(32):
        batch = [torch.from_numpy(array[rows.numpy()]) for array in data]  # reads these rows alone
        for model.criterion.backend, times in seconds.items():
            started = time.perf_counter()
            optimizer.zero_grad()
            (loss := model(*batch)).backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
            losses.append(loss.item())
    auto, eager = map(statistics.median, seconds.values())
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}; time per step, eager / auto: {eager / auto:.2f}")
    return losses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write_features(Path(scratch))
        main(Path(scratch))

"""Accelerate: ``prepare`` the module that holds the loss, not the towers alone.

    pip install accelerate && python examples/train_accelerate.py          # or: accelerate launch ...

A criterion beside the prepared model would have a temperature whose gradient nobody averages over the processes.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sparc_kernels import SparcLoss


class TowersAndLoss(nn.Module):
    """Stand-ins for two towers, and the loss between their patches and tokens: a batch in, a loss out."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.image_tower = nn.Conv2d(3, dim, 8, 8)
        self.text_tower = nn.Embedding(100, dim)
        self.criterion = SparcLoss()

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, 3, S, S], [B, L], [B, L] bool (True = a word) -> []."""
        patches = self.image_tower(images).flatten(2).transpose(1, 2)  # [B, P, D]
        return self.criterion(patches, self.text_tower(ids), mask)


def make() -> tuple[TowersAndLoss, tuple[Tensor, Tensor, Tensor]]:
    mask = torch.arange(12) < torch.randint(2, 13, (16, 1))
    return TowersAndLoss(), (torch.randn(16, 3, 32, 32), torch.randint(0, 100, (16, 12)), mask)


def main(epochs: int = 5) -> list[float]:
    torch.manual_seed(0)
    model, data = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(TensorDataset(*data), batch_size=16))
    losses = []
    for epoch in range(epochs):
        for batch in loader:
            loss = model(*batch)  # through the prepared module: several processes, see train_ddp.py
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        accelerator.print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()

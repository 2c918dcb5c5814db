"""DistributedDataParallel: processes that train like one process on the batch of all.

    torchrun --nproc-per-node 2 examples/train_ddp.py

With ``group="world"`` pairs are told from those of all processes, words are counted over all, and every process returns
the loss of the whole batch; averaged by DDP, the gradients are its gradients (docs/distributed.md).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparc_kernels import SparcLoss


class TowersAndLoss(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.image_tower, self.text_tower = nn.Conv2d(3, dim, 8, 8), nn.Embedding(100, dim)  # stand-ins
        self.criterion = SparcLoss(group="world")

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        patches = self.image_tower(images).flatten(2).transpose(1, 2)
        return self.criterion(patches, self.text_tower(ids), mask)


def main() -> float:
    model = DistributedDataParallel(TowersAndLoss())
    torch.manual_seed(1 + dist.get_rank())
    batch = torch.randn(8, 3, 32, 32), torch.randint(0, 100, (8, 12)), torch.arange(12) < torch.randint(1, 13, (8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        model.module.criterion.clamp_logit_scale()
        print(f"rank {dist.get_rank()}, step {step}: loss {loss.item():.4f}")
    return loss.item()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()

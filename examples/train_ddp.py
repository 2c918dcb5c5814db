"""DistributedDataParallel: processes that train like one process on the batch of all.

    torchrun --nproc-per-node 2 examples/train_ddp.py

SparcLoss stands inside the wrapped module: beside it, nobody would average the gradient of its scale. DDP averages over
processes, as if each had as many words, and each process alone would tell its pairs from its own only: see forward.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparc_kernels import SparcLoss, contrastive_loss, fine_grained_loss


def of_all_ranks(own: Tensor) -> Tensor:
    """[B, D] of every process in turn. Its gradient reaches the own rows, times the processes that DDP divides by."""
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own.detach().contiguous())
    rows[dist.get_rank()] = own.detach() + len(rows) * (own - own.detach())
    return torch.cat(rows)


class TowersAndLoss(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.image_tower, self.text_tower = nn.Conv2d(3, dim, 8, 8), nn.Embedding(100, dim)  # stand-ins
        self.criterion = SparcLoss()

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        patches, tokens = self.image_tower(images).flatten(2).transpose(1, 2), self.text_tower(ids)
        scale = self.criterion.log_logit_scale.exp()
        dist.all_reduce(words := mask.sum())
        # A rank counts as much as it has words, so that the average over ranks is the mean over all words.
        local = fine_grained_loss(patches, tokens, mask, logit_scale=scale) * dist.get_world_size() * mask.sum() / words
        texts = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        whole = contrastive_loss(of_all_ranks(patches.mean(1)), of_all_ranks(texts), logit_scale=scale)
        return self.criterion.global_weight * whole + self.criterion.local_weight * local


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

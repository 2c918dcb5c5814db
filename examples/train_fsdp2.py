"""FSDP2 (``fully_shard``): SparcLoss inside the sharded module, its scale clamped after every step.

    torchrun --nproc-per-node 2 examples/train_fsdp2.py

FSDP2 averages gradients over processes; with ``group="world"`` that average is the gradient of the loss of the whole
batch, ragged captions and negatives of other processes included (docs/distributed.md).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from sparc_kernels import SparcLoss


class TowersAndLoss(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.image_tower = nn.Conv2d(3, dim, 8, 8)  # stand-ins
        self.text_tower = nn.Embedding(100, dim)
        self.criterion = SparcLoss(reduction="caption", group="world")

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        patches = self.image_tower(images).flatten(2).transpose(1, 2)
        return self.criterion(patches, self.text_tower(ids), mask)


def main(steps: int = 5) -> nn.Module:
    torch.manual_seed(0)  # the same weights everywhere
    model = TowersAndLoss()
    for tower in (model.image_tower, model.text_tower):
        fully_shard(tower)  # with mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16), as you like
    fully_shard(model.criterion)  # by itself and without a policy: in bfloat16 its scale would be 14.25 for 14.29
    fully_shard(model)
    torch.manual_seed(1 + dist.get_rank())  # other data everywhere
    batch = torch.randn(8, 3, 32, 32), torch.randint(0, 100, (8, 12)), torch.arange(12) < torch.randint(1, 13, (8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        model.criterion.clamp_logit_scale()  # forward clamps a gathered copy only, which is thrown away
        scale = model.criterion.log_logit_scale.full_tensor().exp().item()
        print(f"rank {dist.get_rank()}, step {step}: loss {loss.item():.4f}, scale {scale:.4f}")
    return model


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()

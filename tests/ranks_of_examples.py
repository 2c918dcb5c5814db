"""What each process of ``torchrun`` checks of examples/train_ddp.py and train_fsdp2.py; test_examples.py runs it."""

from __future__ import annotations

import copy
import math
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from examples import train_ddp, train_fsdp2
from sparc_kernels import sparc_loss

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def batch(empty: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of both processes: the captions of the second are much shorter; ``empty``: one has no word."""
    lengths = torch.tensor([12, 11, 9, 0 if empty else 10, 2, 1, 3, 2])
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    return images, torch.randint(0, 100, (8, 12)), torch.arange(12) < lengths[:, None]


def own(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.chunk(dist.get_world_size())[dist.get_rank()] for x in tensors)


def single_process(model: Any, images: Tensor, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    patches, tokens = model.image_tower(images).flatten(2).transpose(1, 2), model.text_tower(ids)
    scale = model.criterion.log_logit_scale.exp()
    loss = sparc_loss(patches, tokens, mask, logit_scale=scale, backend="eager", **options)
    loss.backward()
    return loss.detach()


def mean_of_ranks(x: Tensor) -> Tensor:
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def check_ddp() -> None:
    """Gradients and loss of two ranks with ragged captions are the single process's; a plain mean is far off."""
    torch.manual_seed(0)
    model, data = train_ddp.TowersAndLoss().double(), batch(empty=True)
    reference, plain, ddp = copy.deepcopy(model), copy.deepcopy(model), DistributedDataParallel(model)
    expected = single_process(reference, *data)
    loss = ddp(*own(data))
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, **CLOSE)
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad, **CLOSE, msg=(name + ": {}").format)
    single_process(plain, *own(data))
    off = mean_of_ranks(plain.image_tower.weight.grad) - reference.image_tower.weight.grad
    assert train_ddp.main() < 1  # of about 3 at first
    share = off.norm() / reference.image_tower.weight.grad.norm()
    assert share > 0.05, f"the batch does not tell a plain mean from the recipe: {share:.3f}"
    print(f"rank {dist.get_rank()}: DDP equals one process; a plain mean's gradient is {share:.0%} off")


def check_fsdp2() -> None:
    """Loss and gradients are the single process's. Trained, all ranks hold one scale in its bound."""
    torch.manual_seed(0)
    model, data = train_fsdp2.TowersAndLoss().double(), batch(empty=True)
    reference = copy.deepcopy(model)
    expected = single_process(reference, *data, reduction="caption")
    fully_shard(model)
    loss = model(*own(data))
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, **CLOSE)
    for p, q in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad, **CLOSE)

    criterion = train_fsdp2.main().criterion
    scale = criterion.log_logit_scale.full_tensor()
    torch.testing.assert_close(mean_of_ranks(scale), scale, rtol=0, atol=0)
    assert abs(scale.item() - math.log(1 / 0.07)) > 1e-4
    with torch.no_grad():
        criterion.log_logit_scale.fill_(10.0)
    criterion.clamp_logit_scale()
    assert math.isclose(criterion.log_logit_scale.full_tensor().item(), math.log(100), rel_tol=1e-6)
    print(f"rank {dist.get_rank()}: FSDP2 equals one process; scale {scale.exp().item():.4f}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check_ddp()
    check_fsdp2()
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a process that ends in peace, with PyTorch alone as well

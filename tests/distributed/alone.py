"""One rank that goes through every exchange with itself; ``python -m tests.distributed.alone DEVICE``.

The library takes a group of one for no group. Here it does not, so that on a single GPU NCCL's collectives run: that
results are those without a group, that the host does not wait for the device, and that a CUDA graph holds them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.distributed import ranks
from sparc_kernels.functional import Ids
from tests import tolerance

Call = Callable[..., Any]


def _ranks_of(group: Any, gradients: str, call: str) -> ranks.Ranks | None:
    ranks.check_gradients(gradients)
    return None if group is None else ranks.Ranks(*ranks._looked_up(group), call, gradients == "mean")


def take_one_for_many() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("sparc_kernels.functional") and "ranks_of" in vars(module):
            vars(module)["ranks_of"] = _ranks_of


def problems(device: str, dtype: torch.dtype) -> dict[str, tuple[Call, tuple[Tensor, ...]]]:
    """By name: a loss, and its leaves."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator).to(device, dtype)  # noqa: E731
    images, texts, patches, tokens = normal(37, 64), normal(37, 64), normal(5, 49, 64), normal(5, 16, 64)
    scale, bias = (torch.tensor(value, device=device) for value in (10.0, -5.0))
    ids = (torch.arange(37) // 2).to(device)
    mask = (torch.arange(16) < torch.tensor([16, 3, 0, 7, 12])[:, None]).to(device)
    return {
        "contrastive": (lambda x, y, s, **o: sk.contrastive_loss(x, y, logit_scale=s, **o), (images, texts, scale)),
        "contrastive with ids": (
            lambda x, y, s, **o: sk.contrastive_loss(x, y, logit_scale=s, exclude=Ids(ids, ids), **o),
            (images, texts, scale),
        ),
        "sigmoid": (
            lambda x, y, s, b, **o: sk.sigmoid_loss(x, y, logit_scale=s, logit_bias=b, **o),
            (images, texts, scale, bias),
        ),
        "fine_grained": (
            lambda v, t, s, **o: sk.fine_grained_loss(v, t, token_mask=mask, logit_scale=s, **o),
            (patches, tokens, scale),
        ),
        "sparc": (
            lambda v, t, s, **o: sk.sparc_loss(v, t, token_mask=mask, logit_scale=s, **o),
            (patches, tokens, scale),
        ),
        "filip": (lambda v, t, s, **o: sk.filip_loss(v, t, None, mask, logit_scale=s, **o), (patches, tokens, scale)),
        "gloria": (lambda v, t, s, **o: sk.gloria_loss(v, t, None, mask, logit_scale=s, **o), (patches, tokens, scale)),
        "flair": (
            lambda v, t, s, b, **o: sk.flair_loss(v, t, logit_scale=s, logit_bias=b, **o),
            (patches, tokens[:, 0], scale, bias),
        ),
    }


def step(call: Call, leaves: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
    """The loss, and a gradient for each leaf."""
    loss = call(*leaves, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def check_captured(call: Call, leaves: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """A graph of a step gives its bits again, and the host never waits in it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(call, leaves, group="world")
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(call, leaves, group="world")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(call, leaves, group="world")
    for result in captured:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(captured, expected))


def main(device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
        take_one_for_many()
        for dtype in (torch.float32, torch.bfloat16):
            for name, (call, tensors) in problems(device, dtype).items():
                leaves = tuple(x.requires_grad_() for x in tensors)
                wide = tuple(x.detach().double().requires_grad_() for x in leaves)
                truth = step(call, wide, backend="eager")
                eager = step(call, leaves, backend="eager")
                found = step(call, leaves, group="world")
                for place, (true, low, mine) in enumerate(zip(truth, eager, found)):
                    tolerance.assert_close(f"{name} {place}", mine, true, low, dtype)
                if device == "cuda":
                    check_captured(call, leaves, found)
                print(f"{name} {dtype}: right", flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

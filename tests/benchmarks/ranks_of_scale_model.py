"""What each gloo process does for test_scale_model.py: it runs the losses, and counts what they exchange and compute.

``python -m tests.benchmarks.ranks_of_scale_model <folder> <rank> <ranks>``; results go to ``<folder>/<rank>.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import sparc_kernels as sk
from benchmarks.measure.peers import part_of
from benchmarks.scale_model.problem import BACKWARD, FORWARD, SIGMOID, SOFTMAX
from benchmarks.scale_model.traffic import ALL_GATHER, ALL_TO_ALL, REDUCE_SCATTER

SIZE, WIDTH = 64, 256
UNEVEN = (5, 9, 3, 7)
LOSSES = ((SOFTMAX, "float32"), (SOFTMAX, "float64"), (SOFTMAX, "bfloat16"), (SIGMOID, "float32"), (SIGMOID, "float64"))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


class Counted(TorchDispatchMode):
    """Every collective that reaches PyTorch's dispatcher: the pass, its kind, and the bytes that leave this rank.

    They are taken from arguments and results: what has come beside the rank's own, or what others have got of it.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.phase = ranks, FORWARD
        self.found: list[tuple[str, str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name.startswith(("_c10d_functional::", "c10d::")):
            self._count(name.partition("::")[2], args, result)
        return result

    def _count(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "all_gather_into_tensor":
            found = ALL_GATHER, _bytes(result) - _bytes(args[0])
        elif name == "reduce_scatter_tensor":
            found = REDUCE_SCATTER, _bytes(args[0]) - _bytes(result)
        elif name == "all_to_all_single":
            row = _bytes(args[0]) // args[0].shape[0]
            found = ALL_TO_ALL, row * (sum(args[2]) - args[2][dist.get_rank()])
        elif name == "allgather_":
            found = ALL_GATHER, sum(map(_bytes, args[0][0])) - _bytes(args[1][0])
        elif name == "scatter_" and args[3] == dist.get_rank():
            # Gloo has no reduce-scatter of lists: PyTorch then scatters from every rank in turn, and sums.
            found = REDUCE_SCATTER, sum(map(_bytes, args[1][0])) - _bytes(args[0][0])
        elif name in ("scatter_", "wait_tensor"):
            return
        else:
            raise AssertionError(f"a collective that nobody counts: {name}")
        self.found.append((self.phase, *found))


@contextlib.contextmanager
def streamed() -> Iterator[None]:
    """No matrix is kept, as on a GPU."""
    similarity: Any = sk.functional.similarity
    usual, similarity.KEEP_BYTES = similarity.KEEP_BYTES, 0
    try:
        yield
    finally:
        similarity.KEEP_BYTES = usual


def counted(loss: Callable[[], Tensor], ranks: int) -> dict[str, Any]:
    flop, kept = {}, {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with streamed(), Counted(ranks) as counter:
        with FlopCounterMode(display=False) as products, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            value = loss()
        flop[FORWARD] = products.get_total_flops()
        counter.phase = BACKWARD
        with FlopCounterMode(display=False) as products:
            value.backward()
        flop[BACKWARD] = products.get_total_flops()
    return {"exchanges": counter.found, "flop": flop, "kept": sum(kept.values())}


def embeddings(size: int, dtype: str) -> tuple[Tensor, Tensor]:
    kind = getattr(torch, dtype)
    images, texts = (torch.randn(size, WIDTH).to(kind).requires_grad_() for _ in range(2))
    return images, texts


def of_ours(loss: str, dtype: str, size: int) -> Callable[[], Tensor]:
    images, texts = embeddings(size, dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32
    scale, bias = (torch.tensor(value, dtype=wide, requires_grad=True) for value in (10.0, -5.0))
    options: dict[str, Any] = {"logit_scale": scale, "group": "world", "backend": "cpu"}
    if loss == SOFTMAX:
        return lambda: sk.contrastive_loss(images, texts, **options)
    return lambda: sk.sigmoid_loss(images, texts, logit_bias=bias, **options)


def of_open_clip(local_loss: bool, with_gradient: bool, size: int, rank: int, ranks: int) -> Callable[[], Tensor]:
    module: Any = part_of("open_clip", "loss")
    loss = module.ClipLoss(local_loss=local_loss, gather_with_grad=with_gradient, rank=rank, world_size=ranks)
    images, texts = (F.normalize(x.detach(), dim=-1).requires_grad_() for x in embeddings(size, "float32"))
    scale = torch.tensor(10.0, requires_grad=True)
    return lambda: loss(images, texts, scale)


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {f"{loss} {dtype}": counted(of_ours(loss, dtype, SIZE), ranks) for loss, dtype in LOSSES}
    if ranks == len(UNEVEN):
        found["uneven"] = counted(of_ours(SOFTMAX, "float32", UNEVEN[rank]), ranks)
    if part_of("open_clip", "loss") is not None:
        for local in (False, True):
            for gradient in (False, True):
                call = of_open_clip(local, gradient, SIZE, rank, ranks)
                found[f"open_clip {local} {gradient}"] = counted(call, ranks)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a process that ends in peace, with PyTorch alone as well


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

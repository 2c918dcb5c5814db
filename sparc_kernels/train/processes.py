"""The processes of a run that torchrun started: their shares, what they agree on, and how the failure of one ends all.

Without torchrun a run is one process, and every question below is answered without asking anybody.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

Value = TypeVar("Value")
FAILURE = "failure"
PATIENCE = 1.0  # seconds that the other processes leave the first one to say what all of them have met
LOST = ("gloo", "NCCL", "Connection")  # words of the errors that collectives raise where a peer is gone


@dataclass(frozen=True)
class Processes:
    """This process among those of its run.

    - ``local``: its number on its machine, which is that of its GPU.
    - ``store``: where the first failure is written down; None without torchrun, where there is no process group either.
    - ``sharded``: parameters, gradients and the optimizer's state are spread over the processes (FSDP2).
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: dist.Store | None = None
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this process is the one that locks, writes and prints."""
        return self.rank == 0

    @property
    def joined(self) -> bool:
        return self.store is not None

    def share(self, count: int) -> range:
        """The slots of a batch of ``count`` that are this process's: the shares in order are the batch."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """What ``compute`` gives in the first process, to all."""
        values: list[Any] = [compute() if self.first else None]
        if self.joined:
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        found: Value = values[0]
        return found

    def check_same(self, what: str, value: object) -> None:
        """``ValueError``, in all processes alike, where they differ in ``value``."""
        if not self.joined:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"{what} must be the same on all ranks, got {other!r} on rank {rank}, not {values[0]!r}"
                )

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes in order, for the first; the others get an empty list."""
        if not self.joined:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def largest(self, number: int) -> int:
        if not self.joined:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wrapped(self, module: nn.Module, device: torch.device, sharded_alone: Sequence[nn.Module]) -> nn.Module:
        """``module`` with the gradients of all processes averaged: by DDP, or by FSDP2, which changes it in place and
        gathers ``sharded_alone`` one by one."""
        if not self.joined:
            return module
        if not self.sharded:
            return nn.parallel.DistributedDataParallel(module)
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh(device.type, (self.size,))
        for part in (*sharded_alone, module):
            fully_shard(part, mesh=mesh)
        return module

    def part(self) -> None:
        """The end of what is done together: from here on no process waits for another."""
        if self.joined:
            self.largest(0)  # a barrier, on the CPU
            dist.destroy_process_group()

    def told(self, words: str) -> str | None:
        """What this process has to print about an error that it met; None where the words have been said.

        The failure that comes first is written down for the others. Where all meet the same error the first process
        says it; where an error only follows from the failure of another process, the first one names that.
        """
        if self.store is None:
            return words
        try:
            until = time.monotonic() + PATIENCE
            while not self.first and not self.store.check([FAILURE]) and time.monotonic() < until:
                time.sleep(PATIENCE / 20)
            entry = self.store.compare_set(FAILURE, "", f"{self.rank}\n{words}").decode()
        except RuntimeError:  # the store lay in a process that is gone
            return f"rank {self.rank}: {words}"
        rank, first = entry.split("\n", 1)
        if int(rank) == self.rank:
            return words if self.first else f"rank {self.rank}: {words}"
        return f"rank {rank} failed: {first}" if self.first and first != words else None


ALONE = Processes()


def pick_device(name: str, processes: Processes = ALONE) -> torch.device:
    """The device called ``name``; of several processes on a machine each takes a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no CUDA device")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not processes.joined:
        return torch.device("cuda", torch.cuda.current_device())
    if processes.local >= torch.cuda.device_count():
        raise ValueError(
            f"--nproc-per-node must be at most the number of CUDA devices, {torch.cuda.device_count()}, got a process "
            f"number {processes.local} on this machine: start fewer, or give --device cpu"
        )
    return torch.device("cuda", processes.local)


def lost(error: Exception) -> str | None:
    """What an error of a collective says about another process that is gone; None for all other errors.

    Neither gloo nor NCCL has a class for it.
    """
    if not isinstance(error, RuntimeError) or not any(word in str(error) for word in LOST):
        return None
    return re.sub(r"^\[\S*\] | \(\[.*", "", str(error).splitlines()[0]).split(". ")[0]


def unsynced(module: nn.Module) -> AbstractContextManager[object]:
    """Backward passes in the block add to the gradients of this process only; DDP averages in the next one outside.

    FSDP2 averages in each, so that whole gradients need no room.
    """
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def launched() -> bool:
    """Whether this process was started as one of several, by torchrun or alike."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextmanager
def joined(sharded: bool = False) -> Iterator[Processes]:
    """The process group of a process that torchrun started, with gloo for the CPU's tensors and NCCL for the GPU's."""
    if not launched():
        if sharded:
            raise ValueError(
                "fsdp spreads a model over the processes of torchrun, got one process: start with "
                "torchrun --nproc-per-node N -m sparc_kernels.train --fsdp ..."
            )
        yield ALONE
        return
    if not dist.is_available():
        raise NotImplementedError("several processes need torch.distributed, which this PyTorch was built without")
    store, rank, size = next(iter(dist.rendezvous("env://")))
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size
    )
    local = int(os.environ.get("LOCAL_RANK", rank))
    yield Processes(rank, size, local, dist.PrefixStore("run", store), sharded)

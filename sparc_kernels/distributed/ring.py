"""Blocks that travel around a ring of ranks, from each to its right neighbour, while the one before is worked on.

Every rank makes the same exchanges in the same order, so none waits for one that nobody makes. A block meets the ranks
in a fixed order, which begins with its owner: what is added up on its way has the same bits every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparc_kernels.distributed.ranks import Ranks


class Ring:
    """One rank's place in it, for the exchanges of one pass."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        name: Any = ranks.group  # newer PyTorch has a type for it
        self.group = dist.distributed_c10d._resolve_process_group(name)
        self.passed = 0

    def pass_on(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Passing:
        """Start sending to the right and receiving from the left; both stay untouched until :meth:`Passing.wait`."""
        size, rank = self.ranks.size, self.ranks.rank
        operations = []
        for out, into in zip(sent, received, strict=True):
            # all at once, since two transfers of NCCL that do not know each other could wait for each other
            for what, tensor, peer in ((dist.isend, out, (rank + 1) % size), (dist.irecv, into, (rank - 1) % size)):
                operations.append(dist.P2POp(what, tensor, group=self.group, tag=self.passed, group_peer=peer))
            self.passed += 1
        try:
            return Passing(self.ranks, dist.batch_isend_irecv(operations))
        except RuntimeError as error:
            raise _lost(self.ranks, error) from error

    def blocks(self, *own: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Owner and tensors of every block, this rank's own first, then those of the ranks to the left. The next one is
        on its way until the caller comes back, and two of them have room."""
        held, spare = own, None
        for step in range(self.ranks.size):
            passing = None
            if step + 1 < self.ranks.size:
                arriving = tuple(map(torch.empty_like, own)) if spare is None else spare
                passing = self.pass_on(held, arriving)
            yield (self.ranks.rank - step) % self.ranks.size, held
            if passing is not None:
                passing.wait()
                spare, held = None if held is own else held, arriving


class Passing:
    """What is on its way."""

    def __init__(self, ranks: Ranks, works: list[Any]) -> None:
        self.ranks, self.works = ranks, works

    def wait(self) -> None:
        """Until it has come; on a GPU the stream waits, not the host."""
        try:
            for work in self.works:
                work.wait()
        except RuntimeError as error:
            raise _lost(self.ranks, error) from error


def _lost(ranks: Ranks, error: RuntimeError) -> RuntimeError:
    return RuntimeError(
        f"{ranks.call}: rank {ranks.rank} of {ranks.size} lost the others while it passed blocks on: a process has "
        f"ended, or did not make the same calls, within the timeout of the group {ranks.group!r} ({error})"
    )


class Travelling:
    """A sum that goes around with each block of :meth:`Ring.blocks` and ends where the block began."""

    def __init__(self, ring: Ring, nothing: Tensor) -> None:
        """``nothing``: what the sum begins with, to be overwritten."""
        self.ring, self.held, self.spare = ring, nothing, torch.empty_like(nothing)
        self.passing: Passing | None = None

    def arrived(self) -> Tensor:
        """What the ranks before have made of the block; to be changed in place, and then passed on."""
        if self.passing is not None:
            self.passing.wait()
            self.passing = None
            self.held, self.spare = self.spare, self.held
        return self.held

    def pass_on(self) -> None:
        self.passing = self.ring.pass_on([self.held], [self.spare])

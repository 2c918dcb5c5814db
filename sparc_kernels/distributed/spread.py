"""Items that are spread over ranks, in one row of positions: every rank's, padded to the same number."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.distributed.collectives import all_sum, gather, swap
from sparc_kernels.distributed.ranks import Ranks


class Spread(NamedTuple):
    """Position ``r * capacity + i`` is item i of rank r; positions behind a rank's last item are padding."""

    ranks: Ranks
    capacity: int
    """Positions of a rank."""
    here: int
    """Items of this rank."""
    counts: Tensor
    """[W] int64: items of every rank, on the device."""

    @property
    def size(self) -> int:
        """All positions."""
        return self.ranks.size * self.capacity

    def items(self) -> int:
        """Items of all ranks, where that can be seen; else the positions."""
        return int(self.counts.sum()) if _validate.can_be_looked_at(self.counts) else self.size

    def there(self) -> Tensor:
        """[size] bool: no padding."""
        place = torch.arange(self.capacity, device=self.counts.device)
        return (place < self.counts[:, None]).flatten()

    def own_there(self) -> Tensor:
        """[capacity] bool: which of this rank's positions are no padding."""
        return torch.arange(self.capacity, device=self.counts.device) < self.counts[self.ranks.rank]

    def own_positions(self) -> Tensor:
        """[here] int64: where the items of this rank are."""
        return torch.arange(self.here, device=self.counts.device) + self.ranks.rank * self.capacity

    def own(self, of_all: Tensor) -> Tensor:
        """[here, ...] of [size, ...]: what belongs to this rank's items."""
        return of_all.narrow(0, self.ranks.rank * self.capacity, self.here)

    def padded(self, own: Tensor, fill: float | int) -> Tensor:
        """[capacity, ...] of [here, ...]: ``own`` itself where nothing is to be padded."""
        if self.capacity == self.here:
            return own
        return F.pad(own, (*(0, 0) * (own.dim() - 1), 0, self.capacity - self.here), value=fill)

    def everyone(self, own: Tensor, fill: float | int = 0) -> Tensor:
        """[size, ...] of every rank's [here, ...], with a derivative where ``own`` has one."""
        return gather(own, self.padded(own.detach(), fill), self.ranks)

    def positions_of(self, indices: Tensor) -> Tensor:
        """Positions of items that are counted through, rank after rank; ``size`` for an index that no item has."""
        ends = self.counts.cumsum(0)
        rank = torch.searchsorted(ends, indices, right=True)
        outside = (indices < 0) | (rank >= self.ranks.size)
        rank = rank.clamp(max=self.ranks.size - 1)
        found = rank * self.capacity + indices - (ends - self.counts)[rank]
        return found.masked_fill(outside, self.size)

    def indices_of(self, positions: Tensor) -> Tensor:
        """Of items at these positions, counted through, rank after rank: the inverse of :meth:`positions_of`. Where
        there is no item (a negative position) -1."""
        rank = positions.clamp(min=0) // self.capacity
        before = self.counts.cumsum(0) - self.counts
        return (positions - rank * self.capacity + before[rank]).masked_fill(positions < 0, -1)

    def parts(self, of_all: Tensor) -> Tensor:
        """[W, here, ...]: what each rank has found, in [size, ...], for the items of this one."""
        found = swap(of_all, self.ranks).unflatten(0, (self.ranks.size, self.capacity))
        return found.narrow(1, 0, self.here)

    def total(self, own: Tensor) -> Tensor:
        """The sum over ranks."""
        return all_sum(own, self.ranks)

"""What losses over many processes share: the group, the exchange of rows, agreement, counts, the derivative's factor.

It knows tensors with a first dimension that is spread over ranks, and no loss. The convention (docs/distributed.md):
every rank computes a share of one global loss L, returns L itself, and gives the gradients that, averaged over ranks by
DDP or FSDP2 (or summed, ``gradients="sum"``), are those of L.
"""

from sparc_kernels.distributed.agreement import Fact, spread_over, spread_without_exchange
from sparc_kernels.distributed.ranks import Group, Ranks, check_gradients, check_group, ranks_of
from sparc_kernels.distributed.ring import Ring, Travelling
from sparc_kernels.distributed.spread import Spread
from sparc_kernels.distributed.totals import alike, global_ratios, replicated

__all__ = [
    "Fact",
    "Group",
    "Ranks",
    "Ring",
    "Spread",
    "Travelling",
    "alike",
    "check_gradients",
    "check_group",
    "global_ratios",
    "ranks_of",
    "replicated",
    "spread_over",
    "spread_without_exchange",
]

"""The modes beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.scale_model import traffic, work
from benchmarks.scale_model.problem import SIGMOID, SOFTMAX, Problem
from benchmarks.scale_model.traffic import Exchange
from benchmarks.scale_model.work import Work


@dataclass(frozen=True)
class Mode:
    name: str
    losses: tuple[str, ...]
    exchanges: Callable[[Problem], list[Exchange]]
    work: Callable[[Problem], dict[str, Work]]
    memory: Callable[[Problem], int]
    """Bytes beyond the rank's embeddings and their gradients."""
    note: str

    def sent(self, problem: Problem) -> int:
        """Bytes that leave a rank in a step; as many arrive."""
        return sum(each.sent(problem.ranks) for each in self.exchanges(problem))

    def flop(self, problem: Problem) -> float:
        return sum(each.flop for each in self.work(problem).values())


GATHER = Mode("gather", (SOFTMAX, SIGMOID), traffic.gather, work.gather, work.gather_memory, "what `group=` does")
# What it chooses between for gradients of half precision.
SWAPPED, SCATTERED = (
    Mode(
        f"gather, {'scattered' if scattered else 'swapped'}",
        GATHER.losses,
        partial(traffic.gather, scattered=scattered),
        work.gather,
        work.gather_memory,
        f"half-precision gradients {'reduce-scattered in float32' if scattered else 'in an all-to-all'}",
    )
    for scattered in (False, True)
)
RING = Mode("ring", (SOFTMAX, SIGMOID), traffic.ring, work.ring, work.ring_memory, '`exchange="ring"`')


def _open_clip(local_loss: bool, with_gradient: bool, gradients: str) -> Mode:
    flags = f"{'local' if local_loss else 'global'}, {'with' if with_gradient else 'without'} gradient"
    return Mode(
        f"open_clip: {flags}",
        (SOFTMAX,),
        traffic.open_clip(with_gradient),
        partial(work.local_loss, with_gradient=with_gradient) if local_loss else work.global_loss,
        work.local_memory if local_loss else work.global_memory,
        gradients,
    )


# The gradients after DDP's average, measured with 4 ranks (docs/distributed.md).
OPEN_CLIP_BOTH = _open_clip(True, True, "right gradients")
OPEN_CLIP = (
    OPEN_CLIP_BOTH,
    _open_clip(False, True, "right gradients, all work on every rank"),
    _open_clip(False, False, "towers 1 / W of the gradient, the scale all of it"),
    _open_clip(True, False, "wrong gradients"),
)
MODES = (GATHER, SWAPPED, SCATTERED, RING, *OPEN_CLIP)

"""What each mode of a global loss exchanges, in the order of the calls.

``gather`` is what ``group=`` does, ``ring`` what it does with ``exchange="ring"``, ``open_clip ...`` what its
``ClipLoss`` does under NCCL with each setting of ``local_loss`` and ``gather_with_grad``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.scale_model.problem import BACKWARD, FORWARD, SOFTMAX, Problem

ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, SEND = "all-gather", "reduce-scatter", "all-to-all", "send"
PRODUCTS = "products of another block"

# What ranks tell each other before a call: 31 integers (sparc_kernels/distributed/agreement.py).
HEADER = 8 * 31
# Ranks whose half-precision gradients are swapped (sparc_kernels/distributed/collectives.py).
MOST_SWAPPED = 8


@dataclass(frozen=True)
class Exchange:
    """One collective call, or the sends along a ring."""

    what: str
    phase: str
    collective: str
    each: int
    """Bytes that each other rank gets of this one; of a send: that its neighbour gets in one hop."""
    formula: str
    """``each`` in b (pairs of a rank), D, i (bytes of a number), w (of one of the accumulation dtype)."""
    hops: int = 0
    """Of a send."""
    under: str = ""
    """What it hides under; nothing: the rank waits."""

    def sent(self, ranks: int) -> int:
        """Bytes that leave a rank; as many arrive."""
        return self.each * (self.hops if self.collective == SEND else ranks - 1)


def gather(problem: Problem, scattered: bool | None = None) -> list[Exchange]:
    """One-sided: texts travel, a rank's block [b, B] serves both directions.

    Gradients of half precision travel as they are, and each rank adds up its own; ``scattered``: in float32, added up
    on the way, as wider ones are. None: as ``group=`` chooses.
    """
    scattered = problem.ranks > MOST_SWAPPED if scattered is None else scattered
    b, d, i, w = problem.local, problem.width, problem.itemsize, problem.wide
    softmax = problem.loss == SOFTMAX
    directions = 2 if softmax else 1
    gradients = Exchange("gradients of texts", BACKWARD, ALL_TO_ALL, b * d * i, "b*D*i")
    if scattered or i == w:
        gradients = Exchange("gradients of texts", BACKWARD, REDUCE_SCATTER, b * d * w, "b*D*w")
    found = [
        Exchange("header", FORWARD, ALL_GATHER, HEADER, str(HEADER)),
        Exchange("texts", FORWARD, ALL_GATHER, b * d * i, "b*D*i"),
        Exchange("column statistics", FORWARD, ALL_TO_ALL, b * w, "b*w"),
        Exchange("sums and counts", FORWARD, ALL_GATHER, 16 * directions, str(16 * directions)),
        Exchange("gradients of column statistics", BACKWARD, ALL_TO_ALL, b * w, "b*w"),
        gradients,
        Exchange("gradient of the scale", BACKWARD, ALL_GATHER, w, "w"),
    ]
    if softmax:
        return found
    return [
        *(each for each in found if "column" not in each.what),
        Exchange("gradient of the bias", BACKWARD, ALL_GATHER, w, "w"),
    ]


def ring(problem: Problem) -> list[Exchange]:
    """Texts travel from neighbour to neighbour, each block multiplied while the next one is on its way."""
    b, d, i, w, ranks = problem.local, problem.width, problem.itemsize, problem.wide, problem.ranks

    def send(what: str, phase: str, each: int, formula: str, home: bool = False) -> Exchange:
        """``home``: once more, to the rank that it began with."""
        return Exchange(what, phase, SEND, each, formula, ranks - 1 + home, PRODUCTS)

    def number(what: str) -> Exchange:
        return Exchange(what, BACKWARD, ALL_GATHER, w, "w")

    softmax = problem.loss == SOFTMAX
    directions = 2 if softmax else 1
    header = Exchange("header", FORWARD, ALL_GATHER, HEADER, str(HEADER))
    sums = Exchange("sums and counts", FORWARD, ALL_GATHER, 16 * directions, str(16 * directions))
    texts = send("texts and ids", FORWARD, b * (d * i + 8), "b*(D*i + 8)")
    if not softmax:
        return [
            header,
            texts,
            send("gradients of texts", FORWARD, b * d * w, "b*D*w", home=True),
            sums,
            number("gradient of the loss"),
            number("gradient of the bias"),
            number("gradient of the scale"),
        ]
    return [
        header,
        texts,
        send("column statistics", FORWARD, 2 * b * w, "2*b*w", home=True),
        sums,
        send("texts and ids", BACKWARD, b * (d * i + 8), "b*(D*i + 8)"),
        send("column statistics", BACKWARD, 3 * b * w, "3*b*w"),
        send("gradients of texts", BACKWARD, b * d * w, "b*D*w", home=True),
        number("gradient of the scale"),
    ]


def open_clip(with_gradient: bool) -> Callable[[Problem], list[Exchange]]:
    """Both sides are gathered; gradients travel in the embeddings' dtype."""

    def exchanges(problem: Problem) -> list[Exchange]:
        each = problem.local * problem.width * problem.itemsize
        sides = ("images", "texts")
        found = [Exchange(side, FORWARD, ALL_GATHER, each, "b*D*i") for side in sides]
        if with_gradient:
            found += [Exchange(f"gradients of {side}", BACKWARD, REDUCE_SCATTER, each, "b*D*i") for side in sides]
        return found

    return exchanges

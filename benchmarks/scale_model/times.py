"""Seconds per rank: products, and what is exchanged beside or under them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.scale_model.modes import Mode
from benchmarks.scale_model.problem import PHASES, Problem
from benchmarks.scale_model.rates import LL, POST, PROTOCOLS, SIMPLE, Chip, Network, Protocol
from benchmarks.scale_model.traffic import ALL_TO_ALL, SEND, Exchange
from benchmarks.scale_model.work import LEAST_ROWS, Work


class Step(NamedTuple):
    """Of one rank, in seconds: a loss, forward and backward."""

    computing: float
    waiting: float
    """For what is exchanged."""
    hidden: float
    """Of the exchange, under products."""

    @property
    def total(self) -> float:
        return self.computing + self.waiting


def step(mode: Mode, problem: Problem, chip: Chip, network: Network) -> Step:
    """Nothing else runs on the chip or the links; launches by the host are not counted."""
    computing = waiting = hidden = 0.0
    for phase in PHASES:
        work = mode.work(problem)[phase]
        exchanges = [each for each in mode.exchanges(problem) if each.phase == phase]
        seconds = _computing(work, problem, chip)
        sends = [each for each in exchanges if each.collective == SEND]
        exchanged = sum(collective(each, problem.ranks, network) for each in exchanges if each.collective != SEND)
        along = _along_ring(sends, problem.ranks, seconds, network) if sends else (0.0, 0.0)
        computing, waiting, hidden = computing + seconds, waiting + exchanged + along[0], hidden + along[1]
    return Step(computing, waiting, hidden)


def _computing(work: Work, problem: Problem, chip: Chip) -> float:
    """By products or by the memory that they touch, whichever takes longer."""
    rates = chip.rates[problem.dtype]
    if work.pairs:
        phase = PHASES[work.gradients]
        return work.flop / (1e12 * rates.matrix) + work.pairs * rates.pairs[phase]
    rate = (rates.gradients if work.gradients else rates.sweep)[problem.loss]
    padded = max(problem.local, LEAST_ROWS) / problem.local
    return max(padded * work.flop / (1e12 * rate), work.memory_bytes / (1e9 * chip.copy))


def _fastest(protocols: Iterable[Protocol], seconds: Callable[[Protocol], float]) -> float:
    return min(map(seconds, protocols))


def collective(exchange: Exchange, ranks: int, network: Network) -> float:
    """As NCCL predicts its rings; over a network with logarithmic latency, with as many steps between nodes.

    Reductions in switches (SHARP) are left out.
    """
    if ranks == 1:
        return 0.0
    inside = min(ranks, network.node)
    nodes = -(-ranks // network.node)
    if exchange.collective == ALL_TO_ALL:
        near, far = exchange.each * (inside - 1), exchange.each * (ranks - inside)
        per_rank = network.nic * network.nics / network.node  # it cannot use the links of its neighbours
        posts = 1e-6 * (SIMPLE.base + POST * (ranks - 1))
        return posts + max(near / (1e9 * network.nvlink), far / (1e9 * per_rank))
    sent = exchange.sent(ranks)

    def seconds(protocol: Protocol) -> float:
        # Neighbours of a node pass on what comes over all links of the node at once.
        most = protocol.most_inside if nodes == 1 else protocol.most_between
        bus = network.nvlink if nodes == 1 else min(network.nvlink, network.nics * network.nic)
        near = protocol.nvlink if nodes == 1 else max(protocol.nvlink, protocol.posted)
        if network.logarithmic:
            latency = protocol.base + (inside - 1) * near + math.ceil(math.log2(nodes)) * protocol.net
        else:
            latency = protocol.base + (ranks - nodes) * near + (nodes - 1) * protocol.net
        return 1e-6 * latency + sent / (1e9 * min(most, bus * protocol.share))

    return _fastest(PROTOCOLS, seconds)


def _hop(size: int, ranks: int, network: Network) -> float:
    """To the neighbour; all wait for the slowest hop, over one link between two nodes."""

    def seconds(protocol: Protocol) -> float:
        inside = ranks <= network.node
        latency = protocol.base + (protocol.nvlink if inside else protocol.net)
        most = protocol.most_inside if inside else protocol.most_between
        return 1e-6 * latency + size / (1e9 * min(most, protocol.share * (network.nvlink if inside else network.nic)))

    return _fastest((LL, SIMPLE), seconds)


def _along_ring(sends: list[Exchange], ranks: int, computing: float, network: Network) -> tuple[float, float]:
    """Waited for, and hidden: each block's products run while the next block is on its way."""
    if ranks == 1:
        return 0.0, 0.0
    hop = _hop(sum(each.each for each in sends), ranks, network)
    home = [each.each for each in sends if each.hops == ranks]
    last = _hop(sum(home), ranks, network) if home else 0.0
    waiting = (ranks - 1) * max(0.0, hop - computing / ranks) + last
    return waiting, (ranks - 1) * hop + last - waiting

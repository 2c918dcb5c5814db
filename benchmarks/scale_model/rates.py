"""What one chip and its links do. Each figure has its source; what has none is an assumption and says so.

Measured: one H200 (sm_90, Triton 3.6, torch 2.11), 2026-11-26, at commit ca26e6b, the sigmoid loss when it was in one
sweep, 8b26dd7, with the tiles before the present ones. Since then both losses have become faster. Of links, networks
and NCCL: public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.scale_model.problem import BACKWARD, FORWARD, SIGMOID, SOFTMAX


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a loss on one chip, and the shape."""

    batch: int
    width: int
    forward: float
    both: float
    one_sweep: bool = False
    """The gradients come with the value."""

    @property
    def product(self) -> float:
        """Tflop of one of the products."""
        return 2e-12 * self.batch**2 * self.width

    @property
    def backward(self) -> float:
        """Of what makes the gradients."""
        return self.both if self.one_sweep else self.both - self.forward


@dataclass(frozen=True)
class Rates:
    """Of one dtype."""

    sweep: Mapping[str, float]
    """Tflop/s of the kernel that makes the similarities, by loss."""
    gradients: Mapping[str, float]
    """Tflop/s of the similarities with both gradients: three products."""
    matrix: float
    """Tflop/s of bare matrix products."""
    pairs: Mapping[str, float]
    """Seconds that eager PyTorch spends, beside the products, per pair and direction, by pass."""


def _rates(fused: Mapping[str, Measured], eager: Measured, matrix: float) -> Rates:
    """The rates at which the shapes were computed; eager's products at the rate of bare ones."""
    directions = 2e3 * eager.batch**2  # with milliseconds to seconds
    return Rates(
        {loss: 1e3 * one.product / one.forward for loss, one in fused.items()},
        {loss: 3e3 * one.product / one.backward for loss, one in fused.items()},
        matrix,
        {
            FORWARD: (eager.forward - 1e3 * eager.product / matrix) / directions,
            BACKWARD: (eager.backward - 2e3 * eager.product / matrix) / directions,
        },
    )


@dataclass(frozen=True)
class Chip:
    name: str
    copy: float
    """GB/s, read and written."""
    memory: float
    """GB; of the data sheet."""
    rates: Mapping[str, Rates]


# In float32 the sigmoid was not measured: its rates are the softmax's, an assumption.
_FLOAT32 = Measured(4096, 768, 3.65, 8.8)
H200 = Chip(
    "H200",
    4254.0,
    141.0,
    {
        "bfloat16": _rates(
            {SOFTMAX: Measured(65536, 768, 18.1, 79.9), SIGMOID: Measured(16384, 768, 1.21, 3.01, one_sweep=True)},
            Measured(16384, 768, 12.6, 36.7),
            803.0,
        ),
        "float32": _rates(
            {SOFTMAX: _FLOAT32, SIGMOID: _FLOAT32},
            Measured(4096, 768, 0.96, 2.77),
            2e-9 * 4096**2 * 768 / 0.53,
        ),
    },
)
# What else was measured there, to hold the model to it.
HELD = {
    SOFTMAX: (Measured(16384, 768, 1.27, 5.0), Measured(65536, 768, 18.1, 79.9)),
}


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's ways to send, in microseconds and GB/s, as NCCL itself predicts its rings.

    Source: github.com/NVIDIA/nccl, src/graph/tuning.cc at b6475625: base and hardware latencies of rings, network post
    overhead of an Intel host (1 us, three times for Simple), bandwidth of LL on Hopper and between more than two nodes.
    """

    name: str
    base: float
    nvlink: float
    net: float
    posted: float
    share: float
    """Of the bandwidth that Simple reaches."""
    most_inside: float = float("inf")
    most_between: float = float("inf")


LL = Protocol("LL", 6.6, 0.6, 2.7, 1.0, 1 / 4, 87.7, 20.4)
LL128 = Protocol("LL128", 14.0, 1.9, 4.0, 1.0, 0.92)
SIMPLE = Protocol("Simple", 8.4, 3.4, 14.0, 3.0, 1.0)
PROTOCOLS = (LL, LL128, SIMPLE)
# Microseconds for each message of an all-to-all: NCCL's post overhead. That nothing else is paid is an assumption.
POST = 1.0


@dataclass(frozen=True)
class Network:
    """GB/s, in one direction."""

    name: str
    described: str
    node: int
    """Ranks that NVLink joins."""
    nvlink: float
    nics: int
    """Of a node."""
    nic: float
    logarithmic: bool = False
    """Collectives take a number of steps between nodes that grows with their logarithm, not with the ranks."""


# 450 GB/s is NVLink 4's line rate; NCCL gets about 370 of it outside of all-reduce (NVIDIA's maintainer in
# github.com/NVIDIA/nccl-tests issue 212), 350 was measured for all-gather, 360 for reduce-scatter (nccl issue 1281).
NVLINK4 = 350.0
# A 400 Gb/s NIC gives 46 to 48 GB/s (NVIDIA's maintainer in nccl-tests issue 290).
NIC400 = 47.0
RAILS = Network("8 x 400 Gb/s", "nodes of 8 GPUs on NVLink 4, a 400 Gb/s link for each GPU", 8, NVLINK4, 8, NIC400)
ONE_LINK = replace(RAILS, name="1 x 400 Gb/s", described="the same nodes with one 400 Gb/s link each", nics=1)
# PAT (arXiv 2506.20252) has such steps. That it serves 8 GPUs of a node at the bandwidth of rings is an assumption.
LOGARITHMIC = replace(
    RAILS, name="8 x 400 Gb/s, logarithmic", described="the first, if latency grew with the logarithm", logarithmic=True
)
NETWORKS = {"rails": RAILS, "one-link": ONE_LINK, "logarithmic": LOGARITHMIC}

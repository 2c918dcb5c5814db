"""What a call costs on the host, without a GPU: operators, launches of kernels, time in units of a small operator.

``python -m tools.host_cost`` runs the losses on a played device (``tools/played_device.py``), forward and backward, on
small tensors. What the host does is real but for the driver's own work and the products, which are a CPU's here. The
unit is the time of ``a * b`` of two small tensors.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when kernels are defined

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels import functional
from tools.played_device import PlayedLauncher, play

VIEWS = frozenset(
    [
        *("alias", "as_strided", "detach", "expand", "numpy_T", "reshape", "select", "slice", "split"),
        *("split_with_sizes", "squeeze", "t", "unbind", "view"),
    ]
)
NEW = frozenset(["empty", "empty_like", "empty_strided", "new_empty"])
NOTHING = frozenset(["contiguous", "to"])  # where there is nothing to do

Step = Callable[[], Any]  # gives a scalar


def operators(function: Callable[[], Any]) -> Counter[str]:
    """PyTorch's operators that a call runs, not counting those within another: ``"view"``, ``"new"`` memory, or by
    name, which are launches."""
    with torch.autograd.profiler.profile() as profile:
        function()
    counts: Counter[str] = Counter()
    for event in profile.function_events:
        parent, name = event.cpu_parent, event.name.partition("::")[2]
        if not event.name.startswith("aten::") or (parent is not None and parent.name.startswith("aten::")):
            continue
        is_view = name in VIEWS or (name in NOTHING and not event.cpu_children)
        counts["view" if is_view else "new" if name in NEW else name] += 1
    return counts


def cases(b: int = 64, d: int = 64) -> dict[str, tuple[Step, list[Tensor]]]:
    """By name: a loss, and what has a gradient."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().requires_grad_()

    images, texts, patches, tokens = leaf(b, d), leaf(b, d), leaf(b, 49, d), leaf(b, 32, d)
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    mask = torch.ones(b, 32, dtype=torch.bool)
    on_triton: dict[str, Any] = {"backend": "triton"}

    def eager() -> Tensor:
        logits = scale * (F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T)
        labels = torch.arange(b)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    return {
        "contrastive_loss": (
            lambda: functional.contrastive_loss(images, texts, logit_scale=scale, **on_triton),
            [images, texts, scale],
        ),
        "sigmoid_loss": (
            lambda: functional.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias, **on_triton),
            [images, texts, scale, bias],
        ),
        "fine_grained_loss": (
            lambda: functional.fine_grained_loss(patches, tokens, mask, logit_scale=scale, **on_triton),
            [patches, tokens, scale],
        ),
        "sparc_loss": (
            lambda: functional.sparc_loss(patches, tokens, mask, logit_scale=scale, **on_triton),
            [patches, tokens, scale],
        ),
        "language_grouped_embeddings": (
            lambda: functional.language_grouped_embeddings(patches, tokens, **on_triton).sum(),
            [patches, tokens],
        ),
        "eager cross-entropies": (eager, [images, texts, scale]),
    }


def timed(function: Callable[[], Any], seconds: float = 0.6) -> float:
    """Microseconds: the first decile, as other work on the machine only ever adds to it."""
    for _ in range(5):
        function()
    found = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.quantiles(found, n=10)[0] * 1e6


def show(name: str, loss: Step, leaves: list[Tensor], unit: float) -> Counter[str]:
    """One line of the table; the operators by name."""

    def both() -> None:
        torch.autograd.grad(loss(), leaves)

    for _ in range(3):  # compiles, and makes tapes
        both()
    PlayedLauncher.count = 0
    both()
    launches = PlayedLauncher.count
    found = operators(both)
    views, new = found.pop("view", 0), found.pop("new", 0)
    forward, whole = timed(loss) / unit, timed(both) / unit
    counts = f"{launches:8d} {found.total():9d} {views:5d} {new:10d}"
    print(f"{name:28s} {forward:7.0f} {whole:8.0f} {counts}")
    return found


def profiled(loss: Step, leaves: list[Tensor]) -> None:
    """Where the time of a case goes."""
    for _ in range(10):
        torch.autograd.grad(loss(), leaves)
    with cProfile.Profile() as profile:
        for _ in range(200):
            torch.autograd.grad(loss(), leaves)
    pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main() -> None:
    """``python -m tools.host_cost [--names] [--profile CASE]``"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=list(cases()), help="show where the time of a case goes")
    parser.add_argument("--names", action="store_true", help="which operators")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    play()
    if arguments.profile:
        profiled(*cases()[arguments.profile])
        return
    a, b = torch.randn(64), torch.randn(64)
    unit = timed(lambda: a * b)
    print(f"{'':28s} forward forward+backward; launches, operators, views, new memory")
    for name, (loss, leaves) in cases().items():
        found = show(name, loss, leaves, unit)
        if arguments.names:
            print("   ", dict(found))


if __name__ == "__main__":
    main()

"""What a call costs on the host, without a GPU: operators, launches of kernels, time in units of a small operator.

``python -m tools.host_cost`` runs the losses on a played device (``tools/played_device.py``), forward and backward, on
small tensors. What the host does is real but for the driver's own work and the products, which are a CPU's here. The
eager backend beside it works on two items, so that its arithmetic takes no time. The unit is the time of ``a * b`` of
two small tensors.
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


def cases(backend: str = "triton", b: int = 64, d: int = 64) -> dict[str, tuple[Step, list[Tensor]]]:
    """By name: a loss, and what has a gradient."""
    generator = torch.Generator().manual_seed(0)
    n_patches, n_tokens = max(2, b * 3 // 4), max(2, b // 2)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().requires_grad_()

    images, texts, patches, tokens = leaf(b, d), leaf(b, d), leaf(b, n_patches, d), leaf(b, n_tokens, d)
    few = leaf(4, 8, d), leaf(4, 6, d)  # whose products, all of them a CPU's here, take no time
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    mask = torch.ones(b, n_tokens, dtype=torch.bool)
    on: dict[str, Any] = {"backend": backend}

    return {
        "contrastive_loss": (
            lambda: functional.contrastive_loss(images, texts, logit_scale=scale, **on),
            [images, texts, scale],
        ),
        "sigmoid_loss": (
            lambda: functional.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias, **on),
            [images, texts, scale, bias],
        ),
        "fine_grained_loss": (
            lambda: functional.fine_grained_loss(patches, tokens, mask, logit_scale=scale, **on),
            [patches, tokens, scale],
        ),
        "sparc_loss": (
            lambda: functional.sparc_loss(patches, tokens, mask, logit_scale=scale, **on),
            [patches, tokens, scale],
        ),
        "filip_loss": (
            lambda: functional.filip_loss(*few, logit_scale=scale, **on),
            [*few, scale],
        ),
        "language_grouped_embeddings": (
            lambda: functional.language_grouped_embeddings(patches, tokens, **on).sum(),
            [patches, tokens],
        ),
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


def both_ways(loss: Step, leaves: list[Tensor]) -> Callable[[], None]:
    """Forward and backward."""

    def both() -> None:
        torch.autograd.grad(loss(), leaves)

    return both


def show(name: str, loss: Step, leaves: list[Tensor], eager: tuple[Step, list[Tensor]], unit: float) -> Counter[str]:
    """One line of the table; the operators by name."""
    both, of_eager = both_ways(loss, leaves), both_ways(*eager)
    for _ in range(3):  # compiles, and makes tapes
        both()
    PlayedLauncher.count = 0
    both()
    launches = PlayedLauncher.count
    found = operators(both)
    views, new = found.pop("view", 0), found.pop("new", 0)
    whole, whole_eager = (min(timed(each), timed(each)) / unit for each in (both, of_eager))
    counts = f"{launches:8d} {found.total():9d} {views:5d} {new:10d}"
    print(f"{name:28s} {timed(loss) / unit:7.0f} {whole:8.0f} {whole_eager:6.0f} {whole / whole_eager:5.2f} {counts}")
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
    print(f"{'':28s} forward, both, eager's both, ratio; launches, operators, views, new memory")
    eager = cases("eager", b=2, d=16)
    for name, (loss, leaves) in cases().items():
        found = show(name, loss, leaves, eager[name], unit)
        if arguments.names:
            print("   ", dict(found))


if __name__ == "__main__":
    main()

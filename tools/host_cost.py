"""What a call costs on the host, without a GPU: operators, kernel launches, and time in units of a small operator.

``python -m tools.host_cost`` plays a device: Triton's kernels are compiled for it and launched by a launcher that does nothing,
on small CPU tensors. So everything that the host does is real but the driver's own work, and results mean nothing. The unit is
the time of ``a * b`` of two small tensors.
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

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

import sparc_kernels
from sparc_kernels import _validate
from sparc_kernels.ops._triton import launch as launch_module

CAPABILITY = 90


class PlayedLauncher:
    """Asks tensors where they lie, as the real one does; launches nothing."""

    calls: list[tuple[Any, ...]] | None = None  # of (grid, arguments), where a test wants to know
    count = 0

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *arguments: Any) -> None:
        PlayedLauncher.count += 1
        found = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments[4:]]
        if PlayedLauncher.calls is not None:
            PlayedLauncher.calls.append((self.name, (x, y, z), stream, found))


class _Utils:
    @staticmethod
    def load_binary(name: str, *_: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class PlayedDriver:
    """What Triton's runtime asks of a driver."""

    launcher_cls = PlayedLauncher
    utils = _Utils()
    device = 0

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def play() -> None:
    """From now on Triton launches on the played device, CPU tensors included."""
    triton.runtime.driver.set_active(PlayedDriver())
    launch_module.unsupported_reason = lambda device, dtype: None
    _validate.can_be_looked_at = lambda tensor: False  # as on a GPU


VIEWS = frozenset(
    "view select slice split split_with_sizes as_strided expand unsqueeze t transpose detach alias permute reshape squeeze "
    "chunk unbind lift_fresh narrow flatten _reshape_alias resolve_conj resolve_neg real".split()
)
NEW = frozenset("empty empty_strided empty_like new_empty".split())


def operators(function: Callable[[], Any]) -> Counter[str]:
    """How many operators a call runs, not counting those within another: ``"view"``, ``"new"`` memory, or by name."""
    with torch.autograd.profiler.profile() as profile:
        function()
    counts: Counter[str] = Counter()
    for event in profile.function_events:
        parent, name = event.cpu_parent, event.name.partition("::")[2]
        if event.name.startswith("aten::") and not (parent is not None and parent.name.startswith("aten::")):
            nothing = name in ("to", "contiguous", "type_as") and not event.cpu_children
            counts["view" if name in VIEWS or nothing else "new" if name in NEW else name] += 1
    return counts


def cases(b: int = 64, d: int = 64) -> dict[str, Callable[[], tuple[Tensor, list[Tensor]]]]:
    """Calls by name: a scalar and what has a gradient."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    images, texts = leaf(b, d), leaf(b, d)
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    patches, tokens = leaf(b, 49, d), leaf(b, 32, d)
    mask = torch.ones(b, 32, dtype=torch.bool)
    f = sparc_kernels.functional
    known: dict[str, Any] = {"backend": "triton"}

    def eager_contrastive() -> Tensor:
        x, y = (torch.nn.functional.normalize(e.float(), dim=-1) for e in (images, texts))
        logits = scale * (x @ y.T)
        labels = torch.arange(b)
        ce = torch.nn.functional.cross_entropy
        return (ce(logits, labels) + ce(logits.T, labels)) / 2

    return {
        "contrastive_loss": lambda: (f.contrastive_loss(images, texts, logit_scale=scale, **known), [images, texts, scale]),
        "sigmoid_loss": lambda: (
            f.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias, **known), [images, texts, scale, bias]
        ),
        "fine_grained_loss": lambda: (
            f.fine_grained_loss(patches, tokens, mask, logit_scale=scale, **known), [patches, tokens, scale]
        ),
        "sparc_loss": lambda: (
            f.sparc_loss(patches, tokens, mask, logit_scale=scale, **known), [patches, tokens, scale]
        ),
        "language_grouped_embeddings": lambda: (
            f.language_grouped_embeddings(patches, tokens, **known), [patches, tokens]
        ),
        "eager contrastive": lambda: (eager_contrastive(), [images, texts, scale]),
    }  # fmt: skip


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", help="a case: show where its time goes")
    parser.add_argument("--names", action="store_true", help="which operators")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    play()
    a, b = torch.randn(64), torch.randn(64)
    unit = timed(lambda: a * b)
    print(f"unit: {unit:.2f} us")
    for name, call in cases().items():
        if arguments.profile and name != arguments.profile:
            continue

        def forward() -> Tensor:
            return call()[0]

        def both() -> None:
            value, leaves = call()
            torch.autograd.grad(value.sum() if value.dim() else value, leaves, materialize_grads=True)

        both()
        if arguments.profile:
            for _ in range(10):
                both()
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(200):
                both()
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
            continue
        PlayedLauncher.count = 0
        both()
        launches = PlayedLauncher.count
        found = operators(both)
        views, new = found.pop("view", 0), found.pop("new", 0)
        one, two = timed(forward), timed(both)
        print(
            f"{name:28s} forward {one:7.0f} us = {one / unit:5.0f}  both {two:7.0f} us = {two / unit:5.0f}  launches {launches:3d} "
            f"operators {found.total()}, views {views}, new {new}"
        )
        if arguments.names:
            print("   ", dict(found))


if __name__ == "__main__":
    main()

"""pytest-benchmark of the fine-grained loss on the CPU: ``python -m pytest benchmarks --benchmark-only``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sparc_kernels as sk
from benchmarks.fine_grained import Setup
from benchmarks.harness import interleaved, peak_memory, quantiles, ratio

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
SHAPES = pytest.mark.parametrize(("batch", "patches"), [(16, 196), (64, 49), (64, 196)])
NAMES = ("fused", "bare_products", "eager", "compiled")

pytestmark = pytest.mark.skipif(sk.available_backends()["cpu"] is not None, reason=str(sk.available_backends()["cpu"]))


@DTYPES
@SHAPES
@pytest.mark.parametrize("name", NAMES)
def bench_forward_backward(benchmark: Callable, name: str, batch: int, patches: int, dtype: torch.dtype) -> None:
    setup = Setup(batch, patches, dtype)
    step = getattr(setup, name)()
    if name == "fused":
        benchmark.extra_info.update(setup.assert_parity(step))
    benchmark.group = f"B={batch} P={patches} L={setup.tokens} D={setup.channels} {dtype}".replace("torch.", "")
    benchmark(step)


@DTYPES
def bench_goals(benchmark: Callable, dtype: torch.dtype) -> None:
    """B = 64, P = 196: at most 1.3 x the bare products, 1.5 x faster than eager, not slower than torch.compile, at most
    5 % of eager's memory. Every ratio is taken within rounds of one run."""
    setup = Setup(64, 196, dtype)
    contenders = {name: getattr(setup, name)() for name in NAMES}
    setup.assert_parity(contenders["fused"])
    times = interleaved(contenders)
    memory = {
        name: peak_memory("benchmarks.fine_grained", name, 64, 196, str(dtype)[6:]) for name in ("fused", "eager")
    }
    benchmark.group = f"goals {dtype}".replace("torch.", "")
    benchmark.extra_info.update({f"{name}_ms": quantiles(seconds)["p50"] for name, seconds in times.items()})
    benchmark.extra_info.update({f"{name}_bytes": used for name, used in memory.items()})
    benchmark.pedantic(contenders["fused"], rounds=3)
    assert ratio(times, "fused", "bare_products") <= 1.3
    assert ratio(times, "eager", "fused") >= 1.5
    assert ratio(times, "compiled", "fused") >= 1.0
    assert memory["fused"] <= 0.05 * memory["eager"]

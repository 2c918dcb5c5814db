"""pytest-benchmark over the harness: ``python -m pytest benchmarks --benchmark-only``; on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.measure.harness import Context, measure
from benchmarks.measure.machine import pick_device, synchronize
from benchmarks.measure.parity import assert_parity, run
from benchmarks.measure.providers import providers
from benchmarks.ops._pairs import paper_shape
from benchmarks.ops.fine_grained import FINE_GRAINED

DEVICE = pick_device("auto")
GPU = DEVICE.type == "cuda"
SHAPES = [(1024, 49), (256, 196), (1024, 196)] if GPU else [(16, 196), (64, 49), (64, 196)]
DTYPES = ["float32", "bfloat16"]
NAMES = ["cuda", "triton", "cpu", "eager", "listing", "compile", "bare_products"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "patches"), SHAPES)
@pytest.mark.parametrize("name", NAMES)
def bench_forward_backward(benchmark: Any, name: str, batch: int, patches: int, dtype: str) -> None:
    case = FINE_GRAINED.case("fine_grained", **paper_shape(batch) | {"patches": patches}, dtype=dtype)
    provider = providers(case.op)[name]
    if not provider.takes_part(case, DEVICE):
        pytest.skip("on a GPU the floor is memory")
    if reason := provider.reason(case, DEVICE):
        pytest.skip(reason)
    inputs, op = case.op.draw(case, DEVICE), provider.build(case)
    if provider.kind != "floor":
        benchmark.extra_info.update(assert_parity(op, case, inputs, provider.kind == "ours"))

    def call() -> None:
        op(inputs) if provider.kind == "floor" else run(op, case, inputs)
        synchronize(DEVICE)

    benchmark.group = str(case)
    benchmark(call)


@pytest.mark.parametrize("dtype", ["bfloat16"] if GPU else DTYPES)
def bench_goals(benchmark: Any, dtype: str) -> None:
    """What the project sets itself at the paper's shape; every ratio is taken within rounds of one run.

    GPU, B = 1024: 70 % of the floor, 8 x faster than eager, 3 x than torch.compile(max-autotune), 1 % of eager's
    memory. CPU, B = 64: at most 1.3 x the bare products, 1.5 x faster than eager, not slower than torch.compile, 5 % of
    eager's memory.
    """
    case = FINE_GRAINED.case("goals", **paper_shape(1024 if GPU else 64), dtype=dtype)
    compiled = "compile_max_autotune" if GPU else "compile"
    context = Context(DEVICE, seconds=2.0 if GPU else 8.0, without=("listing", "bare_products_kept"))
    row = benchmark.pedantic(measure, args=(case, context, (compiled,)), rounds=1)
    contenders, ours = row["contenders"], row["ours"]
    benchmark.group = f"goals {dtype}"
    benchmark.extra_info.update({name: record.get("ms") for name, record in contenders.items()})
    assert ours is not None, contenders
    memory = contenders[ours]["memory_bytes"] / contenders["eager"]["memory_bytes"]
    if GPU:
        assert contenders[ours]["share_of_floor"] >= 0.7
        assert contenders["eager"]["over_ours"] >= 8
        assert contenders[compiled]["over_ours"] >= 3
        assert memory <= 0.01
    else:
        assert contenders["bare_products"]["over_ours"] >= 1 / 1.3
        assert contenders["eager"]["over_ours"] >= 1.5
        assert contenders[compiled]["over_ours"] >= 1
        assert memory <= 0.05

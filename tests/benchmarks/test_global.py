"""The suites of the global losses: who competes, what large batches are held to, how the growth is reported."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch

from benchmarks.measure import parity
from benchmarks.measure.case import BOTH, FORWARD, Case
from benchmarks.measure.parity import ParityError, Truth, assert_parity, run
from benchmarks.measure.peers import part_of
from benchmarks.measure.providers import defined, providers, select
from benchmarks.measure.registry import suites
from benchmarks.ops import _global, contrastive
from benchmarks.ops.contrastive import COMPILED, CONTRASTIVE, SIGMOID
from benchmarks.report import document
from sparc_kernels.functional import _streamed
from tests.benchmarks.test_run import fake_row

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OPS = pytest.mark.parametrize("op", contrastive.OPS, ids=lambda op: op.name)


def small(op: contrastive.Global, **changes: Any) -> Case:
    return op.case(**{"suite": "tests", "batch": 13, "channels": 24, "dtype": "float32"} | changes)


@OPS
@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
def test_chunks_change_nothing(op: contrastive.Global, chunk: int) -> None:
    """Chunks that divide the batch, that do not, and one larger than it; in float64, gradients too."""
    case = small(op, dtype="float64")
    inputs = op.draw(case, CPU)
    chunked = {"contrastive": _global.chunked_contrastive, "sigmoid": _global.chunked_sigmoid}[op.name]
    found = run(lambda x: chunked(x, torch.float64, chunk), case, inputs)
    torch.testing.assert_close(found, run(defined(op, torch.float64), case, inputs), rtol=1e-10, atol=1e-12)


@OPS
@pytest.mark.parametrize("mode", [BOTH, FORWARD])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rivals_on_the_cpu_compute_the_loss(op: contrastive.Global, dtype: str, mode: str) -> None:
    case = small(op, dtype=dtype, mode=mode)
    inputs, truth = op.draw(case, CPU), Truth(case, op.draw(case, CPU))
    served = [p for p in select(case, CPU, (), ()) if p.kind != "floor" and p.reason(case, CPU) is None]
    assert {"eager", "eager_chunked", "listing"} <= {p.name for p in served}
    assert ("open_clip" in {p.name for p in served}) == (part_of("open_clip", "loss") is not None)
    for provider in served:
        assert_parity(provider.build(case), case, inputs, provider.kind == "ours", truth)


@OPS
def test_large_batches_are_held_to_chunks(op: contrastive.Global, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix over the limit is never made for parity, and what is wrong is refused all the same."""
    case = small(op)
    inputs = op.draw(case, CPU)

    def too_much(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(contrastive, "PARITY_BYTES", 13 * 13 * 4 - 1)
    right = providers(op)["listing"].build(case)
    monkeypatch.setattr(type(op), "definition", too_much)
    assert_parity(right, case, inputs, ours=True)
    with pytest.raises(ParityError):
        assert_parity(lambda x: 1.01 * right(x), case, inputs, ours=True)
    monkeypatch.setattr(contrastive, "PARITY_BYTES", 13 * 13 * 4)
    with pytest.raises(MemoryError):
        assert_parity(right, case, inputs, ours=True)


def test_the_truth_of_one_part_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = small(CONTRASTIVE)
    inputs = CONTRASTIVE.draw(case, CPU)
    calls = []

    def counted(*args: Any) -> tuple[torch.Tensor, ...]:
        calls.append(args)
        return run(*args)

    monkeypatch.setattr(parity, "run", counted)
    truth = Truth(case, inputs)
    for _ in range(3):
        assert len(list(truth)) == 1
    assert len(calls) == 1


@OPS
def test_eager_is_spared_what_no_memory_holds(op: contrastive.Global, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PHYS_PAGES": 24 * 2**30 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(contrastive.os, "sysconf", pages.__getitem__)
    large, fits = small(op, batch=32768), small(op, batch=16384)
    for name in ("eager", "compile"):
        assert providers(op)[name].reason(large, CPU) == "it needs about 21 GB, the machine has 26"
        assert providers(op)[name].reason(fits, CPU) is None
        assert providers(op)[name].reason(large, GPU) is None, "its allocator says so itself"


def test_streamed_keeps_nothing_and_leaves_the_setting_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case, usual, seen = small(CONTRASTIVE), _streamed.KEEP_BYTES, []

    def public(self: object, x: object, backend: str) -> None:
        seen.append((_streamed.KEEP_BYTES, backend))
        raise RuntimeError

    streamed = providers(CONTRASTIVE)["streamed"]
    monkeypatch.setattr(contrastive.Contrastive, "public", public)
    with pytest.raises(RuntimeError):
        streamed.build(case)(CONTRASTIVE.draw(case, CPU))
    assert (seen, _streamed.KEEP_BYTES) == ([(0, "cpu")], usual)
    assert streamed.takes_part(small(CONTRASTIVE, batch=5792), CPU)
    assert not streamed.takes_part(small(CONTRASTIVE, batch=5793), CPU), "there ours is streamed"
    assert not streamed.takes_part(case, GPU)
    assert not streamed.takes_part(small(CONTRASTIVE, mode=FORWARD), CPU)


@OPS
def test_peers_say_why_they_do_not_run(op: contrastive.Global, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"contrastive": ("inf_cl", "cut_cross_entropy"), "sigmoid": ("siglip_kernel",)}[op.name]
    case = small(op)
    find = importlib.util.find_spec
    for name in names:
        monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
        assert providers(op)[name].reason(case, GPU) == f"{name} is not installed"
        monkeypatch.setattr(importlib.util, "find_spec", lambda asked: object())
        assert providers(op)[name].reason(case, CPU) == "its kernels need a GPU"
        refused = providers(op)[name].reason(case.but(mode=FORWARD), GPU)
        assert refused == ("it takes multiples of 256 channels" if name == "inf_cl" else None)
        wide = small(op, channels=768)
        refused = providers(op)[name].reason(wide, GPU)
        assert refused == ("its backward takes half precision alone" if name == "cut_cross_entropy" else None)
        for served in (wide.but(dtype="bfloat16"), wide.but(mode=FORWARD)):
            assert providers(op)[name].reason(served, GPU) is None
    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert part_of("no_such_package", "loss") is None


@OPS
def test_the_floor_multiplies_as_often_as_it_says(op: contrastive.Global) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = small(op)
    (floor,) = (provider for provider in providers(op).values() if provider.kind == "floor")
    with FlopCounterMode(display=False) as counter:
        floor.build(case)(op.draw(case, CPU))
    assert counter.get_total_flops() == op.work(case)["flop"] == 2 * op.products * 13 * 13 * 24
    assert op.work(small(op, frozen="first"))["flop"] == 2 * (op.products - 1) * 13 * 13 * 24
    assert op.work(small(op, mode=FORWARD))["flop"] == 2 * 13 * 13 * 24


def test_plans_cover_what_was_promised() -> None:
    for name in ("contrastive", "sigmoid"):
        on_cpu, on_gpu = (suites()[name].plans(device, False) for device in (CPU, GPU))
        shapes = {(p.case["batch"], p.case["channels"], p.case.dtype) for p in on_cpu}
        assert {(4096, 512), (1024, 512), (4096, 768)} == {shape[:2] for shape in shapes}
        assert {"float32", "bfloat16"} == {shape[2] for shape in shapes}
        assert {p.compiled for p in on_gpu} == {COMPILED}
    for device, largest in ((CPU, 32768), (GPU, 131072)):
        growing = suites()["global_scaling"].plans(device, False)
        assert max(p.case["batch"] for p in growing if p.case.op is CONTRASTIVE) == largest
        assert all(p.case.axis == "batch" for p in growing)


def test_growth_is_reported_against_quadratic_work() -> None:
    """Quadratic time is no fault, cubic time and quadratic memory are; every loss has a table of its own."""
    rows = []
    for op, power in ((CONTRASTIVE, 2), (SIGMOID, 3)):
        for batch in (16, 32, 64, 128):
            row = fake_row(small(op, batch=batch, suite="global_scaling", axis="batch"), p50=float(batch**power))
            row["contenders"]["cpu"]["memory_bytes"] = 8 * batch ** (power - 1)
            rows.append(json.loads(json.dumps(row)))
    text = document.document({"device": rows}, set())
    assert "| batch | cpu | 16 to 128 | 2.00 | 1.00 |  |" in text
    assert "| batch | cpu | 16 to 128 | 3.00 | 2.00 | **over 2.1**, **over 1.05** |" in text
    assert text.index("**contrastive**") < text.index("2.00 | 1.00") < text.index("**sigmoid**")

"""The benchmark harness itself: what it refuses, what it records, what its model counts. Nothing here is timed."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.measure import harness
from benchmarks.measure.case import BOTH, FORWARD, Case, Function, Provider, floor_milliseconds
from benchmarks.measure.harness import Context, measure
from benchmarks.measure.machine import CHECKOUT
from benchmarks.measure.parity import ParityError, assert_parity, run
from benchmarks.measure.providers import defined, providers
from benchmarks.measure.registry import ops
from benchmarks.measure.results import check
from benchmarks.measure.timing import fitted_exponent, gpu_sample, graph_times, interleaved, quantiles, ratio
from benchmarks.ops._pairs import PairInputs
from benchmarks.ops.fine_grained import FINE_GRAINED, fine_grained_listing
from sparc_kernels import _dispatch

CPU = torch.device("cpu")
SIZES = {"batch": 3, "patches": 9, "tokens": 5, "channels": 16}
SMALL = FINE_GRAINED.case("tests", **SIZES, dtype="float32")


def cases() -> list[Case]:
    sizes = {op: {axis: SIZES[axis] for axis in op.axes} for op in ops().values()}
    wide = [op.case("tests", **sizes[op], dtype="float32", mode=mode) for op in sizes for mode in (BOTH, FORWARD)]
    return [*wide, SMALL.but(captions="ragged"), SMALL.but(dtype="bfloat16")]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_definition_and_its_backends_agree(case: Case) -> None:
    inputs = case.op.draw(case, CPU)
    for name in ("cpu", "eager"):
        provider = providers(case.op)[name]
        if provider.reason(case, CPU) is None:
            assert_parity(provider.build(case), case, inputs, ours=provider.kind == "ours")


def _scaled(op: Function, factor: float) -> Function:
    return lambda x: op(x) * factor


def test_gradients_in_float16_do_not_vanish() -> None:
    """As those of a mean over a large batch would, were the loss not scaled."""
    case = SMALL.but(dtype="float16")
    inputs = case.op.draw(case, CPU)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        gradients.append(run(_scaled(defined(case.op, dtype), 2.0**-20), case, inputs)[1:])
    for found, expected in zip(*gradients, strict=True):
        assert (found.float() - expected.float()).norm() < 0.05 * expected.float().norm()


def _wrong(case: Case, fault: str) -> Provider:
    right = defined(case.op, torch.float32)

    def op(x: PairInputs) -> Tensor:
        if fault == "value":
            return right(x) * 1.01
        if fault == "nan":
            return right(x) * torch.nan
        return right(dataclasses.replace(x, second=x.second.detach() + 0 * x.second))  # the tokens get no gradient

    return Provider("wrong", "ours", lambda case: op)


@pytest.mark.parametrize(
    ("inside", "served"), [({}, False), ({"float32": "float16"}, True), ({"float16": "bfloat16"}, False)]
)
def test_a_peer_is_held_to_the_precision_it_computes_in(
    inside: dict[str, str], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rounds its inputs to float16; the row says what was allowed."""

    def rounded(x: PairInputs) -> Tensor:
        halves = dataclasses.replace(x, first=x.first.half().float(), second=x.second.half().float())
        return defined(FINE_GRAINED, torch.float32)(halves)

    peer = Provider("rounds", "peer", lambda case: rounded, inside=inside)
    monkeypatch.setattr(harness, "select", lambda *_: [peer])
    row = measure(SMALL, Context(CPU, seconds=0.01, quick=True, memory=False), ())
    record = row["contenders"]["rounds"]
    assert ("ms" in record) == served
    assert ("ParityError" in record.get("failed", "")) != served
    assert (record["computes_in"], record["allowed"]) == (("float16", 0.1) if served else ("float32", 1e-4))


@pytest.mark.parametrize("fault", ["value", "nan", "gradient"])
def test_parity_refuses_a_wrong_provider(fault: str) -> None:
    with pytest.raises(ParityError):
        assert_parity(_wrong(SMALL, fault).build(SMALL), SMALL, FINE_GRAINED.draw(SMALL, CPU), ours=True)


def test_a_wrong_or_failing_provider_is_recorded_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(case: Case) -> None:
        raise RuntimeError("out of memory, say")

    wrong = _wrong(SMALL, "value")
    failing = Provider("failing", "eager", explode)
    refusing = Provider("refusing", "ours", lambda case: defined(case.op, torch.float32), lambda *_: "not today")
    others = [wrong, failing, refusing, providers(FINE_GRAINED)["eager"]]
    monkeypatch.setattr(harness, "select", lambda *_: others)
    row = measure(SMALL, Context(CPU, seconds=0.01, quick=True, memory=False), ())
    check(row)
    contenders = row["contenders"]
    assert "ParityError" in contenders["wrong"]["failed"]
    assert "out of memory, say" in contenders["failing"]["failed"]
    assert contenders["refusing"]["unsupported"] == "not today"
    assert contenders["eager"]["ms"]["p50"] > 0
    assert row["ours"] is None
    assert "over_ours" not in contenders["eager"]


def test_a_row_has_what_a_sceptic_asks_for() -> None:
    context = Context(CPU, seconds=0.01, quick=True, commit="abc")
    row = measure(SMALL, context, ())
    check(row)
    assert {"device", "driver", "torch", "triton", "commit", "date", "sources"} <= set(row["environment"])
    assert row["environment"]["commit"] == "abc"
    assert row["roofs"]["copy_gb_per_s"] > 0
    assert row["model"]["floor_ms"] > 0
    eager = row["contenders"]["eager"]
    assert {"kind", "ms", "rounds", "parity", "memory_bytes", "share_of_floor"} <= set(eager)
    assert "interpreter" in row["contenders"]["triton"]["unsupported"]
    if row["ours"]:
        assert row["ours"] == "cpu"
        assert eager["over_ours"] > 0


@pytest.mark.parametrize("case", cases()[::2], ids=str)
def test_ours_is_what_auto_takes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert harness.taken_by_auto(case, CPU) == "cpu"
    monkeypatch.setattr(_dispatch, "_first_that_serves", lambda *call: "triton")
    assert harness.taken_by_auto(case, CPU) == "triton"
    records = {"cuda": {"kind": "ours"}, "triton": {"kind": "ours"}, "eager": {"kind": "eager"}}
    assert harness.chosen(records, records, "triton") == "triton"
    assert harness.chosen(records, records, "eager") == "cuda"


def test_benchmarks_use_what_users_use() -> None:
    """The public API, references, the doctor's build information, what ``auto`` takes, the trainer; no kernel."""
    allowed = re.compile(r"sparc_kernels(\._native|\._dispatch|\.ops\.\w+\.reference|\.functional|\.train(\.\w+)?)?$")
    for path in sorted((CHECKOUT / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = (
                    [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "sparc_kernels" else []
                )
                names = names or [str(node.module)]
            for name in names:
                assert not name.startswith("sparc_kernels") or allowed.match(name), f"{path.name} imports {name}"


def test_the_model_of_bytes_and_flop() -> None:
    """B/16 at L = 55, D = 512 in bf16: 771 kB and 88 Mflop of products per pair, and what L^2 P adds."""
    case = FINE_GRAINED.case("tests", batch=1, patches=196, tokens=55, channels=512, dtype="bfloat16")
    work = FINE_GRAINED.work(case)
    assert work["bytes"] == 3 * (55 + 196) * 512 * 2
    assert work["flop"] == 16 * 55 * 196 * 512 + 8 * 55**2 * 196
    forward = FINE_GRAINED.work(case.but(mode=FORWARD))
    assert forward["bytes"] == work["bytes"] / 3
    assert forward["flop"] == 4 * 55 * 196 * 512 + 2 * 55**2 * 196
    assert floor_milliseconds({"bytes": 3e9, "flop": 1e9}, {"copy_gb_per_s": 3.0, "matrix_gflop_per_s": 10.0}) == (
        pytest.approx(1000),
        "memory",
    )
    ragged = FINE_GRAINED.work(case.but(batch=64, captions="ragged"))
    assert ragged["flop"] < 64 * work["flop"]


def test_the_listing_is_the_definition_where_it_is_defined() -> None:
    case = SMALL.but(captions="ragged")
    inputs = FINE_GRAINED.draw(case, CPU)
    assert_parity(providers(FINE_GRAINED)["listing"].build(case), case, inputs, ours=True)
    constant = torch.ones(1, 4, 8)
    loss = fine_grained_listing(constant, torch.randn(1, 3, 8), None, inputs.scale)
    assert loss.isnan(), "0/0 on equal similarities, as published"


def test_forward_leaves_no_graph_behind() -> None:
    case = SMALL.but(mode=FORWARD)
    (result,) = run(defined(case.op, torch.float32), case, FINE_GRAINED.draw(case, CPU))
    assert not result.requires_grad


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_fit_recovers_an_exponent(exponent: float) -> None:
    sizes = [8, 16, 32, 64, 128, 256]
    values = [1e-3 * size**exponent for size in sizes]
    values[0] = values[1] = 10.0  # a fixed cost at small sizes does not enter
    assert fitted_exponent(sizes, values) == pytest.approx(exponent)
    assert fitted_exponent(sizes[:2], values[:2]) is None


def test_timing_calls_everything_equally_often() -> None:
    calls = {"a": 0, "b": 0}

    def counted(name: str) -> None:
        calls[name] += 1

    times = interleaved({name: partial(counted, name) for name in calls}, CPU, seconds=0.0, least=5, most=5)
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5}
    assert calls["a"] == calls["b"]


class FakeDevice:
    """Stands for ``torch.cuda``: every call takes 2 ms, a replay as long as the calls that its graph holds."""

    def __init__(self) -> None:
        self.now, self.captured, self.capturing = 0.0, 0, False

    def work(self) -> None:
        if self.capturing:
            self.captured += 1
        else:
            self.now += 2.0

    def replay(self) -> None:
        self.now += 2.0 * self.captured

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        class Stream:
            def wait_stream(self, other: object) -> None:
                pass

        @contextmanager
        def graph(_: object) -> Iterator[None]:
            device.capturing = True
            yield
            device.capturing = False

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: device)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


def test_gpu_times_are_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    device.install(monkeypatch)
    assert gpu_sample(device.work, 7) == pytest.approx(2e-3)
    times = interleaved({"a": device.work}, torch.device("cuda"), seconds=0.0, least=3, most=3)
    assert times["a"] == pytest.approx([2e-3] * 3)

    def one_pass() -> None:
        for _ in range(5):
            device.work()

    assert graph_times(one_pass, 5, samples=2) == pytest.approx([2e-3] * 2)


def test_quantiles_and_ratios() -> None:
    assert quantiles([0.001, 0.002, 0.003])["p50"] == 2.0
    assert ratio({"a": [2.0, 4.0, 90.0], "b": [1.0, 2.0, 3.0]}, "a", "b") == 2.0

"""Tapes of plans: what they keep, when they serve, and that nothing is stale."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from sparc_kernels.ops._triton import launch, replay  # noqa: E402
from sparc_kernels.ops._triton.launch import Launch, Step, cdiv, strides  # noqa: E402
from sparc_kernels.ops._triton.replay import Tape, run_plan  # noqa: E402
from tests.conftest import HAS_GPU  # noqa: E402

DEVICE = "cuda" if HAS_GPU else "cpu"
OUTSIDE = torch.ones(8, device=DEVICE)


@triton.jit
def scaled_kernel(p_x, p_shift, p_out, stride_x, N, FACTOR: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o * stride_x, mask=o < N, other=0.0)
    b_shift = tl.load(p_shift + o, mask=o < N, other=0.0)
    tl.store(p_out + o, b_x * FACTOR + b_shift, mask=o < N)


@dataclass(frozen=True)
class Sum:
    """A step that is no launch."""

    result: Tensor
    left: Tensor
    right: Tensor

    def run(self) -> None:
        torch.add(self.left, self.right, out=self.result)


@pytest.fixture(autouse=True)
def plans_built() -> Iterator[list[str]]:
    """Names of the plans, each time that one is built; without tapes from elsewhere."""
    before = dict(replay._tapes)
    replay._tapes.clear()
    BUILT.clear()
    yield BUILT
    replay._tapes.clear()
    replay._tapes.update(before)


BUILT: list[str] = []


def _scaled(x: Tensor, shift: Tensor, out: Tensor, factor: float) -> Launch:
    arguments = {"p_x": x, "p_shift": shift, "p_out": out, **strides(x, "stride_x"), "N": x.shape[0]}
    return Launch(scaled_kernel, (cdiv(x.shape[0], 16),), arguments | {"FACTOR": factor, "BLOCK": 16})


def plan(x: Tensor, shift: Tensor | None, factor: float) -> tuple[tuple[Tensor, ...], list[Step]]:
    """factor (factor x + shift) + x and factor x + shift, by launches, a step, zeros, views and a copy."""
    BUILT.append("plan")
    n = x.shape[0]
    result, first = x.new_empty(n), x.new_empty(n)
    space, other = x.new_empty(3, n), x.new_empty(2, n)
    space[2].zero_()
    shift = space[2] if shift is None else shift.contiguous().view(n)
    steps: list[Step] = [
        _scaled(x, shift, first, factor),
        _scaled(first, space[2], space[1], factor),
        _scaled(x, space[2], other[1], 1.0),
        Sum(result, space[1], other[1]),
    ]
    return (result, first), steps


def truth(x: Tensor, shift: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    first = factor * x + (0 if shift is None else shift)
    return factor * first + x, first


def check(x: Tensor, shift: Tensor | None, factor: float) -> None:
    for found, wanted in zip(run_plan(plan, (x, shift, factor), x), truth(x, shift, factor), strict=True):
        torch.testing.assert_close(found, wanted)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def test_a_kind_is_planned_once() -> None:
    for _ in range(4):
        check(numbers(37), numbers(37), 2.0)
    assert BUILT == ["plan"]


def test_the_first_call_of_a_kind_makes_no_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "RECORDED_FROM", 2)
    for count, tapes in ((1, 0), (2, 1), (2, 1)):
        check(numbers(37), None, 2.0)
        assert len(BUILT) == count
        assert sum(isinstance(tape, Tape) for tape in replay._tapes.values()) == tapes


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: (numbers(41), numbers(41), 2.0), id="shape"),
        pytest.param(lambda: (numbers(37, 2)[:, 0], numbers(37), 2.0), id="stride"),
        pytest.param(lambda: (numbers(37), numbers(37, 2)[:, 0], 2.0), id="stride of what is copied"),
        pytest.param(lambda: (numbers(40)[3:], numbers(37), 2.0), id="alignment"),
        pytest.param(lambda: (numbers(37, dtype=torch.float16), numbers(37, dtype=torch.float16), 2.0), id="dtype"),
        pytest.param(lambda: (numbers(37), None, 2.0), id="none"),
        pytest.param(lambda: (numbers(37), numbers(37), 3.0), id="number"),
        pytest.param(lambda: (numbers(37),) * 2 + (2.0,), id="one tensor twice"),
    ],
)
def test_another_kind_is_planned_anew(other: Any) -> None:
    for count, arguments in ((1, (numbers(37), numbers(37), 2.0)), (2, other()), (2, (numbers(37), numbers(37), 2.0))):
        check(*arguments)
        assert len(BUILT) == count
    check(*other())
    assert len(BUILT) == 2


def test_inputs_that_share_memory() -> None:
    """Their distance is no part of the kind."""
    whole = numbers(200)
    check(whole[:36], whole[36:72], 2.0)
    check(whole[:36], whole[100:136], 2.0)
    assert len(BUILT) == 1


def test_the_plan_is_part_of_the_kind() -> None:
    def other(x: Tensor, shift: Tensor | None, factor: float) -> tuple[tuple[Tensor, ...], list[Step]]:
        return plan(x, shift, factor + 1.0)

    x = numbers(37)
    check(x, None, 2.0)
    torch.testing.assert_close(run_plan(other, (x, None, 2.0), x), truth(x, None, 3.0))


def tensors_in(value: object, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, (str, bytes, int, float, torch.dtype, type)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in (*value, *value.values()):
            yield from tensors_in(each, seen)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each, seen)
    elif type(value).__module__.startswith(("sparc_kernels", "tests")):
        yield from tensors_in(vars(value), seen)


def test_nothing_outlives_a_call() -> None:
    x = numbers(37)
    results = run_plan(plan, (x, None, 2.0), x)
    assert sum(isinstance(tape, Tape) for tape in replay._tapes.values()) == 1
    assert not list(tensors_in(replay._tapes, set()))
    watched = [weakref.ref(each) for each in (x, *results)]
    del x, results
    gc.collect()
    assert [each() for each in watched] == [None] * 3


def adds(x: Tensor) -> tuple[tuple[Tensor, ...], list[Step]]:
    BUILT.append("adds")
    result = x.new_empty(x.shape[0])
    return (result,), [_scaled(x + 1, x, result, 1.0)]


def reads(x: Tensor) -> tuple[tuple[Tensor, ...], list[Step]]:
    BUILT.append("reads")
    result = x.new_empty(x.shape[0])
    return (result,), [_scaled(x, x, result, 1.0 + float(x[0]))]


def keeps(x: Tensor) -> tuple[tuple[Tensor, ...], list[Step]]:
    BUILT.append("keeps")
    result = x.new_empty(x.shape[0])
    return (result,), [_scaled(x, OUTSIDE, result, 1.0)]


def overwrites(x: Tensor) -> tuple[tuple[Tensor, ...], list[Step]]:
    BUILT.append("overwrites")
    result = x.new_empty(x.shape[0]).fill_(3.0)
    return (result,), []


class Held:
    """A step that is no dataclass."""

    def __init__(self, result: Tensor, x: Tensor) -> None:
        self.result, self.x = result, x

    def run(self) -> None:
        self.result.copy_(self.x)


def holds(x: Tensor) -> tuple[tuple[Tensor, ...], list[Step]]:
    BUILT.append("holds")
    result = x.new_empty(x.shape[0])
    return (result,), [Held(result, x)]


def returns_input(x: Tensor) -> tuple[tuple[Tensor, ...], list[Step]]:
    BUILT.append("returns")
    return (x,), []


@pytest.mark.parametrize(
    ("refused", "wanted"),
    [
        (adds, lambda x: 2 * x + 1),
        (reads, lambda x: x * (1 + x[0]) + x),
        (keeps, lambda x: x + 1),
        (overwrites, lambda x: torch.full_like(x, 3.0)),
        (holds, lambda x: x),
        (returns_input, lambda x: x),
    ],
)
def test_what_a_tape_cannot_say_is_planned_each_time(refused: Any, wanted: Any) -> None:
    for _ in range(3):
        x = numbers(8)
        torch.testing.assert_close(run_plan(refused, (x,), x)[0], wanted(x))
    assert len(BUILT) == 4  # once to find out
    assert list(replay._tapes.values()) == [None]


def test_the_oldest_tapes_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_TAPES", 3)
    for n in (5, 6, 7, 8, 5):
        check(numbers(n), None, 2.0)
    assert len(replay._tapes) == 3
    assert len(BUILT) == 5


def test_unsupported_devices_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "unsupported_reason", lambda device, dtype: "no such device")
    with pytest.raises(NotImplementedError, match="no such device"):
        check(numbers(37), None, 2.0)


def test_empty() -> None:
    check(numbers(0), None, 2.0)
    check(numbers(0), numbers(0), 2.0)


@pytest.mark.skipif(not launch.interpreted(), reason="of the interpreter")
def test_the_interpreter_has_no_compiled_kernels() -> None:
    check(numbers(37), None, 2.0)
    (tape,) = replay._tapes.values()
    assert isinstance(tape, Tape)
    assert [step.runner for step in tape.steps if isinstance(step, replay._FrozenLaunch)] == [None] * 3


def test_compiled_launches_get_the_arguments_of_the_plan() -> None:
    """On a played device, in a process without the interpreter: ``tests/played_calls.py`` compares."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.played_calls"]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=root)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "the same" in result.stdout

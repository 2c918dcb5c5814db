"""Compares what reaches Triton's launcher from a tape and from a plan, on a played device.

A script, since under test Triton's interpreter has taken the place of its compiler: ``python -m tests.played_calls``.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
from torch import Tensor

from sparc_kernels import functional
from sparc_kernels.ops._triton import replay
from tools.host_cost import cases
from tools.played_device import STREAM, Call, PlayedLauncher, play

NEVER = 10**9
SMALL = 2**32  # no address is below


def launched(step: Any, recorded_from: int) -> list[Call]:
    """The launches of a step, forward and backward."""
    loss, leaves = step
    replay.RECORDED_FROM = recorded_from
    PlayedLauncher.calls = []
    torch.autograd.grad(loss(), leaves)
    calls, PlayedLauncher.calls = PlayedLauncher.calls, None
    return calls


def same(name: str, planned: list[Call], taped: list[Call], inputs: list[Tensor]) -> None:
    """Kernels, grids and numbers are the same; so are inputs' addresses, others are as aligned and as different."""
    assert [(x.kernel, x.aligned, x.grid) for x in planned] == [(x.kernel, x.aligned, x.grid) for x in taped], name
    known = {x.data_ptr() for x in inputs}
    for one, other in zip(planned, taped, strict=True):
        assert one.stream == other.stream == STREAM
        assert len(one.arguments) == len(other.arguments)
        addresses = [
            (a, b)
            for a, b in zip(one.arguments, other.arguments)
            if isinstance(a, int) and not isinstance(a, bool) and a > SMALL
        ]
        pairs = len(set(addresses))
        assert pairs == len({a for a, _ in addresses}) == len({b for _, b in addresses}), f"{name}: {one.kernel}"
        for index, (a, b) in enumerate(zip(one.arguments, other.arguments, strict=True)):
            where = f"{name}: argument {index} of {one.kernel}: {a} and {b}"
            if isinstance(a, int) and not isinstance(a, bool) and a > SMALL and a not in known:
                assert b > SMALL, where
                assert b not in known, where
                assert (a % 16 == 0) == (b % 16 == 0), where
            else:
                assert a == b, where


def check_alignment() -> None:
    """An input whose address is no multiple of 16 gets another kernel, after a tape for one that is."""
    replay.RECORDED_FROM = 1
    space = torch.randn(64 * 64 + 8).bfloat16()
    texts = torch.randn(64, 64).bfloat16()
    found = []
    for start in (0, 1, 0, 1):
        PlayedLauncher.calls = []
        functional.contrastive_loss(space[start : start + 64 * 64].view(64, 64), texts, backend="triton")
        found.append([x.aligned for x in PlayedLauncher.calls])
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]


def main() -> None:
    play()
    for name, step in cases().items():
        if name.startswith("eager"):
            continue
        planned = launched(step, NEVER)
        assert planned, name
        assert not any(isinstance(tape, replay.Tape) for tape in replay._tapes.values())
        replay._tapes.clear()
        launched(step, 1)  # makes tapes, and compiles from tensors
        assert all(isinstance(tape, replay.Tape) for tape in replay._tapes.values()), name
        taped = launched(step, 1)
        frozen = [x for tape in replay._tapes.values() for x in tape.steps if isinstance(x, replay._FrozenLaunch)]
        assert len(frozen) == len(planned), name
        assert all(x.runner is not None for x in frozen), name
        same(name, planned, taped, step[1])
        replay._tapes.clear()
    check_alignment()
    print("the same launches from tapes and from plans")


if __name__ == "__main__":
    main()

"""Every kernel once on small shapes, forward and backward: what ``compute-sanitizer`` watches.

Functions as people call them, then each registered op, at its largest sizes, with everything that is optional.
``python -m tools.gpu_check.sanitizer_target [--backends cuda] [--share I N]`` prints a line per backend, function or
op, dtype and sizes; with no GPU it takes the CPU backend, as a rehearsal.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.measure.machine import pick_device
from sparc_kernels._dispatch import supports
from sparc_kernels.ops._registration import kernel
from sparc_kernels.ops._room import Entry, Op, Room, rooms
from sparc_kernels.ops._samples import backward_arguments, entry_arguments, forward_arguments, one_tensor


def call(
    room: Room, entry: Entry, backend: str, device: torch.device, dtype: torch.dtype, sizes: Mapping[str, int]
) -> None:
    given = entry_arguments(room, entry, device, dtype, **sizes)
    leaves = {name: x.requires_grad_() for name, x in given.items() if torch.is_tensor(x) and x.is_floating_point()}
    one_tensor(entry.function(**given, backend=backend)).sum().backward()
    for name, leaf in leaves.items():
        if leaf.grad is None or not bool(leaf.grad.isfinite().all()):
            raise AssertionError(
                f"gradient of {name} is missing or not finite: {entry.name}, {backend}, {dtype}, {sizes}"
            )


def call_op(
    room: Room, op: Op, backend: str, device: torch.device, dtype: torch.dtype, sizes: Mapping[str, int]
) -> None:
    """Forward, and backward for all gradients."""
    if reason := supports(room.name, backend, device, dtype):
        raise NotImplementedError(reason)
    given = forward_arguments(room, op, device, dtype, True, **sizes)
    results = kernel(f"{op.name}_forward", backend)(*given.values())
    wanted = next(backward_arguments(op, given, results))
    for grad in kernel(f"{op.name}_backward", backend)(*wanted.values()):
        if bool(grad.isnan().any()):
            raise AssertionError(f"a gradient has NaN: {op.name}, {backend}, {dtype}, {sizes}")


def main(arguments: list[str] | None = None) -> None:
    device = pick_device("auto")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ("cuda", "triton") if device.type == "cuda" else ("cpu",)
    parser.add_argument("--backends", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--share", nargs=2, type=int, default=(0, 1), metavar=("I", "N"), help="every N-th call from the I-th on"
    )
    options = parser.parse_args(arguments)
    first, step = options.share
    if not 0 <= first < step:
        parser.error(f"--share takes I and N with 0 <= I < N, got {first} and {step}")
    served = 0
    calls = []
    for room in rooms():
        for backend in options.backends:
            for dtype in room.dtypes.get(backend, ()):
                where = (backend, device, dtype)
                shapes = ({}, *room.sizes)
                calls += [(each.name, partial(call, room, each), where, x) for each in room.entries for x in shapes]
                calls += [(op.name, partial(call_op, room, op), where, shapes[-1]) for op in room.ops]
    for name, made, where, sizes in calls[first::step]:
        line = f"{where[0]} {name} {where[2]} {dict(sizes)}"
        try:
            made(*where, sizes)
        except NotImplementedError as error:
            print(f"{line}: not usable: {error}", flush=True)
        else:
            served += 1
            print(f"{line}: ok", flush=True)
    if not served:
        raise RuntimeError("no kernel ran")


if __name__ == "__main__":
    main()

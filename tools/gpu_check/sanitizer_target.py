"""Every kernel once on small shapes, forward and backward: what ``compute-sanitizer`` watches.

``python -m tools.gpu_check.sanitizer_target`` prints a line per backend, function, dtype and sizes; with no GPU it
takes the CPU backend, as a rehearsal.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.measure.machine import pick_device
from sparc_kernels.ops._room import Entry, Room, rooms
from sparc_kernels.ops._samples import entry_arguments, one_tensor


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


def main() -> None:
    device = pick_device("auto")
    served = 0
    calls = [
        (room, entry, backend, dtype, sizes)
        for room in rooms()
        for entry in room.entries
        for backend in (("cuda", "triton") if device.type == "cuda" else ("cpu",))
        for dtype in room.dtypes.get(backend, ())
        for sizes in ({}, *room.sizes)
    ]
    for room, entry, backend, dtype, sizes in calls:
        line = f"{backend} {entry.name} {dtype} {dict(sizes)}"
        try:
            call(room, entry, backend, device, dtype, sizes)
        except NotImplementedError as error:
            print(f"{line}: not usable: {error}", flush=True)
        else:
            served += 1
            print(f"{line}: ok", flush=True)
    if not served:
        raise RuntimeError("no kernel ran")


if __name__ == "__main__":
    main()

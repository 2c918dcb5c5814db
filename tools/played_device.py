"""A device that is not there, for Triton: kernels are compiled for it, and launched by a launcher that does nothing.

CPU tensors stand for its memory, so the host's side of a call can be looked at without a GPU. Results mean nothing. To
be used in a process without Triton's interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from sparc_kernels import _validate
from sparc_kernels.ops._triton import launch, replay

CAPABILITY = 90
STREAM = 7


class Call(NamedTuple):
    """What a launcher was called with; addresses for tensors."""

    kernel: str
    aligned: tuple[int, ...]
    """Which arguments the kernel was compiled for as multiples of 16."""
    grid: tuple[int, int, int]
    stream: int
    arguments: list[Any]


class PlayedLauncher:
    """Asks tensors where they lie, as the real one does, and counts."""

    count = 0
    calls: list[Call] | None = None  # a list, where somebody wants to know

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name
        self.aligned = tuple(sorted(index for (index,), found in source.attrs.items() if found))

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *others: Any) -> None:
        PlayedLauncher.count += 1
        arguments = [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in others[4:]]
        if PlayedLauncher.calls is not None:
            PlayedLauncher.calls.append(Call(self.name, self.aligned, (x, y, z), stream, arguments))


class _Utils:
    @staticmethod
    def load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        module, function, registers, spills, most_threads = 1, 1, 32, 0, 1024
        return module, function, registers, spills, most_threads

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class _Driver:
    """What Triton's runtime asks of a driver."""

    launcher_cls = PlayedLauncher
    utils = _Utils()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return STREAM

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def play() -> None:
    """From now on Triton launches on the played device, and the package takes CPU tensors for tensors on it."""
    assert not launch.interpreted(), "kernels are defined for Triton's interpreter: unset TRITON_INTERPRET"
    triton.runtime.driver.set_active(_Driver())
    launch.unsupported_reason = replay.unsupported_reason = lambda device, dtype: None
    _validate.can_be_looked_at = lambda tensor: False  # as on a GPU

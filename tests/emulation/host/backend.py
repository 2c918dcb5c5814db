"""The emulator as a backend of the tests: ``backend="cuda"`` on a device that is played, with tensors on the CPU.

A call goes the whole way that it goes on a GPU: the public API, autograd, the registered op. Only there the kernels are
run by the room's binding, ``tests/ops/<op>/emulated.cpp``, whose functions have the names and the arguments of the
registered ops.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparc_kernels import _dispatch
from tests.emulation.host import build
from tests.emulation.host.run import Server, server

H100_BLOCK, RTX_BLOCK = 227 * 1024, 99 * 1024  # shared memory that a block can have, bytes


@dataclass(frozen=True)
class Device:
    """A device, and one way in which the library computes on it."""

    products: str  # bf16, f16, tf32 or float32
    pair_path: bool = False
    warpgroups: bool = False  # the pair path by their products, where the op has it
    shared_bytes: int = H100_BLOCK
    grid: int = 2
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "f16": torch.float16}.get(self.products, torch.float32)

    def __str__(self) -> str:
        path = "warpgroups" if self.warpgroups else "pair" if self.pair_path else "tiled"
        return f"{self.products}-{path}"


DEVICES = (
    Device("bf16", pair_path=True),
    Device("f16", pair_path=True, shared_bytes=RTX_BLOCK),
    Device("bf16"),
    Device("f16"),
    Device("tf32"),
    Device("float32"),
)
# For ops with products of warpgroups (WarpgroupPasses in csrc/).
WARPGROUP_DEVICES = (
    Device("bf16", pair_path=True, warpgroups=True),
    Device("f16", pair_path=True, warpgroups=True),
)


class Emulated(str):
    """``"cuda"`` for the library; for the tests the device that is played."""

    device: Device

    def __new__(cls, device: Device) -> Emulated:
        backend = super().__new__(cls, "cuda")
        backend.device = device
        return backend


@contextmanager
def played(backend: str) -> Iterator[None]:
    """Emulates the kernels of all registered ops in calls of ``backend="cuda"``; nothing for another backend."""
    if not isinstance(backend, Emulated):
        yield
        return
    with mock.patch.object(_dispatch, "supports", return_value=None), _Kernels(backend.device):
        yield


class _Kernels(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace != "sparc_kernels":
            return op(*args, **(kwargs or {}))
        name = op._schema.name.partition("::")[2]
        given = {argument.name: _packed(value) for argument, value in zip(op._schema.arguments, args)}
        result = _room(name).call(name, given=given, device=asdict(self._device)).unwrap()
        return tuple(_unpacked(array, self._device.dtype) for array in result)


@functools.cache
def _room(op: str) -> Server:
    """The process that emulates the room of a registered op."""
    for source in sorted((build.CHECKOUT / "tests" / "ops").glob("*/emulated.cpp")):
        if f'"{op}"' in source.read_text():
            return server(source)
    raise NotImplementedError(f"no tests/ops/*/emulated.cpp defines {op}")


def _packed(value: Any) -> Any:
    """A tensor as the memory from its first element to its last, and how to walk it."""
    if not isinstance(value, Tensor):
        return value
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())) if value.numel() else 0
    flat = torch.as_strided(value.detach(), (span,), (1,), value.storage_offset()).contiguous()
    buffer = flat.view(torch.uint16) if value.element_size() == 2 else flat
    return {"buffer": buffer.numpy(), "shape": list(value.shape), "strides": list(value.stride())}


def _unpacked(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """16-bit numbers in ``dtype``."""
    found = torch.from_numpy(array)
    return found.view(dtype) if array.dtype == np.uint16 else found

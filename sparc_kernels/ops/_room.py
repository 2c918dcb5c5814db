"""A room's manifest: what everybody who goes through all ops (dispatch, registration, the doctor, tests, tools) knows
of one. ``ops/<op>/room.py`` holds it as ``ROOM``, and is found by lying there.

Names of what must not be imported early are dotted, from the package down: ``"functional.<family>.<function>"``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

OPS = str(__package__)
PACKAGE = OPS.rpartition(".")[0]

# What kernels take as a rule; a room names its own where they take less.
KERNEL_DTYPES = {
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
}

BatchDims = tuple[int | None, ...]  # per argument or result: where its batch dimension is, None for those without one


@dataclass(frozen=True)
class Pass:
    """A registered op: the forward or the backward pass of an :class:`Op`.

    The second result of a forward pass are its statistics, which have no gradient; its last argument is ``str
    float32_precision``. A backward pass takes ``grad_<result>`` for results of the forward pass, arguments and results
    of the forward pass under their own names, ``bool need_<...>`` where it can leave something out, and ``str
    float32_precision``.
    """

    schema: str
    """Arguments and results in PyTorch's schema language, without the name."""
    fake: Callable[..., Any]
    """Of the arguments: empty tensors of the results' shapes."""
    flops: Callable[..., int]
    """Of the arguments: twice the multiplications of the matrix products, for ``FlopCounterMode``."""
    batch_dims: tuple[BatchDims, BatchDims]
    """Of the arguments, and of the results; for ``vmap``."""
    launcher: str
    """The function of the room's ``triton.py``."""


@dataclass(frozen=True)
class Op:
    """A differentiable op: ``sparc_kernels::<name>_forward`` and ``_backward``, for Triton with ``_triton`` behind."""

    name: str
    forward: Pass
    backward: Pass
    derivative: Callable[..., tuple[Tensor | None, ...]]
    """``backward`` of the op's ``torch.autograd.Function``."""
    kept: int = 1
    """How many results of the forward pass, from the second on, have no gradient and are kept for the backward pass:
    the statistics, and what else it can use."""


@dataclass(frozen=True)
class Entry:
    """A public function that the room's ops serve."""

    name: str
    """Dotted."""
    reference: str | None = None
    """Dotted name of its eager definition; None where it is composed of others."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments to try it with, beside those of the room's sample."""

    @property
    def function(self) -> Callable[..., Any]:
        return named(self.name)


@dataclass(frozen=True)
class Room:
    """One op, or some that share their mathematics."""

    name: str
    dtypes: Mapping[str, tuple[torch.dtype, ...]]
    """What the kernels take, by backend; a backend that is not named has no kernel."""
    entries: tuple[Entry, ...]
    sample: Callable[..., dict[str, Any]]
    """Of device, dtype and, by name, sizes: small inputs by argument name, for the entries and the ops; at the default
    sizes away from places where a result jumps."""
    sizes: tuple[Mapping[str, int], ...] = ()
    """Further sizes to run kernels in under a sanitizer: those that take another way through them."""
    ops: tuple[Op, ...] = ()
    triton_first: Mapping[tuple[int, int], Collection[str]] = field(default_factory=dict)
    """By compute capability, the kinds of calls for which its Triton kernels are faster than those in CUDA C++, or
    should be; its functions name the kind of a call to ``resolve``."""

    @cached_property
    def schemas(self) -> tuple[str, ...]:
        """Of all passes, with their names."""
        return tuple(
            f"{op.name}_{name}{each.schema}"
            for op in self.ops
            for name, each in (("forward", op.forward), ("backward", op.backward))
        )

    @property
    def triton(self) -> str:
        """The module of the Triton launchers."""
        return f"{OPS}.{self.name}.triton"


def named(name: str) -> Any:
    """What stands under a dotted name of the package."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute)


@cache
def rooms() -> tuple[Room, ...]:
    """All rooms, those with kernels first: the subfolders of ``ops`` whose names do not start with ``_``."""
    folders = pkgutil.iter_modules(sys.modules[OPS].__path__)
    names = [folder.name for folder in folders if folder.ispkg and not folder.name.startswith("_")]
    found = [importlib.import_module(f"{OPS}.{name}.room").ROOM for name in names]
    return tuple(sorted(found, key=lambda room: (not room.dtypes, room.name)))

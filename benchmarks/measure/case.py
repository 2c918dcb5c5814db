"""What is measured: a case is an op, a direction, sizes and a dtype; the op draws its inputs and counts its work.

An op is a file of ``benchmarks/ops`` (docs/adding_an_op.md): it derives :class:`Op` and its :class:`Inputs`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Case:
    """``sizes`` by the op's axes; ``labels``: what else the op has to know, in words.

    ``frozen``: the leaf that needs no gradient, or empty. ``axis`` names the size (or the circumstance) that a suite
    varies, and is empty elsewhere.
    """

    suite: str
    op: Op
    sizes: Mapping[str, int]
    dtype: str = "bfloat16"
    mode: str = BOTH
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frozen: str = ""
    axis: str = ""
    preset: str = ""

    def __getitem__(self, axis: str) -> int:
        return self.sizes[axis]

    def to_dict(self) -> dict[str, Any]:
        """Flat, as in a result file; what is empty is left out."""
        values = {"suite": self.suite, "op": self.op.name, **self.sizes, "dtype": self.dtype, "mode": self.mode}
        values |= {**self.labels, "frozen": self.frozen, "axis": self.axis, "preset": self.preset}
        return {name: value for name, value in values.items() if value not in ("", 0)}

    def but(self, **changes: Any) -> Case:
        """The same case with other values, named as in a result file."""
        op: Op = changes.pop("op", self.op)
        return op.case(**{name: value for name, value in {**self.to_dict(), **changes}.items() if name != "op"})

    def small(self, batch: int) -> Case:
        """A case that is refused or served for the same reasons, and that starts threads and loads code at once."""
        sizes = {name: min(size, self.op.warm_up.get(name, size)) for name, size in self.sizes.items()}
        return self.op.case(
            self.suite, dtype=self.dtype, mode=self.mode, frozen=self.frozen, **{**sizes, "batch": batch}
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        kind = getattr(torch, self.dtype)
        assert isinstance(kind, torch.dtype)
        return kind

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    def __str__(self) -> str:
        parts = [self.op.name, self.preset, *(f"{self.op.axes[name]}={size}" for name, size in self.sizes.items())]
        parts += [self.dtype, self.mode]
        parts += [value for name, value in self.labels.items() if value != self.op.labels[name]]
        return " ".join([*filter(None, parts), *([f"{self.frozen} frozen"] if self.frozen else [])])


class Inputs(ABC):
    """What one call takes. An op derives a dataclass of its own, with a field for each tensor."""

    upstream: Tensor | None  # gradient of a result that is no scalar

    @abstractmethod
    def sides(self) -> dict[str, Tensor]:
        """What the op's gradients belong to, by the name that a case's ``frozen`` uses."""

    def freeze(self, frozen: str) -> None:
        for name, side in self.sides().items():
            side.requires_grad_(name != frozen)

    def leaves(self) -> dict[str, Tensor]:
        """The sides that need a gradient."""
        return {name: side for name, side in self.sides().items() if side.requires_grad}

    @property
    def input_bytes(self) -> int:
        return sum(side.nbytes for side in self.sides().values())


Function = Callable[[Any], Tensor]  # of an op's inputs


def serves(case: Case, device: torch.device) -> str | None:
    return None


def one_size(case: Case, device: torch.device) -> bool:
    """Not where a suite varies something: there our backends, eager and what an op names are compared."""
    return not case.axis


@dataclass(frozen=True)
class Provider:
    """``reason`` is None where the provider can serve the case; ``build`` may take long (it compiles).

    Every kind but ``floor`` computes the op and is held to the definition before it is timed; a floor is a part of the
    work and nothing else. ``takes_part`` is False where the provider has nothing to do with the case, which is not
    worth a line of a report. ``label`` heads its column of a report (empty: it has none), ``note`` explains it there.
    ``inside``: the precision it computes in, by the dtype of its inputs, where it is another one.
    """

    name: str
    kind: str  # ours, eager, compile, listing (as a paper prints it), peer or floor
    build: Callable[[Case], Function]
    reason: Callable[[Case, torch.device], str | None] = serves
    takes_part: Callable[[Case, torch.device], bool] = lambda case, device: True
    label: str = ""
    note: str = ""
    inside: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Op(ABC):
    """One op, as a file of ``benchmarks/ops`` describes it.

    ``axes``: its sizes, ``batch`` among them, and the letters that tables put over them. ``sorted_by``: the sizes by
    which rows are sorted. ``labels``: what else a case says, each with what it is unless told. ``sides``: names of its
    inputs' sides in tables. ``warm_up``: the most of each size in a call that only starts threads and loads code.
    ``contenders``: who takes part beside our backends, eager and torch.compile.
    """

    axes: ClassVar[Mapping[str, str]]
    sorted_by: ClassVar[tuple[str, ...]]
    labels: ClassVar[Mapping[str, str]] = {}
    sides: ClassVar[Mapping[str, str]] = {}
    warm_up: ClassVar[Mapping[str, int]] = {}
    contenders: ClassVar[tuple[Provider, ...]] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def case(self, suite: str, **values: Any) -> Case:
        """A case of this op from sizes, labels and the fields of :class:`Case`, by name."""
        sizes = {name: values.pop(name) for name in self.axes if name in values}
        labels = {name: values.pop(name, usual) for name, usual in self.labels.items()}
        return Case(suite, self, sizes, labels=labels, **values)

    @abstractmethod
    def draw(self, case: Case, device: torch.device, seed: int = 0) -> Inputs:
        """Random inputs, in the case's own dtype; sides that are not frozen need a gradient."""

    @abstractmethod
    def work(self, case: Case) -> dict[str, float]:
        """The fewest ``bytes`` and ``flop`` that any implementation in linear memory needs (ops/*/MATH.md).

        Every input is read once per direction and every gradient written once. Of the products only those count that
        are left where nothing is computed twice.
        """

    @abstractmethod
    def definition(self, x: Any, compute_dtype: torch.dtype) -> Tensor:
        """The shipped reference, computing in ``compute_dtype``."""

    def truth(self, x: Any, compute_dtype: torch.dtype) -> Tensor:
        """What all are held to: the definition, unless an op computes it otherwise where that takes less memory."""
        return self.definition(x, compute_dtype)

    def too_large(self, case: Case, device: torch.device) -> str | None:
        """Why the definition cannot be run, where it would take more memory than there is."""
        return None

    @abstractmethod
    def public(self, x: Any, backend: str) -> Tensor:
        """The public function on an explicit backend: it serves or raises, and never falls back."""

    def parts(self, x: Any) -> Iterator[tuple[slice, Any, float]]:
        """Parts of the batch whose weighted results are the result of all: for a definition that needs much memory."""
        yield slice(None), x, 1.0


def floor_milliseconds(work: dict[str, float], roofs: dict[str, float]) -> tuple[float, str]:
    """The time below which the machine's own rates allow nothing, and which of the two rates sets it."""
    memory = work["bytes"] / (roofs["copy_gb_per_s"] * 1e6)
    arithmetic = work["flop"] / (roofs["matrix_gflop_per_s"] * 1e6)
    return max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic"

"""Plans are built once per kind of call: after that a call allocates, fills in addresses and launches.

What a plan does follows from shapes, strides, dtypes, flags and the device, and from addresses only as far as Triton
specialises on them (multiples of 16) and as inputs can be one and the same. A tape is a plan with the addresses left
open. It holds numbers and compiled kernels and no tensor, so nothing lives longer than its call.

A plan is watched while it is built. If it does more than allocate, take views, copy and write zeros, or makes steps
that a tape cannot hold, it is built at each call.

Launches go through ``compiled[grid](*arguments)`` of the kernel that ``function[grid](...)`` returned, as in Triton's
tutorial of a fused softmax, with addresses for tensors. That leaves out binding the arguments and looking up what they
were specialised on, which takes longer than everything else about a launch; a tape is what stands in for the look-up.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import driver

from sparc_kernels.ops._triton.launch import Launch, Step, interpreted, run_all, unsupported_reason, with_scratch

Plan = Callable[..., tuple[tuple[Tensor, ...], Iterable[Step]]]

MULTIPLE = 16  # of bytes: what Triton asks of an address
RECORDED_FROM = 2  # A kind of call that comes once is not worth a tape: the first call of a kind just runs.
MOST_TAPES = 2048  # then the oldest go

_SPACE = 256  # workspaces start at multiples of it
_NEW = frozenset(
    (torch.ops.aten.new_empty, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided)
)
_CONSTANTS = (int, float, bool, str, type(None), torch.dtype)
_tapes: dict[Any, Tape | int | None] = {}  # None: not to be replayed; a number: how often the kind has been seen


class _NoTape(Exception):
    """A step of a kind that a tape cannot hold."""


class Place(NamedTuple):
    """Where a tensor of a plan lies: so many bytes into an input, a result or the workspace, in this order."""

    root: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, roots: list[Tensor]) -> Tensor:
        """The tensor there."""
        root = roots[self.root]
        if root.dtype != self.dtype:
            root = root.view(self.dtype)
        return root.as_strided(self.shape, self.stride, root.storage_offset() + self.offset // self.dtype.itemsize)


class _Watch(TorchDispatchMode):
    """Notes from which input or allocation each tensor comes that a plan makes, and what it does beside making some."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.origins = {id(x): x for x in inputs}
        self.kept = list(inputs)  # an id is one as long as its tensor lives
        self.new: list[Tensor] = []
        self.zeroed: list[Tensor] = []
        self.copied: list[tuple[Tensor, Tensor]] = []  # copy, original
        self.refused: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        source = self.origins.get(id(args[0])) if args else None
        if func is torch.ops.aten.zero_.default and source is not None:
            self.zeroed.append(args[0])
            return found
        tensors = found if isinstance(found, (list, tuple)) else [found]
        for x in tensors:
            if func.overloadpacket in _NEW or (func is torch.ops.aten.clone.default and source is not None):
                self.origins[id(x)] = x
                self.new.append(x)
                if func is torch.ops.aten.clone.default:
                    self.copied.append((x, args[0]))
            elif source is not None and isinstance(x, Tensor) and _is_view(func, x, args[0]):
                self.origins[id(x)] = source
            else:
                self.refused = func.name()
        self.kept += [*tensors, *args[:1]]
        return found


def _is_view(func: Any, x: Tensor, of: Tensor) -> bool:
    return not func._schema.is_mutable and x.untyped_storage()._cdata == of.untyped_storage()._cdata


class _FrozenLaunch:
    """A launch with its addresses left open."""

    def __init__(self, launch: Launch, place: Callable[[Tensor], Place]) -> None:
        names = launch.kernel.arg_names
        values = [launch.arguments[name] for name in names]
        self.places = {name: place(value) for name, value in zip(names, values) if isinstance(value, Tensor)}
        self.launch = dataclasses.replace(
            launch, arguments={name: None if name in self.places else value for name, value in zip(names, values)}
        )
        self.values = list(self.launch.arguments.values())
        if not all(isinstance(value, (*_CONSTANTS, tl.dtype)) for value in self.values):
            raise _NoTape
        self.slots = [(names.index(name), each.root, each.offset) for name, each in self.places.items()]
        self.runner: Callable[..., None] | None = None

    def run(self, roots: list[Tensor], addresses: list[int], stream: int | None) -> None:
        runner = self.runner
        if runner is not None:
            values = self.values.copy()
            for index, root, offset in self.slots:
                values[index] = addresses[root] + offset
            runner(*values, stream=stream)
            return
        tensors = {name: each.tensor(roots) for name, each in self.places.items()}
        compiled = dataclasses.replace(self.launch, arguments=self.launch.arguments | tensors).run()
        if compiled is not None:  # no interpreter
            self.runner = compiled[(*self.launch.grid, 1, 1)[:3]]


class _FrozenStep:
    """Another step, a dataclass with tensors among its fields, which are left open."""

    def __init__(self, step: Any, place: Callable[[Tensor], Place]) -> None:
        if not dataclasses.is_dataclass(step):
            raise _NoTape
        self.make: Callable[..., Any] = type(step)
        values = {each.name: getattr(step, each.name) for each in dataclasses.fields(step)}
        self.places = {name: place(value) for name, value in values.items() if isinstance(value, Tensor)}
        self.values = {name: value for name, value in values.items() if name not in self.places}
        if not all(isinstance(value, _CONSTANTS) for value in self.values.values()):
            raise _NoTape

    def run(self, roots: list[Tensor], addresses: list[int], stream: int | None) -> None:
        self.make(**self.values, **{name: each.tensor(roots) for name, each in self.places.items()}).run()


class Tape:
    """A plan with its addresses left open."""

    def __init__(self, inputs: list[Tensor], watch: _Watch, results: tuple[Tensor, ...], steps: list[Step]) -> None:
        self.results = [(x.shape, x.dtype) for x in results]
        indices = {id(x): i for i, x in enumerate((*inputs, *results))}
        offsets: dict[int, int] = {}
        self.space = 0
        for x in watch.new:
            if id(x) not in indices:
                offsets[id(x)] = self.space
                self.space += -(-max(1, x.untyped_storage().nbytes()) // _SPACE) * _SPACE
        workspace = len(inputs) + len(results)

        def place(x: Tensor) -> Place:
            origin = watch.origins.get(id(x))
            if origin is None:  # a tensor that is no argument, kept from elsewhere
                raise _NoTape
            first = int(origin.storage_offset()) * origin.dtype.itemsize
            offset = int(x.storage_offset()) * x.dtype.itemsize - first
            index = indices.get(id(origin), workspace)
            return Place(index, offset + offsets.get(id(origin), 0), tuple(x.shape), x.stride(), x.dtype)

        self.zeroed = [place(x) for x in watch.zeroed]
        self.copied = [(place(x), place(original)) for x, original in watch.copied]
        self.steps: list[_FrozenLaunch | _FrozenStep] = []
        for step in steps:
            if not isinstance(step, Launch):
                self.steps.append(_FrozenStep(step, place))
            elif all(step.grid):
                self.steps.append(_FrozenLaunch(step, place))

    def run(self, inputs: list[Tensor], addresses: list[int], like: Tensor) -> tuple[Tensor, ...]:
        """The results, queued on the current stream of the device of ``like``; ``addresses``: of the inputs."""
        results = tuple([like.new_empty(shape, dtype=dtype) for shape, dtype in self.results])
        roots = [*inputs, *results]
        if self.space:
            roots.append(like.new_empty(self.space, dtype=torch.uint8))
        addresses = addresses + [x.data_ptr() for x in roots[len(inputs) :]]
        new = addresses[len(inputs) :]
        assert not any(address % MULTIPLE for address in new), f"memory of PyTorch's that is not aligned: {new}"
        for each in self.zeroed:
            each.tensor(roots).zero_()
        for copy, original in self.copied:
            copy.tensor(roots).copy_(original.tensor(roots))
        stream = None if interpreted() else driver.active.get_current_stream(driver.active.get_current_device())
        with_scratch(lambda: [step.run(roots, addresses, stream) for step in self.steps])
        return results


def _on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    if not tensor.is_cuda or torch.cuda.current_device() == tensor.get_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def run_plan(plan: Plan, args: tuple[Any, ...], like: Tensor, config: Any = None) -> tuple[Tensor, ...]:
    """The results of ``plan(*args)``, whose steps are queued on the current stream of the device of ``like``; with a
    ``config`` those of ``plan(*args, config=config)``, which is not kept.

    ``plan`` is the same object at each call, and what it does may depend on nothing but its arguments: of tensors on
    shape, stride, dtype, device, on whether their address is a multiple of 16 and on which of them share one.
    """
    if config is not None:
        results, steps = plan(*args, config=config)
        run_all(steps, like)
        return results
    inputs: list[Tensor] = []
    addresses: list[int] = []
    kind: list[Any] = [plan, like.get_device()]
    for x in args:
        if isinstance(x, Tensor):
            address = x.data_ptr()
            inputs.append(x)
            addresses.append(address)
            kind += (x.dtype, x.shape, x.stride(), address % MULTIPLE == 0)
        else:
            kind.append(x)
    if len(set(addresses)) < len(addresses):
        kind.append(tuple([addresses.index(address) for address in addresses]))
    key = tuple(kind)
    tape = _tapes.get(key, 0)
    if isinstance(tape, Tape):
        with _on_device(like):
            return tape.run(inputs, addresses, like)
    if tape is None or tape + 1 < RECORDED_FROM:
        if tape is not None:
            _remember(key, tape + 1)
        results, steps = plan(*args)
        run_all(steps, like)
        return results
    tape = _recorded(plan, args, inputs, like)
    _remember(key, tape)
    if tape is None:
        return run_plan(plan, args, like)
    with _on_device(like):
        return tape.run(inputs, addresses, like)


def _remember(key: Any, tape: Tape | int | None) -> None:
    while len(_tapes) >= MOST_TAPES:
        _tapes.pop(next(iter(_tapes)), None)
    _tapes[key] = tape


def _recorded(plan: Plan, args: tuple[Any, ...], inputs: list[Tensor], like: Tensor) -> Tape | None:
    """None where the plan does more than a tape can say."""
    reason = unsupported_reason(like.device, like.dtype)
    if reason is not None:
        raise NotImplementedError(reason)
    with _Watch(inputs) as watch:
        results, steps = plan(*args)
        steps = list(steps)
    fresh = {id(x) for x in watch.new}
    if watch.refused is not None or not all(id(x) in fresh and x.is_contiguous() for x in results):
        return None
    try:
        return Tape(inputs, watch, results, steps)
    except _NoTape:
        return None

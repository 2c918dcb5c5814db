"""What every room's functions and ops have to satisfy, tried with the room's own sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparc_kernels.ops import _samples
from sparc_kernels.ops._registration import kernel
from sparc_kernels.ops._room import Entry, Op, Room, named, rooms
from tests.conftest import BACKENDS, device_of

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


def backends_of(room: Room) -> list[Any]:
    """Those that serve the room, as parameters with their marks."""
    parameters = [backend if hasattr(backend, "values") else pytest.param(backend) for backend in BACKENDS]
    return [x for x in parameters if x.values[0] == "eager" or x.values[0] in room.dtypes]


def _each(things: Callable[[Room], tuple[Any, ...]], fused: bool = False, only: tuple[str, ...] = ()) -> list[Any]:
    """(room, thing, backend) of all rooms as parameters: the fused backends, or those in ``only``, or all."""
    return [
        pytest.param(room, thing, x.values[0], marks=x.marks, id=f"{thing.name.rpartition('.')[2]}-{x.values[0]}")
        for room in rooms()
        for thing in things(room)
        for x in backends_of(room)
        if not (fused and x.values[0] == "eager") and (not only or x.values[0] in only)
    ]


entries = pytest.mark.parametrize("room, entry, backend", _each(lambda room: room.entries))
fused_entries = pytest.mark.parametrize("room, entry, backend", _each(lambda room: room.entries, fused=True))
# For what the registration of the ops does, which is the same for Triton's, in whose interpreter it would take long.
native_entries = pytest.mark.parametrize("room, entry, backend", _each(lambda room: room.entries, only=("cpu", "cuda")))
fused_ops = pytest.mark.parametrize("room, op, backend", _each(lambda room: room.ops, fused=True))


def arguments_of(room: Room, entry: Entry, backend: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return _samples.entry_arguments(room, entry, torch.device(device_of(backend)), dtype)


def floating(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()}


def prepared(
    room: Room, entry: Entry, backend: str, dtype: torch.dtype = torch.float32
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The function of its floating tensors alone, and them, which require gradients."""
    arguments = arguments_of(room, entry, backend, dtype)
    leaves, public = floating(arguments), entry.function

    def function(*values: Tensor) -> Tensor:
        return _samples.one_tensor(public(**arguments | dict(zip(leaves, values)), backend=backend))

    return function, tuple(x.requires_grad_() for x in leaves.values())


@pytest.mark.parametrize("room", rooms(), ids=lambda room: room.name)
def test_a_room_is_whole(room: Room) -> None:
    """It is named after its folder, serves somebody, and can be tried in every dtype that it says."""
    assert room.entries
    assert bool(room.ops) == bool(room.dtypes)
    for dtype in {torch.float64, *(x for dtypes in room.dtypes.values() for x in dtypes)}:
        tensors = floating(room.sample(torch.device("cpu"), dtype))
        assert dtype in {x.dtype for x in tensors.values()}
    for op in room.ops:
        assert isinstance(_samples.forward_arguments(room, op, torch.device("cpu"), torch.float32), dict)


@pytest.mark.parametrize("room, entry, backend", _each(lambda room: room.entries, only=("eager",)))
def test_eager_is_the_reference(room: Room, entry: Entry, backend: str) -> None:
    if entry.reference is None:
        pytest.skip("composed of others")
    arguments = arguments_of(room, entry, backend, torch.float64)
    expected = named(entry.reference)(**{name: x for name, x in arguments.items() if name not in entry.options})
    found = entry.function(**arguments, backend=backend)
    torch.testing.assert_close(*map(_samples.one_tensor, (found, expected)), rtol=0, atol=0)


@pytest.mark.parametrize("room, entry, backend", _each(lambda room: room.entries, only=("eager", "cpu")))
def test_gradcheck(room: Room, entry: Entry, backend: str) -> None:
    """Finite differences in float64."""
    if backend != "eager" and torch.float64 not in room.dtypes[backend]:
        pytest.skip("no float64")
    assert torch.autograd.gradcheck(*prepared(room, entry, backend, torch.float64))


@fused_ops
@pytest.mark.parametrize("whole", [True, False], ids=["everything", "nothing-optional"])
def test_opcheck(room: Room, op: Op, backend: str, whole: bool) -> None:
    """Schema, autograd registration, fake implementation and dynamic shapes of every registered op; of a backward pass
    for some of its gradients, schema and fake implementation, which say what is empty then."""
    forward = _samples.forward_arguments(room, op, torch.device(device_of(backend)), torch.float32, whole)
    registered = kernel(f"{op.name}_forward", backend).default
    torch.library.opcheck(registered, tuple(forward.values()))
    every, *some = _samples.backward_arguments(op, forward, registered(*forward.values()))
    registered = kernel(f"{op.name}_backward", backend).default
    torch.library.opcheck(registered, tuple(every.values()))
    for backward in some:
        torch.library.opcheck(registered, tuple(backward.values()), test_utils=("test_schema", "test_faketensor"))


@fused_ops
def test_backward_ops_do_not_pass_for_constants(room: Room, op: Op, backend: str) -> None:
    forward = _samples.forward_arguments(room, op, torch.device(device_of(backend)), torch.float32)
    results = kernel(f"{op.name}_forward", backend)(*forward.values())
    backward = next(_samples.backward_arguments(op, forward, results))
    for x in floating(backward).values():
        x.requires_grad_()
    grad = kernel(f"{op.name}_backward", backend)(*backward.values())[0]
    with pytest.raises(RuntimeError, match=rf"{op.name}_backward\S* is not differentiable"):
        grad.sum().backward()


@fused_entries
def test_second_derivative_raises(room: Room, entry: Entry, backend: str) -> None:
    function, leaves = prepared(room, entry, backend)
    (grad,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="is not differentiable: the fused kernels have first derivatives only"):
        torch.autograd.grad(grad.sum(), leaves[0])


@native_entries
def test_second_derivative_by_one_input(room: Room, entry: Entry, backend: str) -> None:
    """The others being constants, for autograd and for ``torch.func``: it raises, or is what eager says where it does
    not go through the kernels; nowhere is it the zero of what a kernel has kept."""

    def by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.autograd.grad(torch.autograd.grad(f(x), x, create_graph=True)[0].square().sum(), x)[0]

    def by_func(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: torch.func.grad(f)(y).square().sum())(x.detach())

    def of_one(backend: str, i: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        function, leaves = prepared(room, entry, backend)
        constants = [x.detach() for x in leaves]
        return lambda x: function(*constants[:i], x, *constants[i + 1 :]).sum(), leaves[i]

    for i in range(len(prepared(room, entry, backend)[1])):
        for second in (by_autograd, by_func):
            try:
                found = second(*of_one(backend, i))
            except RuntimeError as error:
                assert "is not differentiable: the fused kernels have first derivatives only" in str(error)  # noqa: PT017
            else:
                torch.testing.assert_close(found, second(*of_one("eager", i)), **CLOSE)


@fused_entries
def test_nothing_is_saved_without_grad(room: Room, entry: Entry, backend: str) -> None:
    function, leaves = prepared(room, entry, backend)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        output = function(*leaves)
    assert output.grad_fn is None
    assert not saved


@entries
def test_compile_fullgraph(room: Room, entry: Entry, backend: str) -> None:
    function, leaves = prepared(room, entry, backend)
    torch._dynamo.reset()
    expected, found = function(*leaves), torch.compile(function, fullgraph=True)(*leaves)
    torch.testing.assert_close(found, expected)
    upstream = torch.rand_like(expected)
    for one, other in zip(*(torch.autograd.grad(x, leaves, upstream) for x in (found, expected))):
        torch.testing.assert_close(one, other, **CLOSE)


@entries
def test_func_grad(room: Room, entry: Entry, backend: str) -> None:
    function, leaves = prepared(room, entry, backend)
    total = lambda *values: function(*values).square().sum()  # noqa: E731
    found = torch.func.grad(total, argnums=tuple(range(len(leaves))))(*(x.detach() for x in leaves))
    for one, other in zip(found, torch.autograd.grad(total(*leaves), leaves)):
        torch.testing.assert_close(one, other, **CLOSE)


@native_entries
def test_compiled_func_grad(room: Room, entry: Entry, backend: str) -> None:
    function, leaves = prepared(room, entry, backend)
    total = lambda *values: function(*values).square().sum()  # noqa: E731
    gradients = torch.func.grad(total, argnums=tuple(range(len(leaves))))
    torch._dynamo.reset()
    found = torch.compile(gradients, fullgraph=True, backend="aot_eager")(*(x.detach() for x in leaves))
    for one, other in zip(found, torch.autograd.grad(total(*leaves), leaves)):
        torch.testing.assert_close(one, other, **CLOSE)


@native_entries
def test_compiled_forward_mode_raises(room: Room, entry: Entry, backend: str) -> None:
    """In a traced graph a tangent may not be dropped on the way."""
    function, leaves = prepared(room, entry, backend)
    values = tuple(x.detach() for x in leaves)
    torch._dynamo.reset()
    tangent = torch.compile(lambda: torch.func.jvp(function, values, values)[1], fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"no forward-mode derivatives .* use backend='eager'"):
        tangent()


@entries
def test_vmap(room: Room, entry: Entry, backend: str) -> None:
    """Over stacks of inputs, parameters included; and the gradients of each."""
    function, leaves = prepared(room, entry, backend)
    stacks = [torch.stack([x.detach(), 1.5 * x.detach().flip(0) if x.dim() else 2 * x.detach()]) for x in leaves]
    total = lambda *values: function(*values).square().sum()  # noqa: E731
    for each in (function, torch.func.grad(total)):
        expected = torch.stack([each(*values) for values in zip(*stacks)])
        torch.testing.assert_close(torch.func.vmap(each)(*stacks), expected, **CLOSE)


@pytest.mark.parametrize("room, entry, backend", _each(lambda room: room.entries, only=("eager", "cpu", "triton")))
def test_fake_tensors(room: Room, entry: Entry, backend: str) -> None:
    with FakeTensorMode():
        function, leaves = prepared(room, entry, backend)
        output = function(*leaves)
        for leaf, grad in zip(leaves, torch.autograd.grad(output.sum(), leaves)):
            assert grad.shape == leaf.shape


@fused_entries
def test_flops_are_counted(room: Room, entry: Entry, backend: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    function, leaves = prepared(room, entry, backend)
    with FlopCounterMode(display=False) as counter:
        output = function(*leaves)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert 0 < forward < counter.get_total_flops()

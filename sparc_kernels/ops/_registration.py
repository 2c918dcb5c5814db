"""What every registered op gets, whichever backend implements it: fake tensors, derivatives, vmap, flop counts.

The derivative of a room's op stands twice, from one pair of functions: in its ``torch.autograd.Function``, which people
call, and on the op itself, so that traced graphs have it: those of ``torch.export`` train, and ``torch.compile`` can
compile what ``torch.func`` transforms.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad
from torch.autograd.function import _SingleLevelFunction

from sparc_kernels import _flops, _native
from sparc_kernels._compile import constant_when_compiled
from sparc_kernels.ops._room import BatchDims, Op, Pass, Room

# What a backend's op has behind its name. The native one serves CPU and CUDA: the dispatcher chooses.
SUFFIXES = {"cuda": "", "triton": "_triton", "cpu": ""}

_registered: set[str] = set()


@constant_when_compiled
def float32_precision() -> str:
    """What ``torch.set_float32_matmul_precision`` set: ``"highest"``, ``"high"`` or ``"medium"``. Code that
    ``torch.compile`` compiled keeps what held when it was compiled."""
    return torch.get_float32_matmul_precision()


def register(rooms: Iterable[Room]) -> None:
    """Register the ops of the rooms with what they need beside their kernels; leave those that are registered."""
    for room in rooms:
        for op in room.ops:
            if op.name in _registered:
                continue
            _registered.add(op.name)
            if "triton" in room.dtypes:
                for name, each in ((f"{op.name}_forward", op.forward), (f"{op.name}_backward", op.backward)):
                    _define_triton(_qualified(name, "triton"), each, room.triton)
                _complete(op, "triton")
            native = not room.dtypes.keys().isdisjoint(("cpu", "cuda"))
            if native and _native.cpu_reason() is None and _native.undeclared(room.schemas) is None:
                _complete(op, "cpu")  # defined by the library


def _qualified(name: str, backend: str) -> str:
    return f"sparc_kernels::{name}{SUFFIXES[backend]}"


def _define_triton(qualified_name: str, each: Pass, module: str) -> None:
    """Define an op for CUDA tensors and, in Triton's interpreter, CPU tensors; ``module`` is imported when called."""

    def implementation(*args: Any) -> Any:
        return getattr(importlib.import_module(module), each.launcher)(*args)

    torch.library.define(qualified_name, each.schema)
    torch.library.impl(qualified_name, ("CPU", "CUDA"), implementation)


def _complete(op: Op, backend: str) -> None:
    """Fake tensors, derivatives, flop counts and vmap for the two defined passes of a backend."""
    forward, backward = (_qualified(f"{op.name}_{each}", backend) for each in ("forward", "backward"))
    register_derivative(forward, op.derivative, _op_context(backend, op.kept))
    # A second derivative may not pass for a zero.
    register_derivative(backward, lambda ctx, *grads: _refuse(backward))
    for qualified_name, each in ((forward, op.forward), (backward, op.backward)):
        torch.library.register_fake(qualified_name, each.fake)
        registered = getattr(torch.ops.sparc_kernels, qualified_name.partition("::")[2])
        _flops.count(registered, each.flops)
        torch.library.register_vmap(qualified_name, _vmap_rule(registered, *each.batch_dims))


def register_derivative(
    qualified_name: str, derivative: Callable[..., Any], setup_context: Callable[..., None] | None = None
) -> None:
    """What ``torch.library.register_autograd`` does, for ops with positional arguments only, and two things more:
    ``torch.func`` can transform a call of the op, also while a graph is traced, and a forward-mode derivative raises
    where it would be dropped."""
    namespace, _, name = qualified_name.partition("::")
    op = getattr(getattr(torch.ops, namespace), name).default

    def below(keyset: Any, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def forward(ctx: Any, *inputs: Any) -> Any:
        *args, keyset = inputs
        if torch._C._are_functorch_transforms_active():  # the levels below have derivatives of their own
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                output = below(keyset, args)
        else:
            output = below(keyset, args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(derivative)}
    node: Any = type(f"DerivativeOf_{name}", (Function,), members)
    level: Any = type(f"DerivativeOf_{name}", (_SingleLevelFunction,), members)

    def implementation(keyset: Any, *args: Any) -> Any:
        reverse = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if not reverse and forward_ad._current_level < 0:
            return below(keyset, args)
        if not torch._C._are_functorch_transforms_active():
            return applied(node, *args, keyset)
        # This is one level of the transforms; Function.apply is for calls above them all.
        with enable_single_level_autograd_function():
            return applied(level, *args, keyset)

    _fragment(namespace).impl(name, implementation, "Autograd", with_keyset=True)


@cache
def _fragment(namespace: str) -> torch.library.Library:
    return torch.library.Library(namespace, "FRAGMENT")  # what it registers is gone when it is


def _refuse(qualified_name: str) -> None:
    raise RuntimeError(
        f"{qualified_name} is not differentiable: the fused kernels have first derivatives only; for second "
        "derivatives use backend='eager' (a compiled torch.func.grad traces them where its inputs require gradients: "
        "detach these)"
    )


class _DifferentiatedOnce(Function):
    """``apply(name, value, *others)``: ``value``, whose derivative raises, as if it depended on the others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, value: Tensor, *others: Tensor | None) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _refuse(ctx.name)


def differentiated_once(name: str, value: Tensor, *inputs: Tensor | None) -> Tensor:
    """``value``, whose derivative raises, which a derivative is made of where it is made of kept results: these have no
    history, so that a second derivative by the ``inputs`` would pass for a zero. ``name`` is told in the error."""
    return applied(_DifferentiatedOnce, name, value, *inputs) if torch.is_grad_enabled() else value


def launch_backward(launcher: Callable[..., Any], grad: Tensor, *args: Any) -> Any:
    """The results of a launcher that is no registered op, which are linear in ``grad`` []."""
    with torch.no_grad():
        if torch._C._has_storage(grad):
            found = launcher(grad, *args)
        else:  # many gradients at once (``is_grads_batched``), with no address that a launch could take
            found = tuple(x * grad for x in launcher(torch.ones((), dtype=grad.dtype, device=grad.device), *args))
    tensors = [x for x in (grad, *args) if isinstance(x, Tensor)]
    return tuple(differentiated_once(launcher.__qualname__, x, *tensors) for x in found)


def run_op(op: Any, *args: Any) -> Any:
    """The results of an op, in eager mode, under ``torch.func`` and while a graph is traced. Where nobody asks for a
    derivative of it, it runs below autograd, whose rule for ops made in Python takes as long as the rest of the call.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _is_transformed():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _is_transformed() -> bool:
    """Whether ``torch.func`` is at work; never in a traced graph."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def kernel(name: str, backend: str) -> Any:
    """The op ``name`` of a backend with kernels."""
    if backend not in SUFFIXES:
        raise ValueError(f"backend must be 'cuda', 'triton' or 'cpu', got {backend!r}")
    return getattr(torch.ops.sparc_kernels, name + SUFFIXES[backend])


def call_forward(name: str, *inputs: Any) -> Any:
    """The forward op of ``inputs``: its arguments but the last, ``float32_precision``, and the backend."""
    *op_inputs, backend = inputs
    return run_op(kernel(name, backend), *op_inputs, float32_precision())


def function_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], kept: int = 1) -> None:
    """``setup_context`` of the Functions, whose last input is the backend; ``kept`` as in :class:`Op`."""
    *op_inputs, backend = inputs
    _keep(ctx, op_inputs, output[1 : 1 + kept], backend, float32_precision())


def _op_context(backend: str, kept: int) -> Callable[..., None]:
    """``setup_context`` of a forward op itself, whose last input is ``float32_precision``."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *op_inputs, precision = inputs
        _keep(ctx, op_inputs, output[1 : 1 + kept], backend, precision)

    return setup_context


def _keep(ctx: Any, op_inputs: list[Any], kept: tuple[Tensor, ...], backend: str, precision: str) -> None:
    """Tensors among the inputs, its other values, and the results that are ``kept``, which have no gradient."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    keep_tensors(ctx, [x for x in (*op_inputs, *kept) if x is None or isinstance(x, Tensor)])
    ctx.flags = [x for x in op_inputs if isinstance(x, (int, float, str, torch.SymInt, torch.SymFloat))]
    ctx.backend, ctx.float32_precision = backend, precision


def keep_tensors(ctx: Any, tensors: list[Tensor | None]) -> None:
    """For :func:`kept_tensors` in the backward pass."""
    # Autograd refuses to save tensors made under torch.inference_mode, since it cannot watch them for changes. They
    # have no gradient and no history, so holding them makes no cycle.
    tracing = torch.compiler.is_compiling()
    ctx.inference_tensors = [x if not tracing and x is not None and x.is_inference() else None for x in tensors]
    ctx.save_for_backward(*(x if held is None else None for x, held in zip(tensors, ctx.inference_tensors)))


def kept_tensors(ctx: Any) -> list[Any]:
    """The forward op's tensor arguments, and those of its results that are kept."""
    return [x if held is None else held for x, held in zip(ctx.saved_tensors, ctx.inference_tensors)]


def asked_for(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """What a derivative returns: ``grads`` of the first inputs, None for one that is not needed, None for the rest."""
    needed = ctx.needs_input_grad
    return (
        *(found if need else None for found, need in zip(grads, needed)),
        *(None,) * (len(needed) - len(grads)),
    )


@cache
def _untransformed(function: type[Function]) -> type[Function]:
    """``function`` with ``setup_context`` inside ``forward``. ``torch.func`` cannot transform that, but PyTorch needs
    not bind the inputs to the signature of ``forward`` at each call, which takes longer than all else about a node."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (Function,), members)


def apply(function: type[Function], name: str, *inputs: Any) -> Any:
    """``function.apply(*inputs)``; in a traced graph the bare op ``name``, which brings its derivative along."""
    if torch.compiler.is_compiling():
        return call_forward(name, *inputs)
    return applied(function if _is_transformed() else _untransformed(function), *inputs)


def applied(function: Any, *inputs: Any) -> Any:
    """``function.apply(*inputs)``; where forward-mode derivatives are asked for, the error says what has them."""
    try:
        return function.apply(*inputs)
    except NotImplementedError as error:
        if "jvp" not in str(error):
            raise
        raise NotImplementedError(
            "the fused kernels have no forward-mode derivatives (forward_ad, torch.func.jvp, jacfwd, hessian): use "
            "backend='eager', or reverse mode (torch.func.grad, vjp, jacrev)"
        ) from error


def _vmap_rule(op: Any, argument_dims: BatchDims, result_dims: BatchDims) -> Callable[..., Any]:
    """Elements of a batch do not see each other, so what is mapped over becomes part of the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        if any(dim is not None and batch is None for dim, batch in zip(in_dims, argument_dims)):
            # A parameter of its own for every element: a call for each.
            per_element = [
                op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims))) for i in range(size)
            ]
            return tuple(map(torch.stack, zip(*per_element))), (0,) * len(result_dims)
        results = op(*(_fold(x, dim, batch, size) for x, dim, batch in zip(args, in_dims, argument_dims)))
        mapped = tuple(None if x.dim() == 1 else batch for x, batch in zip(results, result_dims))  # [0]: not asked for
        return tuple(
            x if dim is None else x.unflatten(dim, (size, x.shape[dim] // size)) for x, dim in zip(results, mapped)
        ), mapped

    return rule


def _fold(value: Any, mapped_dim: int | None, batch_dim: int | None, size: int) -> Any:
    if batch_dim is None or value is None:
        return value
    if mapped_dim is None:
        value = value.unsqueeze(batch_dim).expand(*value.shape[:batch_dim], size, *value.shape[batch_dim:])
    else:
        value = value.movedim(mapped_dim, batch_dim)
    return value.flatten(batch_dim, batch_dim + 1)

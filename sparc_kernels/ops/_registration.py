"""What every registered op gets, whichever backend implements it: fake tensors, derivatives, vmap, flop counts.

The derivative of a room's op stands twice, from one pair of functions: in its ``torch.autograd.Function``, which people
call and ``torch.func`` can transform, and on the op itself, so that graphs of ``torch.export`` train.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

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
    torch.library.register_autograd(forward, op.derivative, setup_context=_op_context(backend, op.kept))
    # A second derivative may not pass for a zero.
    torch.library.register_autograd(backward, lambda ctx, *grads: _refuse(backward))
    for qualified_name, each in ((forward, op.forward), (backward, op.backward)):
        torch.library.register_fake(qualified_name, each.fake)
        registered = getattr(torch.ops.sparc_kernels, qualified_name.partition("::")[2])
        _flops.count(registered, each.flops)
        torch.library.register_vmap(qualified_name, _vmap_rule(registered, *each.batch_dims))


def _refuse(qualified_name: str) -> None:
    raise RuntimeError(
        f"{qualified_name} is not differentiable: the fused kernels have first derivatives only; for second "
        "derivatives use backend='eager'"
    )


class _BackwardOp(Function):
    """A call of a backward op that ``torch.func`` can transform."""

    generate_vmap_rule = True

    @staticmethod
    def forward(op: Any, *args: Any) -> Any:
        return op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = getattr(inputs[0], "__qualname__", str(inputs[0]))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _refuse(ctx.name.replace(".", "::"))


def call_backward(op: Any, *args: Any) -> Any:
    """The backward op's results, in eager mode, under ``torch.func`` and while a graph is traced."""
    return _BackwardOp.apply(op, *args) if _is_transformed() else run_op(op, *args)


def launch_backward(launcher: Callable[..., Any], grad: Tensor, *args: Any) -> Any:
    """As :func:`call_backward`, for a launcher that is no registered op, whose results are linear in ``grad`` []."""
    call = partial(_BackwardOp.apply, launcher) if torch.is_grad_enabled() else launcher
    if torch._C._has_storage(grad):
        return call(grad, *args)
    # Many gradients at once (``is_grads_batched``), with no address that a launch could take.
    return tuple(x * grad for x in call(torch.ones((), dtype=grad.dtype, device=grad.device), *args))


def run_op(op: Any, *args: Any) -> Any:
    """The results of an op whose derivative the caller takes care of: below autograd, whose rule for ops made in Python
    takes as long as the rest of the call."""
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


def applied(function: type[Function], *inputs: Any) -> Any:
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

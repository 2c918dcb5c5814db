"""What every registered op gets, whichever backend implements it: fake tensors, derivatives, vmap, flop counts.

The derivative of a room's op stands twice, from one pair of functions: in its ``torch.autograd.Function``, which people
call and ``torch.func`` can transform, and on the op itself, so that graphs of ``torch.export`` train.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparc_kernels import _flops
from sparc_kernels._compile import constant_when_compiled

BatchDims = tuple[int | None, ...]  # per argument or result: where its batch dimension is, None for those without one


@constant_when_compiled
def float32_precision() -> str:
    """What ``torch.set_float32_matmul_precision`` set: ``"highest"``, ``"high"`` or ``"medium"``. Code that
    ``torch.compile`` compiled keeps what held when it was compiled."""
    return torch.get_float32_matmul_precision()


def define_triton(name: str, schema: str, module: str, function: str) -> None:
    """Define ``sparc_kernels::<name>``, implemented by ``function`` of ``module``, which is imported at the first call.

    For CUDA tensors and, in Triton's interpreter, CPU tensors.
    """

    def implementation(*args: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args)

    qualified_name = f"sparc_kernels::{name}"
    torch.library.define(qualified_name, schema)
    torch.library.impl(qualified_name, ("CPU", "CUDA"), implementation)


def complete(
    name: str,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    batch_dims: tuple[BatchDims, BatchDims],
    derivative: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
) -> None:
    """Give the defined op ``sparc_kernels::<name>`` all that it needs beside its kernels.

    Args:
        name: of the op.
        fake: returns empty tensors of the results' shapes.
        flops: twice the multiplications of the op's matrix products, for ``FlopCounterMode``.
        batch_dims: of the arguments, and of the results; for ``vmap``.
        derivative: ``(setup_context, backward)``, or None for an op that is a derivative itself: differentiating it
            raises, since a second derivative may not pass for a zero.
    """
    qualified_name = f"sparc_kernels::{name}"
    torch.library.register_fake(qualified_name, fake)
    if derivative is None:
        torch.library.register_autograd(qualified_name, lambda ctx, *grads: _refuse(qualified_name))
    else:
        setup_context, backward = derivative
        torch.library.register_autograd(qualified_name, backward, setup_context=setup_context)
    _flops.count(getattr(torch.ops.sparc_kernels, name), flops)
    torch.library.register_vmap(qualified_name, _vmap_rule(getattr(torch.ops.sparc_kernels, name), *batch_dims))


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
        ctx.name = str(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _refuse(ctx.name.replace(".", "::"))


def call_backward(op: Any, *args: Any) -> Any:
    """The backward op's results, in eager mode, under ``torch.func`` and while a graph is traced."""
    return op(*args) if torch.compiler.is_compiling() else _BackwardOp.apply(op, *args)


def kernel(name: str, backend: str) -> Any:
    """The op ``name`` of a backend with kernels. The native one serves CPU and CUDA: the dispatcher chooses."""
    if backend not in ("cuda", "triton", "cpu"):
        raise ValueError(f"backend must be 'cuda', 'triton' or 'cpu', got {backend!r}")
    return getattr(torch.ops.sparc_kernels, f"{name}_triton" if backend == "triton" else name)


def call_forward(name: str, *inputs: Any) -> Any:
    """The forward op of ``inputs``: its arguments but the last, ``float32_precision``, and the backend."""
    *op_inputs, backend = inputs
    return kernel(name, backend)(*op_inputs, float32_precision())


def function_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """``setup_context`` of the Functions, whose last input is the backend."""
    *op_inputs, backend = inputs
    _keep(ctx, op_inputs, output, backend, float32_precision())


def op_context(backend: str) -> Callable[..., None]:
    """``setup_context`` of a forward op itself, whose last input is ``float32_precision``."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *op_inputs, precision = inputs
        _keep(ctx, op_inputs, output, backend, precision)

    return setup_context


def _keep(ctx: Any, op_inputs: list[Any], output: tuple[Tensor, ...], backend: str, precision: str) -> None:
    """Tensors among the inputs, and the statistics, the second result of every forward op."""
    stats = output[1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats)
    tensors = [x for x in (*op_inputs, stats) if x is None or isinstance(x, Tensor)]
    # Autograd refuses to save tensors made under torch.inference_mode, since it cannot watch them for changes. They
    # have no gradient and no history, so holding them makes no cycle.
    tracing = torch.compiler.is_compiling()
    ctx.inference_tensors = [x if not tracing and x is not None and x.is_inference() else None for x in tensors]
    ctx.save_for_backward(*(x if held is None else None for x, held in zip(tensors, ctx.inference_tensors)))
    ctx.backend, ctx.float32_precision = backend, precision


def kept_tensors(ctx: Any) -> list[Any]:
    """The forward op's tensor arguments, and its statistics."""
    return [x if held is None else held for x, held in zip(ctx.saved_tensors, ctx.inference_tensors)]


def apply(function: type[Function], name: str, *inputs: Any) -> Any:
    """``function.apply(*inputs)``; in a traced graph the bare op ``name``, which brings its derivative along."""
    if torch.compiler.is_compiling():
        return call_forward(name, *inputs)
    try:
        return function.apply(*inputs)
    except NotImplementedError as error:
        if "jvp" not in str(error):
            raise
        raise NotImplementedError(
            "the fused kernels have no forward-mode derivatives (torch.func.jvp, jacfwd, hessian): use "
            "backend='eager', or reverse mode (torch.func.grad, vjp, jacrev)"
        ) from error


def _vmap_rule(op: Any, argument_dims: BatchDims, result_dims: BatchDims) -> Callable[..., Any]:
    """Pairs do not see each other, so what is mapped over becomes part of the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        if any(dim is not None and batch is None for dim, batch in zip(in_dims, argument_dims)):
            # A scale or threshold of its own for every element: a call for each.
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

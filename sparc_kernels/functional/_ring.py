"""Ops over a similarity matrix whose columns travel from rank to rank, so that no rank ever holds those of all.

A pass (``_rounds.py``) is one op, opaque to compilers, which have no form of their own for what is sent under a
product.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparc_kernels import _flops
from sparc_kernels.distributed import Ranks, Spread, alike
from sparc_kernels.functional._candidates import Above, Exclusion, Scope, exclusions
from sparc_kernels.functional._everyone import EXCHANGES
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import (
    asked_for,
    differentiated_once,
    float32_precision,
    keep_tensors,
    kept_tensors,
    kernel,
    register_derivative,
)
from sparc_kernels.ops.contrastive.schema import kept_dtype

_TENSORS = (
    "Tensor rows, Tensor cols, Tensor {}, Tensor {}, {}Tensor row_ids, Tensor col_ids, Tensor? excluded_indptr, "
    "Tensor? excluded_indices"
)
_OF_LOGSUMEXP = _TENSORS.format("row_scale", "col_scale", "")
_OF_SOFTPLUS = _TENSORS.format("scale", "bias", "")
_OF_TOTAL = _TENSORS.format("scale", "bias", "Tensor row_weights, ")
_WHERE = "str group, int size, int rank, str call, str backend, str float32_precision"
_NEEDS = "bool need_rows, bool need_cols, bool need_{}, bool need_{}"
_GRADS = "(Tensor grad_rows, Tensor grad_cols, Tensor grad_{}, Tensor grad_{})"


def check_exchange(
    exchange: str, backend: str, exclude: Exclusion | Sequence[Exclusion] | None, refused: dict[str, str]
) -> bool:
    """Whether columns go around a ring; ``refused``: arguments that this call has and a ring does not serve, and why.

    Raises:
        ValueError: no such exchange.
        NotImplementedError: one that cannot serve the call. It does not matter how many ranks there are.
    """
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange must be {' or '.join(map(repr, EXCHANGES))}, got {exchange!r}")
    if exchange == "gather":
        return False
    reasons = dict(refused)
    if any(isinstance(each, Above) for each in exclusions(exclude)):
        reasons["Above in exclude"] = "the teacher's embeddings would have to travel, too"
    if backend == "eager":
        reasons["backend='eager'"] = "its derivative is autograd's, which does not see what is sent; take 'gather'"
    for what, why in reasons.items():
        raise NotImplementedError(f"exchange must be 'gather' with {what}, got 'ring': {why}")
    return True


# Registration


def _vector(like: Tensor, wanted: bool) -> Tensor:
    return like.new_empty((like.shape[0] if wanted else 0,), dtype=accumulation_dtype(like.dtype))


def _fake_logsumexp_forward(rows: Tensor, cols: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _vector(rows, rest[6]), _vector(cols, rest[7])


def _fake_softplus_forward(rows: Tensor, *rest: Any) -> Tensor:
    return _vector(rows, True)


def _fake_grads(inputs: Sequence[Tensor], needed: Sequence[bool], dtype: torch.dtype) -> tuple[Tensor, ...]:
    dtypes = (dtype, dtype, *(x.dtype for x in inputs[2:]))
    return tuple(x.new_empty(x.shape if need else (0,), dtype=d) for x, need, d in zip(inputs, needed, dtypes))


def _fake_total_forward(*args: Any) -> tuple[Tensor, ...]:
    total = args[0].new_empty((), dtype=accumulation_dtype(args[0].dtype))
    return total, *_fake_grads(args[:4], args[10:14], kept_dtype(args[0].dtype))


def _flop(rows: Tensor, cols: Tensor, ranks: int, products: int) -> int:
    return 2 * products * rows.shape[0] * cols.shape[0] * ranks * rows.shape[1]


def _define(name: str, schema: str, fake: Callable[..., Any], flop: Callable[..., int]) -> str:
    """The op ``ring_<name>``, for the devices of the kernels that it goes round with."""

    def implementation(*args: Any) -> Any:
        rounds = importlib.import_module(f"{__package__}._rounds")  # nobody else needs it
        return getattr(rounds, name)(*args)

    qualified = f"sparc_kernels::ring_{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("CPU", "CUDA"), implementation)
    torch.library.register_fake(qualified, fake)
    _flops.count(getattr(torch.ops.sparc_kernels, f"ring_{name}"), flop)
    return qualified


def _keep(ctx: Any, inputs: Sequence[Any], results: Sequence[Tensor] = ()) -> None:
    ctx.set_materialize_grads(False)
    keep_tensors(ctx, [x for x in (*inputs, *results) if x is None or isinstance(x, Tensor)])
    ctx.flags = [x for x in inputs if isinstance(x, bool)]
    ctx.where = inputs[-6:]


def _logsumexp_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    _keep(ctx, inputs, output)


def _logsumexp_derivative(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = kept_tensors(ctx)
    # all ranks make the same exchanges, whatever each has made of its results
    upstream = [torch.zeros_like(lse) if grad is None else grad.contiguous() for grad, lse in zip(grads, tensors[-2:])]
    backward = torch.ops.sparc_kernels.ring_logsumexp_backward
    return asked_for(ctx, backward(*upstream, *tensors, *ctx.flags, *ctx.needs_input_grad[:4], *ctx.where))


def _softplus_context(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    _keep(ctx, inputs)


def _softplus_derivative(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = kept_tensors(ctx)
    grad = _vector(tensors[0], True).zero_() if grad is None else grad.contiguous()
    backward = torch.ops.sparc_kernels.ring_softplus_backward
    return asked_for(ctx, backward(grad, *tensors, *ctx.flags, *ctx.needs_input_grad[:4], *ctx.where))


def _total_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _keep(ctx, (*inputs[:4], *inputs[-6:]), output[1:])


def _total_derivative(ctx: Any, grad: Tensor | None, *of_kept: None) -> tuple[Tensor | None, ...]:
    rows, cols, scale, bias, *kept = kept_tensors(ctx)
    grad = scale.new_zeros(()) if grad is None else grad
    grad = differentiated_once("ring_softplus_total_backward", grad, rows, cols, scale, bias)
    # What came home was made on all ranks, each with the upstream gradient 1.
    group, size, rank, call, backend, precision = ctx.where
    ranks = Ranks(group, size, rank, call, True)
    grad = alike(grad, "the gradient of the loss, of which exchange='ring' keeps one", ranks)
    backward = kernel("similarity_softplus_total_backward", backend)
    return asked_for(ctx, backward(grad, rows, *kept, precision))


def _once(*_: Any) -> None:
    raise RuntimeError("exchange='ring' has first derivatives only; for second ones use 'gather' and backend='eager'")


_LOGSUMEXP = _define(
    "logsumexp_forward",
    f"({_OF_LOGSUMEXP}, bool by_rows, bool by_cols, {_WHERE}) -> (Tensor row_lse, Tensor col_lse)",
    _fake_logsumexp_forward,
    lambda *args, **_: _flop(args[0], args[1], args[11], 1),
)
_LOGSUMEXP_BACKWARD = _define(
    "logsumexp_backward",
    f"(Tensor grad_row_lse, Tensor grad_col_lse, {_OF_LOGSUMEXP}, Tensor row_lse, Tensor col_lse, bool by_rows, "
    f"bool by_cols, {_NEEDS.format('row_scale', 'col_scale')}, {_WHERE}) -> {_GRADS.format('row_scale', 'col_scale')}",
    lambda *args: _fake_grads(args[2:6], args[14:18], args[2].dtype),
    lambda *args, **_: _flop(args[2], args[3], args[19], 1 + sum(args[14:16])),
)
_SOFTPLUS = _define(
    "softplus_forward",
    f"({_OF_SOFTPLUS}, bool ids_exclude, {_WHERE}) -> Tensor row_sum",
    _fake_softplus_forward,
    lambda *args, **_: _flop(args[0], args[1], args[10], 1),
)
_SOFTPLUS_BACKWARD = _define(
    "softplus_backward",
    f"(Tensor grad_row_sum, {_OF_SOFTPLUS}, bool ids_exclude, {_NEEDS.format('scale', 'bias')}, {_WHERE}) -> "
    f"{_GRADS.format('scale', 'bias')}",
    lambda *args: _fake_grads(args[1:5], args[10:14], args[1].dtype),
    lambda *args, **_: _flop(args[1], args[2], args[15], 1 + sum(args[10:12])),
)
_TOTAL = _define(
    "softplus_total_forward",
    f"({_OF_TOTAL}, bool ids_exclude, {_NEEDS.format('scale', 'bias').replace('need', 'keep')}, {_WHERE}) -> "
    f"(Tensor total, {_GRADS.format('scale', 'bias').replace('grad', 'kept')[1:]}",
    _fake_total_forward,
    lambda *args, **_: _flop(args[0], args[1], args[15], 1 + sum(args[10:12])),
)
register_derivative(_LOGSUMEXP, _logsumexp_derivative, _logsumexp_context)
register_derivative(_SOFTPLUS, _softplus_derivative, _softplus_context)
register_derivative(_TOTAL, _total_derivative, _total_context)
for _backward in (_LOGSUMEXP_BACKWARD, _SOFTPLUS_BACKWARD):
    register_derivative(_backward, _once)


# Calls


def _where(spread: Spread, backend: str) -> tuple[Any, ...]:
    return *spread.ranks[:4], backend, float32_precision()


def ring_logsumexp(
    rows: Tensor,  # [M, D]
    cols: Tensor,  # [capacity, D], of this rank
    scales: tuple[Tensor, Tensor],  # of rows [] or [M]; of columns []
    scope: Scope,  # ids of this rank's rows and columns
    wanted: tuple[bool, bool],
    spread: Spread,
    backend: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Log-sum-exp of this rank's rows over all columns [M], and of its columns over all rows [here]."""
    found = torch.ops.sparc_kernels.ring_logsumexp_forward(
        rows, cols, *scales, *scope[:4], *wanted, *_where(spread, backend)
    )
    return found[0] if wanted[0] else None, found[1][: spread.here] if wanted[1] else None


def ring_softplus(
    rows: Tensor,
    cols: Tensor,
    numbers: tuple[Tensor, Tensor],
    scope: Scope,
    ids_exclude: bool,
    spread: Spread,
    backend: str,
) -> Tensor:
    """[M]: sums over all columns of softplus at ``numbers``, scale and bias; arguments as :func:`ring_logsumexp`."""
    found: Tensor = torch.ops.sparc_kernels.ring_softplus_forward(
        rows, cols, *numbers, *scope[:4], ids_exclude, *_where(spread, backend)
    )
    return found


def ring_softplus_total(
    rows: Tensor,
    cols: Tensor,
    numbers: tuple[Tensor, Tensor],
    row_weights: Tensor,
    scope: Scope,
    ids_exclude: bool,
    spread: Spread,
    backend: str,
) -> Tensor:
    """[]: the sum of ``row_weights``, which get no gradient, times :func:`ring_softplus`.

    The gradients come from the same round, and are those of an upstream gradient that is the same on all ranks.
    """
    keep = [torch.is_grad_enabled() and x.requires_grad for x in (rows, cols, *numbers)]
    total: Tensor = torch.ops.sparc_kernels.ring_softplus_total_forward(
        rows, cols, *numbers, row_weights, *scope[:4], ids_exclude, *keep, *_where(spread, backend)
    )[0]
    return total

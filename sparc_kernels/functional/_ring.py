"""Statistics of a similarity matrix whose columns travel from rank to rank, so that no rank ever holds those of all.

Each rank has its rows, and multiplies them with one block of columns while the next is on its way. What it finds of a
column travels with the block and is home after a round; so do gradients, in the accumulation dtype. Each number is
added up by way of one rank after the other, its owner first for a column, in the order of visits for a row: the same
bits every time. No rank adds up what another one has, so ranks cannot differ.

A pass is one op, opaque to compilers, which have no form of their own for what is sent under a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparc_kernels import _flops
from sparc_kernels.distributed import Ranks, Ring, Spread, Travelling, alike
from sparc_kernels.functional._candidates import Above, Exclusion, Scope, exclusions
from sparc_kernels.functional._everyone import EXCHANGES
from sparc_kernels.functional._positives import inverse_norms
from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._registration import asked_for, float32_precision, keep_tensors, kept_tensors, kernel
from sparc_kernels.ops.contrastive.schema import STATS, kept_dtype

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


class _Matrix(NamedTuple):
    """This rank's rows of the matrix, block after block."""

    rows: Tensor  # [M, D]
    cols: Tensor  # [n, D], this rank's, padded to as many as all ranks have
    row_ids: Tensor
    col_ids: Tensor
    indptr: Tensor | None
    indices: Tensor | None
    """Positions, counted through all ranks."""
    ring: Ring
    backend: str
    precision: str

    @classmethod
    def of(cls, rows: Tensor, cols: Tensor, scope: Sequence[Any], where: Sequence[Any]) -> _Matrix:
        group, size, rank, call, backend, precision = where
        return cls(rows, cols, *scope, Ring(Ranks(group, size, rank, call, True)), backend, precision)

    def kernel(self, name: str) -> Any:
        return kernel(name, self.backend)

    def blocks(self, *more: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor | None, ...], tuple[Tensor, ...]]]:
        """Columns; the kernels' arguments from ``row_ids`` to ``guide_cols``; what travels with the columns."""
        for owner, (cols, ids, *others) in self.ring.blocks(self.cols.contiguous(), self.col_ids, *more):
            first = owner * self.cols.shape[0]  # indices of other blocks exclude nothing
            indices = None if self.indices is None else self.indices - first
            yield cols, (self.row_ids, ids, self.indptr, indices, None, None), tuple(others)

    def new(self, *shape: int) -> Tensor:
        """Zeros of the accumulation dtype."""
        return self.rows.new_zeros(shape, dtype=accumulation_dtype(self.rows.dtype))


class _Gradients:
    """Of rows, columns and two parameters, where they are needed, summed over blocks in the accumulation dtype."""

    def __init__(self, matrix: _Matrix, parameters: Sequence[Tensor], needed: Sequence[bool]) -> None:
        need_rows, need_cols, *others = needed
        self.rows = matrix.new(*matrix.rows.shape) if need_rows else None
        self.cols = Travelling(matrix.ring, matrix.new(*matrix.cols.shape)) if need_cols else None
        self.parameters = [torch.zeros_like(x) if need else None for x, need in zip(parameters, others)]
        self.matrix = matrix

    def add(self, rows: Tensor, cols: Tensor, *parameters: Tensor) -> None:
        for total, found in zip((self.rows, *self.parameters), (rows, *parameters)):
            if total is not None:
                total.add_(found)
        if self.cols is not None:
            self.cols.arrived().add_(cols)
            self.cols.pass_on()

    def home(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """[0] for what is not needed."""
        embeds = (self.rows, None if self.cols is None else self.cols.arrived())
        return (
            *(self.matrix.new(0).to(dtype) if x is None else x.to(dtype) for x in embeds),
            *(self.matrix.new(0) if x is None else x for x in self.parameters),
        )


# log-sum-exp: (largest, sum of exponentials relative to it) of rows here, of columns on their way


def _no_exponentials(matrix: _Matrix, size: int) -> Tensor:
    found = matrix.new(2, size)
    found[0] = -torch.inf
    return found


def _add_exponentials(held: Tensor, lse: Tensor) -> None:
    top = torch.maximum(held[0], lse)
    level = top.masked_fill(top == -torch.inf, 0.0)
    held[1] = held[1] * (held[0] - level).exp() + (lse - level).exp()
    held[0] = top


def _logarithm(held: Tensor) -> Tensor:
    return held[0] + held[1].log()


def _logsumexp_forward(*args: Any) -> tuple[Tensor, Tensor]:
    rows, cols, row_scale, col_scale = args[:4]
    by_rows, by_cols = args[8:10]
    matrix = _Matrix.of(rows, cols, args[4:8], args[10:])
    forward = matrix.kernel("similarity_logsumexp_forward")
    of_rows = _no_exponentials(matrix, rows.shape[0] if by_rows else 0)
    of_cols = Travelling(matrix.ring, _no_exponentials(matrix, cols.shape[0])) if by_cols else None
    for block, scope, _ in matrix.blocks():
        row_lse, _, col_lse, *_ = forward(
            rows, block, row_scale, col_scale, *scope, None, None, by_rows, by_cols, True, False, matrix.precision
        )
        if by_rows:
            _add_exponentials(of_rows, row_lse)
        if of_cols is not None:
            _add_exponentials(of_cols.arrived(), col_lse)
            of_cols.pass_on()
    return _logarithm(of_rows), matrix.new(0) if of_cols is None else _logarithm(of_cols.arrived())


def _logsumexp_backward(*args: Any) -> tuple[Tensor, ...]:
    grad_rows, grad_cols, rows, cols, row_scale, col_scale = args[:6]
    row_lse, col_lse, by_rows, by_cols, *needed = args[10:18]
    matrix = _Matrix.of(rows, cols, args[6:10], args[18:])
    backward = matrix.kernel("similarity_logsumexp_backward")
    of_rows, of_cols = matrix.new(len(STATS), rows.shape[0]), matrix.new(3, cols.shape[0])
    of_rows[0], of_cols[0] = inverse_norms(rows), inverse_norms(cols)
    if by_rows:
        of_rows[1] = row_lse
    if by_cols:
        of_cols[1], of_cols[2] = col_lse, grad_cols
    grads = _Gradients(matrix, (row_scale, col_scale), needed)
    for block, scope, (known,) in matrix.blocks(of_cols):
        # the kernel's probabilities are those of all columns, since the log-sum-exp is
        stats = torch.cat([of_rows.flatten(), known[:2].flatten(), matrix.new((len(STATS) - 2) * cols.shape[0])])
        grads.add(
            *backward(
                grad_rows if by_rows else None, known[2] if by_cols else None, *(None,) * 4, rows, block, row_scale,
                col_scale, *scope, None, None, stats, True, False, *needed, matrix.precision,
            )
        )  # fmt: skip
    return grads.home(rows.dtype)


# Sums of softplus


def _softplus_forward(*args: Any) -> Tensor:
    rows, cols, scale, bias = args[:4]
    matrix = _Matrix.of(rows, cols, args[4:8], args[9:])
    forward = matrix.kernel("similarity_softplus_forward")
    total = matrix.new(rows.shape[0])
    for block, scope, _ in matrix.blocks():
        total += forward(rows, block, scale, bias, *scope, None, args[8], False, matrix.precision)[0]
    return total


def _softplus_backward(*args: Any) -> tuple[Tensor, ...]:
    grad, rows, cols, scale, bias = args[:5]
    ids_exclude, *needed = args[9:14]
    matrix = _Matrix.of(rows, cols, args[5:9], args[14:])
    backward = matrix.kernel("similarity_softplus_backward")
    of_rows = matrix.new(len(STATS), rows.shape[0])
    of_rows[0] = inverse_norms(rows)
    grads = _Gradients(matrix, (scale, bias), needed)
    for block, scope, (norms,) in matrix.blocks(inverse_norms(cols)):
        stats = torch.cat([of_rows.flatten(), norms, matrix.new((len(STATS) - 1) * cols.shape[0])])
        grads.add(
            *backward(
                grad, rows, block, scale, bias, *scope, None, stats, ids_exclude, False, *needed, matrix.precision
            )
        )
    return grads.home(rows.dtype)


def _softplus_total_forward(*args: Any) -> tuple[Tensor, ...]:
    """The total, and the gradients for an upstream of 1, of one round."""
    rows, cols, scale, bias, row_weights = args[:5]
    needed = args[10:14]
    matrix = _Matrix.of(rows, cols, args[5:9], args[14:])
    forward = matrix.kernel("similarity_softplus_total_forward")
    total, grads = matrix.new(), _Gradients(matrix, (scale, bias), needed)
    for block, scope, _ in matrix.blocks():
        found, _, *kept = forward(
            rows, block, scale, bias, row_weights, *scope, None, args[9], *needed, matrix.precision
        )
        total += found
        grads.add(*kept)
    return total, *grads.home(kept_dtype(rows.dtype))


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


def _define(
    name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], flop: Callable[..., int]
) -> str:
    """For the devices of the kernels that it goes round with."""
    qualified = f"sparc_kernels::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("CPU", "CUDA"), implementation)
    torch.library.register_fake(qualified, fake)
    _flops.count(getattr(torch.ops.sparc_kernels, name), flop)
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
    _keep(ctx, (inputs[0], *inputs[-6:]), output[1:])


def _total_derivative(ctx: Any, grad: Tensor | None, *of_kept: None) -> tuple[Tensor | None, ...]:
    rows, *kept = kept_tensors(ctx)
    grad = kept[2].new_zeros(()) if grad is None else grad
    # What came home was made on all ranks, each with the upstream gradient 1.
    grad = alike(grad, "the gradient of the loss, of which exchange='ring' keeps one", Ranks(*ctx.where[:4], True))
    backward = kernel("similarity_softplus_total_backward", ctx.where[4])
    return asked_for(ctx, backward(grad, rows, *kept, ctx.where[5]))


def _once(*_: Any) -> None:
    raise RuntimeError("exchange='ring' has first derivatives only; for second ones use 'gather' and backend='eager'")


_LOGSUMEXP = _define(
    "ring_logsumexp_forward",
    f"({_OF_LOGSUMEXP}, bool by_rows, bool by_cols, {_WHERE}) -> (Tensor row_lse, Tensor col_lse)",
    _logsumexp_forward,
    _fake_logsumexp_forward,
    lambda *args, **_: _flop(args[0], args[1], args[11], 1),
)
_LOGSUMEXP_BACKWARD = _define(
    "ring_logsumexp_backward",
    f"(Tensor grad_row_lse, Tensor grad_col_lse, {_OF_LOGSUMEXP}, Tensor row_lse, Tensor col_lse, bool by_rows, "
    f"bool by_cols, {_NEEDS.format('row_scale', 'col_scale')}, {_WHERE}) -> {_GRADS.format('row_scale', 'col_scale')}",
    _logsumexp_backward,
    lambda *args: _fake_grads(args[2:6], args[14:18], args[2].dtype),
    lambda *args, **_: _flop(args[2], args[3], args[19], 1 + sum(args[14:16])),
)
_SOFTPLUS = _define(
    "ring_softplus_forward",
    f"({_OF_SOFTPLUS}, bool ids_exclude, {_WHERE}) -> Tensor row_sum",
    _softplus_forward,
    _fake_softplus_forward,
    lambda *args, **_: _flop(args[0], args[1], args[10], 1),
)
_SOFTPLUS_BACKWARD = _define(
    "ring_softplus_backward",
    f"(Tensor grad_row_sum, {_OF_SOFTPLUS}, bool ids_exclude, {_NEEDS.format('scale', 'bias')}, {_WHERE}) -> "
    f"{_GRADS.format('scale', 'bias')}",
    _softplus_backward,
    lambda *args: _fake_grads(args[1:5], args[10:14], args[1].dtype),
    lambda *args, **_: _flop(args[1], args[2], args[15], 1 + sum(args[10:12])),
)
_TOTAL = _define(
    "ring_softplus_total_forward",
    f"({_OF_TOTAL}, bool ids_exclude, {_NEEDS.format('scale', 'bias').replace('need', 'keep')}, {_WHERE}) -> "
    f"(Tensor total, {_GRADS.format('scale', 'bias').replace('grad', 'kept')[1:]}",
    _softplus_total_forward,
    _fake_total_forward,
    lambda *args, **_: _flop(args[0], args[1], args[15], 1 + sum(args[10:12])),
)
torch.library.register_autograd(_LOGSUMEXP, _logsumexp_derivative, setup_context=_logsumexp_context)
torch.library.register_autograd(_SOFTPLUS, _softplus_derivative, setup_context=_softplus_context)
torch.library.register_autograd(_TOTAL, _total_derivative, setup_context=_total_context)
for _backward in (_LOGSUMEXP_BACKWARD, _SOFTPLUS_BACKWARD):
    torch.library.register_autograd(_backward, _once)


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

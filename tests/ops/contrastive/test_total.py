"""The total of the softplus op: what its forward pass keeps, when, in which dtype, and what upstream makes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sparc_kernels as sk
from sparc_kernels import Labels, _native
from sparc_kernels.functional._candidates import Scope
from sparc_kernels.functional._streamed import streamed_softplus, streamed_softplus_total
from sparc_kernels.ops.contrastive import schema
from tests.conftest import device_of, dtypes_of
from tests.modes import CLOSE
from tests.ops.contrastive.cases import Case, Inputs, make
from tests.ops.contrastive.test_similarity import FUSED, softplus_total

M, N, D = 12, 9, 24
needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))
backends = pytest.mark.parametrize("backend", FUSED)


def inputs(backend: str, dtype: torch.dtype = torch.float32, **options: Any) -> Inputs:
    return make(Case("total", M=M, N=N, D=D, **options)).to(dtype, device_of(backend))


def total(x: Inputs, backend: str, weights: Tensor | None = None) -> Tensor:
    """Through the dispatcher, as the losses call it."""
    weights = x.row_weights if weights is None else weights
    scope = Scope(x.scope["row_ids"], x.scope["col_ids"])
    return streamed_softplus_total(x.rows, x.cols, (x.scale, x.bias), weights, scope, True, backend)


def gradients(x: Inputs, backend: str, upstream: float = 1.0, weights: Tensor | None = None) -> list[Tensor]:
    found = total(x, backend, weights)
    return list(torch.autograd.grad(found, list(x.softplus_leaves().values()), found.new_tensor(upstream)))


# What is computed when


@backends
@pytest.mark.parametrize(
    ("frozen", "products"),
    [((), 3), (("rows",), 2), (("cols",), 2), (("rows", "cols"), 1), (("scale", "bias"), 3)],
)
def test_three_products(frozen: tuple[str, ...], products: int, backend: str) -> None:
    """All of them in the forward pass."""
    x = inputs(backend)
    leaves = x.softplus_leaves()
    for name in frozen:
        leaves[name].requires_grad_(False)
    with FlopCounterMode(display=False) as forward:
        found = total(x, backend)
    with FlopCounterMode(display=False) as backward:
        found.backward()
    assert forward.get_total_flops() == products * 2 * M * N * D
    assert backward.get_total_flops() == 0
    assert all((leaf.grad is None) == (name in frozen) for name, leaf in leaves.items())


@backends
def test_one_product_without_gradient(backend: str) -> None:
    x = inputs(backend)
    frozen = inputs(backend)
    for leaf in frozen.softplus_leaves().values():
        leaf.requires_grad_(False)
    for without in (torch.no_grad(), torch.inference_mode()):
        with without, FlopCounterMode(display=False) as counter:
            found = total(x, backend)
        assert counter.get_total_flops() == 2 * M * N * D
    with FlopCounterMode(display=False) as counter:
        assert total(frozen, backend).equal(found)
    assert counter.get_total_flops() == 2 * M * N * D


def saved_by(call: Callable[[], Tensor]) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return saved


@backends
def test_what_is_kept(backend: str) -> None:
    """Beside the inputs: numbers per item, and the gradients in the dtype of their inputs."""
    for dtype in dtypes_of(backend):
        x = inputs(backend, dtype)
        saved = saved_by(partial(total, x, backend))
        given = {x.rows.data_ptr(), x.cols.data_ptr()}
        kept = [t for t in saved if t.dim() == 2 and t.data_ptr() not in given]
        assert [t.shape for t in kept] == [x.rows.shape, x.cols.shape]
        # float16 is too narrow to wait in
        assert {t.dtype for t in kept} == {torch.float32 if dtype == torch.float16 else dtype}
        assert max(t.numel() for t in saved if t.dim() < 2) <= 4 * (M + N)


@backends
def test_a_wrong_hint_costs_time_only(backend: str) -> None:
    """Under vmap a tensor does not say that somebody outside differentiates it: its gradient is computed later."""
    x = inputs(backend)
    rows, *others = (leaf.detach() for leaf in x.softplus_leaves().values())
    values = torch.stack([rows, rows.flip(1)]), *others, torch.stack([x.row_weights, 2 * x.row_weights.flip(0)])

    def loss(rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        def one(rows: Tensor, weights: Tensor) -> Tensor:
            return streamed_softplus_total(rows, cols, (scale, bias), weights, Scope(), True, backend)

        return torch.func.vmap(one)(rows, weights).square().sum()

    with FlopCounterMode(display=False) as counter:
        found = torch.func.grad(loss, argnums=tuple(range(5)))(*values)
    # twice: two products (similarities, G^T X), three (similarities and both), one for the weights
    assert counter.get_total_flops() == 2 * 6 * 2 * M * N * D
    leaves = [v.clone().requires_grad_() for v in values]
    all_rows, cols, scale, bias, weights = leaves
    totals = [
        (some * streamed_softplus(rows, cols, scale, bias, Scope(), True, "eager")).sum()
        for rows, some in zip(all_rows, weights)
    ]
    for one, other in zip(found, torch.autograd.grad(torch.stack(totals).square().sum(), leaves)):
        torch.testing.assert_close(one, other, **CLOSE)


@backends
def test_checkpointed(backend: str) -> None:
    """The first pass computes no gradient, the second one all."""
    x = inputs(backend)
    expected = gradients(x, backend)
    found = checkpoint(lambda rows: total(x, backend), x.rows, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(found, list(x.softplus_leaves().values())), expected):
        assert one.equal(other)


# Upstream


@backends
def test_powers_of_two_change_no_bit(backend: str) -> None:
    """An upstream of 1, and the loss scales of mixed precision; bfloat16 is rounded once."""
    for dtype in {*dtypes_of(backend)} - {torch.float16}:
        x = inputs(backend, dtype)
        once = gradients(x, backend)
        for upstream in (2.0**16, 2.0**-9):
            for one, other in zip(gradients(x, backend, upstream), once):
                assert one.equal(upstream * other)


@backends
def test_other_numbers_round_twice(backend: str) -> None:
    """The second rounding is that of one product in float32: at most half a unit in the last place of bfloat16."""
    x = inputs(backend, torch.bfloat16)
    third = x.scale.detach().new_tensor(1 / 3)  # in bfloat16 off by 2e-3
    for one, other in zip(gradients(x, backend, 1 / 3), gradients(x, backend)):
        assert one.equal((other.float() * third).to(one.dtype))


@backends
def test_backward_twice(backend: str) -> None:
    """The results share no memory with what is kept, nor with each other."""
    x = inputs(backend)
    found, leaves = total(x, backend), list(x.softplus_leaves().values())
    first = torch.autograd.grad(found, leaves, retain_graph=True)
    copies = [grad.clone() for grad in first]
    for grad in first:
        grad.zero_()
    for one, other in zip(torch.autograd.grad(found, leaves), copies):
        assert one.equal(other)


def narrow(factor: float) -> tuple[list[Tensor], list[Tensor]]:
    """float16: gradients with weights that it cannot hold times gradients, and a loss scale that makes up for it; and
    what they have to be."""
    x = inputs("triton", torch.float16)
    found = gradients(x, "triton", 1 / factor, factor * x.row_weights)
    exact = x.to(torch.float64)
    sums = exact.softplus_reference()["row_sum"]
    return found, list(torch.autograd.grad((exact.row_weights * sums).sum(), list(exact.softplus_leaves().values())))


@pytest.mark.skipif("triton" not in FUSED, reason="of Triton's kernels")
@pytest.mark.parametrize("factor", [2.0**-30, 2.0**20])
def test_float16_neither_underflows_nor_overflows(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """2^-30 is 1 / B^2 at B = 32,768."""

    def check() -> None:
        for grad, truth in zip(*narrow(factor)):
            assert (grad.double().cpu() - truth.cpu()).norm() <= 2e-3 * truth.norm()

    check()
    monkeypatch.setattr(schema, "kept_dtype", lambda dtype: dtype)
    monkeypatch.setattr("sparc_kernels.ops._triton.replay._tapes", {})  # of plans as they were
    with pytest.raises(AssertionError):
        check()


# Derivatives


@backends
def test_gradient_of_the_weights(backend: str) -> None:
    dtype = torch.float64 if backend == "cpu" else torch.float32
    x = inputs(backend, dtype)
    weights = x.row_weights.requires_grad_()
    found = torch.autograd.grad(3 * total(x, backend, weights), [weights, x.rows])
    sums = x.softplus_reference()["row_sum"]
    for one, other in zip(found, torch.autograd.grad(3 * (weights * sums).sum(), [weights, x.rows])):
        torch.testing.assert_close(one, other, **CLOSE)


@backends
def test_second_derivatives_raise(backend: str) -> None:
    """Whether the gradient was kept or is computed now."""
    x = inputs(backend)
    for again in (False, True):
        found = softplus_total(x, backend, again)["total"]
        (grad,) = torch.autograd.grad(found, x.rows, create_graph=True)
        with pytest.raises(RuntimeError, match="is not differentiable: the fused kernels have first derivatives only"):
            grad.sum().backward()


@backends
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_agree(reduction: str, backend: str) -> None:
    """In bfloat16, with weights and padding: the total is the sum of what ``"none"`` gives."""
    x = make(Case("reductions", M=M, N=M, D=D)).to(torch.bfloat16, device_of(backend))
    labels = torch.arange(M, device=x.rows.device) // 3
    labels[-1] = -1
    options: dict[str, Any] = {
        "logit_scale": x.scale, "logit_bias": x.bias, "weights": x.row_weights, "targets": Labels(labels, labels),
        "backend": backend,
    }  # fmt: skip
    found = sk.sigmoid_loss(x.rows, x.cols, reduction=reduction, **options)
    items = sk.sigmoid_loss(x.rows, x.cols, reduction="none", **options)
    wanted = {"mean": items.sum() / (M - 1), "sum": items.sum(), "none": items}[reduction]
    torch.testing.assert_close(found, wanted)
    for one, other in zip(*(torch.autograd.grad(y.sum(), (x.rows, x.cols, x.scale, x.bias)) for y in (found, wanted))):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-5)


# The op's own checks


@needs_cpu_half
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_weights": torch.ones(3)}, r"row_weights: expected shape \[4\], got \[3\]"),
        ({"row_weights": torch.ones(4).double()}, "row_weights: expected dtype Float, got Double"),
        ({"scale": torch.ones(4)}, r"scale: expected shape \[\], got \[4\]"),
        ({"bias": torch.ones(1)}, r"bias: expected shape \[\], got \[1\]"),
        ({"cols": torch.ones(3, 7)}, r"cols: expected shape \[3, 8\], got \[3, 7\]"),
    ],
)
def test_forward_checks(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "rows": torch.ones(4, 8), "cols": torch.ones(3, 8), "scale": torch.ones(()), "bias": torch.ones(()),
        "row_weights": torch.ones(4),
        **dict.fromkeys(("row_ids", "col_ids", "excluded_indptr", "excluded_indices", "guide_rows", "guide_cols")),
        "guide_threshold": None,
        **dict.fromkeys(("ids_exclude", "keep_rows", "keep_cols", "keep_scale", "keep_bias"), True),
        "float32_precision": "highest",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparc_kernels.similarity_softplus_total_forward(**given | change)


@needs_cpu_half
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad_total": torch.ones(1)}, r"grad_total: expected shape \[\], got \[1\]"),
        ({"grad_total": torch.ones(()).double()}, "grad_total: expected dtype Float, got Double"),
        ({"kept_rows": torch.ones(4, 8).bfloat16()}, "kept_rows: expected dtype Float, got BFloat16"),
        ({"kept_cols": torch.ones(3, 16)[:, ::2]}, "kept_cols: expected a contiguous tensor"),
        ({"kept_scale": torch.ones(()).double()}, "kept_scale: expected dtype Float, got Double"),
    ],
)
def test_backward_checks(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "grad_total": torch.ones(()), "rows": torch.ones(4, 8), "kept_rows": torch.ones(4, 8),
        "kept_cols": torch.ones(3, 8), "kept_scale": torch.ones(()), "kept_bias": torch.ones(()),
        "float32_precision": "highest",
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparc_kernels.similarity_softplus_total_backward(**given | change)

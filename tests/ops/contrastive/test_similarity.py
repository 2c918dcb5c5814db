"""The statistics and their gradients on every backend, against float64 truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.contrastive.autograd import (
    SimilarityLogsumexpFunction,
    SimilaritySoftplusFunction,
    SimilaritySoftplusTotalFunction,
)
from sparc_kernels.ops.contrastive.room import ROOM
from tests import tolerance
from tests.conftest import DTYPES, device_of, dtypes_of
from tests.ops.contrastive.cases import CASES, LARGE, Case, Inputs, make

BACKENDS = ["eager", *(backend for backend in ("cpu", "triton") if backend in ROOM.dtypes)]
FUSED = BACKENDS[1:]


def logsumexp(x: Inputs, backend: str, keep: bool = False) -> dict[str, Tensor]:
    """The outputs by name, as the fused op gives them."""
    if backend == "eager":
        return x.logsumexp_reference()
    leaves = x.logsumexp_leaves().values()
    row_lse, _, col_lse, *others = apply(
        SimilarityLogsumexpFunction, "similarity_logsumexp_forward", *leaves, *x.scope.values(), *x.case.direction,
        x.case.ids_exclude, keep, backend,
    )  # fmt: skip
    names = ("row_lse", "col_lse", "row_target", "col_target", "row_soft", "col_soft")
    return {name: found for name, found in zip(names, (row_lse, col_lse, *others)) if name in x.logsumexp_reference()}


def softplus(x: Inputs, backend: str, keep: bool = False) -> dict[str, Tensor]:
    if backend == "eager":
        return x.softplus_reference()
    scope = [value for name, value in x.scope.items() if name != "guide_scale"]
    row_sum, _ = apply(
        SimilaritySoftplusFunction, "similarity_softplus_forward", *x.softplus_leaves().values(), *scope,
        x.case.ids_exclude, keep, backend,
    )  # fmt: skip
    return {"row_sum": row_sum}


def softplus_total(x: Inputs, backend: str, again: bool = False) -> dict[str, Tensor]:
    """``again``: the forward pass keeps no gradient, so that the backward pass computes them."""
    if backend == "eager":
        return x.softplus_total_reference()
    scope = [value for name, value in x.scope.items() if name != "guide_scale"]
    total, *_ = apply(
        SimilaritySoftplusTotalFunction, "similarity_softplus_total_forward", *x.softplus_leaves().values(),
        x.row_weights, *scope, x.case.ids_exclude, *4 * (not again,), backend,
    )  # fmt: skip
    return {"total": total}


OPS = {"logsumexp": logsumexp, "softplus": softplus, "softplus_total": softplus_total}


def check(case: Case, backend: str, dtype: torch.dtype, keep: bool, op: str) -> None:
    if case.zeros and dtype == torch.float16:
        pytest.skip("the gradient of a zero vector, 1e12 times others, is beyond float16")
    run = OPS[op]

    def leaves(x: Inputs) -> dict[str, Tensor]:
        return x.logsumexp_leaves() if op == "logsumexp" else x.softplus_leaves()

    def reference(x: Inputs, **options: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = getattr(x, f"{op}_reference")(**options)
        return found

    made = make(case)
    exact, plain, x = made.to(torch.float64), made.to(dtype), made.to(dtype, device_of(backend))
    truth, eager, found = reference(exact), reference(plain, compute_dtype=dtype), run(x, backend, keep)
    assert list(found) == list(truth)
    for name, value in found.items():
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        gone = truth[name] == -torch.inf
        assert torch.equal(value.cpu() == -torch.inf, gone), f"{name}: rows with nothing left"
        keeping = ~gone
        tolerance.assert_close(name, value.cpu()[keeping], truth[name][keeping], eager[name][keeping], dtype, 1e-3)
    true_grads = exact.gradients(truth, leaves(exact))
    eager_grads = plain.gradients(eager, leaves(plain))
    for name, grad in x.gradients(found, leaves(x)).items():
        # a scale's gradient is a sum of cosines of both signs, each times a probability that a large scale makes
        # uncertain (a logit of 100 carries 6e-6 of rounding); and in one channel there is no direction to turn to
        of_embeds = case.scale / case.magnitude * (0.1 if case.D == 1 else 1e-6)
        of_scales = 1e-2 if case.scale <= 60 else 0.1 * max(1, min(case.M, case.N)) ** 0.5
        least = of_embeds if name in ("rows", "cols") else of_scales
        assert grad.shape == true_grads[name].shape
        tolerance.assert_close(f"grad of {name}", grad, true_grads[name], eager_grads[name], dtype, least)


def _parameters(cases: tuple[Case, ...], all_dtypes: bool) -> list[Any]:
    found = []
    for case in cases:
        for backend in BACKENDS:
            dtypes = dtypes_of(backend) if all_dtypes else DTYPES[backend][-1:]
            for dtype in dtypes:
                name = f"{case}-{backend}-{str(dtype).removeprefix('torch.')}"
                found.append(pytest.param(case, backend, dtype, id=name))
    return found


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case, backend, dtype", [*_parameters(CASES, True), *_parameters(LARGE, False)])
def test_against_truth(case: Case, backend: str, dtype: torch.dtype, op: str) -> None:
    if op != "logsumexp" and (case.soft or case.direction != (True, True)):
        pytest.skip("of the other op")
    check(case, backend, dtype, False, op)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "case, backend, dtype",
    # the interpreter is slow: Triton's kernels in one dtype
    [p for p in _parameters(CASES, True) if p.values[1] == "cpu" or p.values[1:] == ("triton", torch.float32)],
)
def test_kept_similarities_change_nothing(case: Case, backend: str, dtype: torch.dtype, op: str) -> None:
    """Nor does it change a total's gradients that nothing was kept for them."""
    if op != "logsumexp" and (case.soft or case.direction != (True, True)):
        pytest.skip("of the other op")
    check(case, backend, dtype, True, op)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_time(backend: str, op: str) -> None:
    """Whatever the number of threads."""
    run = OPS[op]
    seen: list[list[Tensor]] = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            case = LARGE[0] if backend == "cpu" else Case("two-tiles", M=80, N=70)  # the interpreter is slow
            x = make(case).to(torch.float32, device_of(backend))
            found = run(x, backend)
            leaves = x.logsumexp_leaves() if op == "logsumexp" else x.softplus_leaves()
            seen.append([*found.values(), *x.gradients(found, leaves).values()])
        finally:
            torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("backend", FUSED)
def test_frozen_sides_get_nothing(backend: str) -> None:
    for frozen in ("rows", "cols", "row_scale", "col_scale"):
        x = make(CASES[0]).to(torch.float32, device_of(backend))
        whole = x.gradients(logsumexp(x, backend), x.logsumexp_leaves())
        x.logsumexp_leaves()[frozen].requires_grad_(False)
        rest = {name: leaf for name, leaf in x.logsumexp_leaves().items() if name != frozen}
        for name, grad in x.gradients(logsumexp(x, backend), rest).items():
            assert torch.equal(grad, whole[name])

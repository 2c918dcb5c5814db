"""Cosines of row i and column i and their gradients on every backend, against float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _native
from sparc_kernels.ops._registration import apply, kernel
from sparc_kernels.ops.contrastive.autograd import PairedCosinesFunction
from sparc_kernels.ops.contrastive.reference import paired_cosines_reference
from sparc_kernels.ops.contrastive.room import ROOM
from tests import tolerance
from tests.conftest import DTYPES, device_of, dtypes_of

BACKENDS = ["eager", *(backend for backend in ("cpu", "triton") if backend in ROOM.dtypes)]
FUSED = BACKENDS[1:]
needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))

# pairs, channels, cosine of a pair (0: random), magnitude
SHAPES = (
    (7, 16, 0.0, 1.0),
    (0, 5, 0.0, 1.0),
    (1, 1, 0.0, 1.0),
    (33, 37, 0.9, 1.0),  # a pair more than a thread takes at a time
    (65, 1030, 0.5, 100.0),
    (40, 15, 0.999, 1e-3),
)
EVERY = [
    pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
    for backend in BACKENDS
    for dtype in dtypes_of(backend)
]


def make(
    shape: tuple[int, int, float, float], of_rows: str = "contiguous", of_cols: str = "contiguous"
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and the upstream gradient in float64, of numbers that bfloat16 holds exactly."""
    m, d, cosine, magnitude = shape
    generator = torch.Generator().manual_seed(m + d)
    rows, cols = (torch.randn(m, d, generator=generator, dtype=torch.float64) for _ in range(2))
    cols = cosine * rows + (1 - cosine**2) ** 0.5 * cols
    rows, cols = ((magnitude * x).bfloat16().double() for x in (rows, cols))
    upstream = torch.randn(m, generator=generator, dtype=torch.float64)
    return laid_out(rows, of_rows), laid_out(cols, of_cols), upstream


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "strided":
        return torch.stack([x, -x], -1)[..., 0]
    if layout == "rows-apart":
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    return x


def moved(x: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A leaf of the same numbers and strides."""
    made = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)
    return made.copy_(x.to(dtype)).requires_grad_()


def paired(rows: Tensor, cols: Tensor, backend: str) -> Tensor:
    if backend == "eager":
        return paired_cosines_reference(rows, cols)
    cosines: Tensor = apply(PairedCosinesFunction, "paired_cosines_forward", rows, cols, backend)[0]
    return cosines


def check(inputs: tuple[Tensor, Tensor, Tensor], backend: str, dtype: torch.dtype) -> None:
    def run(
        kind: torch.dtype, device: torch.device | str, function: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        rows, cols = (moved(x, kind, device) for x in inputs[:2])
        cosines = function(rows, cols)
        assert cosines.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        upstream = inputs[2].to(cosines.device, cosines.dtype)
        return [cosines.detach(), *torch.autograd.grad((upstream * cosines).sum(), (rows, cols))]

    truth = run(torch.float64, "cpu", paired_cosines_reference)
    eager = run(dtype, "cpu", lambda x, y: paired_cosines_reference(x, y, compute_dtype=dtype))
    found = run(dtype, device_of(backend), lambda x, y: paired(x, y, backend))
    # in one channel there is no direction to turn to: the gradient cancels to nothing
    one_channel = inputs[0].shape[1] == 1
    least = (0.1 if one_channel else 1e-3) / max(float(inputs[0].abs().mean()) if inputs[0].numel() else 1.0, 1e-30)
    for name, one, exact, plain, size in zip(
        ("cosines", "grad of rows", "grad of cols"), found, truth, eager, (1e-3, least, least), strict=True
    ):
        tolerance.assert_close(name, one.cpu(), exact, plain, dtype, size)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}-{shape[2]}")
@pytest.mark.parametrize("backend, dtype", EVERY)
def test_against_truth(shape: tuple[int, int, float, float], backend: str, dtype: torch.dtype) -> None:
    check(make(shape), backend, dtype)


@pytest.mark.parametrize(
    "layouts", [("transposed", "rows-apart"), ("strided", "transposed"), ("contiguous", "strided")], ids="-".join
)
@pytest.mark.parametrize("backend, dtype", EVERY)
def test_strides(layouts: tuple[str, str], backend: str, dtype: torch.dtype) -> None:
    inputs = make((35, 37, 0.5, 1.0), *layouts)
    assert inputs[0].stride() != inputs[1].stride()
    check(inputs, backend, dtype)


@pytest.mark.parametrize("backend, dtype", EVERY)
def test_zero_vectors(backend: str, dtype: torch.dtype) -> None:
    """Cosine 0; the other's direction times 1e12, and no turn, as gradient; 0 and not NaN where both are 0."""
    if dtype == torch.float16:
        pytest.skip("1e12 is beyond float16")
    rows, cols, upstream = make((7, 20, 0.5, 1.0))
    rows[1], cols[2] = 0.0, 0.0
    rows[4] = cols[4] = 0.0
    rows[5] *= 2.0**-43  # a norm of about 5e-13, which is clamped: a cosine below that of the directions, and no turn
    cols[6] *= 2.0**-43
    check((rows, cols, upstream), backend, dtype)
    x, y = (moved(side, dtype, device_of(backend)) for side in (rows, cols))
    cosines = paired(x, y, backend)
    assert cosines[[1, 2, 4]].tolist() == [0.0, 0.0, 0.0]
    grads = torch.autograd.grad(cosines.sum(), (x, y))
    assert all(not grad[4].any() for grad in grads)
    assert grads[1][1].abs().max() == 0
    assert grads[0][1].abs().max() > 1e9


@pytest.mark.parametrize("backend", FUSED)
def test_frozen_sides_get_nothing(backend: str) -> None:
    rows, cols, upstream = (x.to(device_of(backend), torch.float32) for x in make((9, 40, 0.5, 1.0)))
    _, stats = kernel("paired_cosines_forward", backend)(rows, cols, "highest")
    backward = kernel("paired_cosines_backward", backend)
    whole = backward(upstream, rows, cols, stats, True, True, "highest")
    for needed in ((True, False), (False, True), (False, False)):
        for grad, full, need in zip(backward(upstream, rows, cols, stats, *needed, "highest"), whole, needed):
            assert torch.equal(grad, full) if need else grad.shape == (0,)


@pytest.mark.parametrize("backend", FUSED)
def test_nan_stays_in_its_pair(backend: str) -> None:
    rows, cols, _ = (x.to(device_of(backend), torch.float32) for x in make((9, 40, 0.5, 1.0)))
    rows[3, 5] = torch.nan
    rows.requires_grad_()
    cols.requires_grad_()
    cosines = paired(rows, cols, backend)
    for found in (cosines, *torch.autograd.grad(cosines.sum(), (rows, cols))):
        wrong = found.view(9, -1).isnan().cpu()
        assert torch.equal(wrong.any(1), torch.arange(9) == 3)
        assert wrong[3].all()


@pytest.mark.parametrize("backend, dtype", EVERY)
def test_same_bits_every_time(backend: str, dtype: torch.dtype) -> None:
    """Whatever the number of threads."""
    seen = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows, cols, upstream = (
                moved(x, dtype, device_of(backend)) if x.dim() > 1 else x for x in make((300, 70, 0.5, 1.0))
            )
            cosines = paired(rows, cols, backend)
            upstream = upstream.to(cosines.device, cosines.dtype)
            seen.append([cosines, *torch.autograd.grad((upstream * cosines).sum(), (rows, cols))])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_every_instruction_set(capability: str) -> None:
    for dtype in DTYPES["cpu"]:
        for shape in SHAPES[3:]:
            check(make(shape), "cpu", dtype)
        check(make((35, 37, 0.5, 1.0), "transposed", "strided"), "cpu", dtype)


@needs_cpu_half
def test_bfloat16_is_rounded_to_nearest_even(capability: str) -> None:
    """The float32 gradient of the same numbers, rounded as PyTorch does."""
    rows, cols, upstream = make((40, 53, 0.5, 1.0))
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        x, y = (moved(side, dtype, "cpu") for side in (rows, cols))
        grads.append(torch.autograd.grad((upstream.float() * paired(x, y, "cpu")).sum(), (x, y)))
    for rounded, exact in zip(*grads):
        assert torch.equal(rounded, exact.bfloat16())


def test_second_derivatives_in_eager_mode() -> None:
    rows, cols, _ = make((4, 5, 0.5, 1.0))
    function = lambda x, y: sk.paired_cosines(x, y, backend="eager")  # noqa: E731
    assert torch.autograd.gradgradcheck(function, (rows.requires_grad_(), cols.requires_grad_()))


@needs_cpu_half
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(4)}, r"rows: expected 2 dimensions \[M, D\], got 1"),
        ({"rows": torch.zeros(4, 8).half()}, "rows: the CPU kernels take Float, Double and BFloat16, got Half"),
        ({"cols": torch.zeros(3, 8)}, r"cols: expected shape \[4, 8\], got \[3, 8\]"),
        ({"cols": torch.zeros(4, 8).double()}, "cols: expected dtype Float, got Double"),
        ({"grad_cosines": torch.zeros(3)}, r"grad_cosines: expected shape \[4\], got \[3\]"),
        ({"stats": torch.zeros(2, 4)}, r"stats: expected shape \[3, 4\], got \[2, 4\]"),
        ({"stats": torch.zeros(4, 3).T}, "stats: expected a contiguous tensor"),
    ],
)
def test_op_checks(change: dict[str, Any], message: str) -> None:
    given = {
        "grad_cosines": torch.zeros(4),
        "rows": torch.zeros(4, 8),
        "cols": torch.zeros(4, 8),
        "stats": torch.zeros(3, 4),
        "need_rows": True,
        "need_cols": True,
        "float32_precision": "highest",
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparc_kernels.paired_cosines_backward(**{**given, **change})

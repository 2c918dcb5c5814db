"""Losses of pairs (i, i) that Triton launches as a whole: against float64, and where the registered ops take over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from sparc_kernels import functional
from sparc_kernels.ops.contrastive import autograd
from sparc_kernels.ops.contrastive.config import Blocks, TileConfig
from tests.conftest import device_of
from tests.ops.contrastive.test_triton import tiles
from tests.tolerance import assert_close

SIZE = 40
# Supertiles of one tile.
TINY = TileConfig(16, 16, 16, parts=1, most_tiles=1, most_programs=0)
LOSSES = ("contrastive_loss", "sigmoid_loss")
ALL = (True, True, True)
ZERO = 21  # a row whose norm counts as a constant: its gradient is a million million times the others'


@pytest.fixture(params=[False, True], ids=["tiles", "whole"])
def small_tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Blocks of two supertiles, one above or beside the other; in the second case of such in which every pair may take
    part."""
    blocks = Blocks(32, 16, (1, 1)) if request.param else Blocks(16, 32, (1, 1))
    with tiles(replace(TINY, described=request.param), blocks):
        yield


def inputs(dtype: torch.dtype, needs: tuple[bool, ...] = ALL, size: int = SIZE) -> list[Tensor]:
    """Rows, cols, scale, bias; the last two need a gradient together. In full precision one row is zero."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(size, 24, generator=generator)
    cols = 0.7 * rows + torch.randn(size, 24, generator=generator)
    if dtype in (torch.float32, torch.float64) and size > ZERO:
        rows[ZERO] = 0.0
    numbers = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [*(x.to(device_of("triton"), dtype) for x in (rows, cols))]
    leaves += [torch.tensor(x, dtype=numbers, device=device_of("triton")) for x in (9.0, -2.0)]
    return [x.requires_grad_(need) for x, need in zip(leaves, (*needs, needs[2]))]


def loss_of(name: str, leaves: list[Tensor], backend: str = "triton", **options: Any) -> Tensor:
    numbers = {"logit_scale": leaves[2]} | ({"logit_bias": leaves[3]} if name == "sigmoid_loss" else {})
    found: Tensor = getattr(functional, name)(*leaves[:2], **numbers, backend=backend, **options)
    return found


def gradients(name: str, leaves: list[Tensor], backend: str = "triton", **options: Any) -> list[Tensor]:
    """The loss, and 3 times its gradients."""
    loss = loss_of(name, leaves, backend, **options)
    wanted = [x for x in leaves[: 4 if name == "sigmoid_loss" else 3] if x.requires_grad]
    return [loss.detach(), *torch.autograd.grad(3 * loss, wanted)]


def only_whole() -> Any:
    """No registered op may be asked for."""
    return mock.patch.object(autograd, "kernel", side_effect=AssertionError("a registered op"))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "dtype, needs",
    [
        (torch.float32, ALL),
        (torch.bfloat16, ALL),
        (torch.float16, ALL),
        (torch.bfloat16, (False, True, False)),
        (torch.bfloat16, (False, False, True)),
    ],
    ids=str,
)
def test_against_float64(name: str, dtype: torch.dtype, needs: tuple[bool, ...]) -> None:
    exact = [x.detach().to(torch.float64).requires_grad_(x.requires_grad) for x in inputs(dtype, needs)]
    truth = gradients(name, exact, "eager")
    others = torch.arange(SIZE, device=exact[0].device) != ZERO
    eager = gradients(name, inputs(dtype, needs), "eager")
    with only_whole():
        found = gradients(name, inputs(dtype, needs))
    for each, right, plain in zip(found, truth, eager, strict=True):
        assert each.dtype == plain.dtype
        if each.dim() == 2:
            assert_close(f"{name} at {ZERO}", each[ZERO], right[ZERO], plain[ZERO], dtype)
            each, right, plain = each[others], right[others], plain[others]
        assert_close(name, each, right, plain, dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_ops_take_over_where_somebody_looks(name: str) -> None:
    """A mode that counts, a transform, an empty batch; and the numbers are the same."""
    leaves = inputs(torch.float32, size=20)
    with only_whole():
        expected = gradients(name, leaves)
    with FlopCounterMode(display=False) as counter:
        counted = gradients(name, leaves)
    assert counter.get_total_flops() > 2 * 3 * 20 * 20 * 24
    transformed = torch.func.grad(lambda rows: 3 * loss_of(name, [rows, *leaves[1:]]))(leaves[0])
    for other, of in ((counted, expected), ([transformed], expected[1:2])):
        for one, exact in zip(other, of, strict=True):
            torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-6)
    assert loss_of(name, inputs(torch.float32, size=0)) == 0.0


def test_a_sum_is_the_mean_times_the_batch() -> None:
    leaves = inputs(torch.float32, size=20)
    mean, total = (gradients("sigmoid_loss", leaves, reduction=reduction) for reduction in ("mean", "sum"))
    for one, other in zip(mean, total, strict=True):
        torch.testing.assert_close(20 * one, other)


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_are_refused(name: str) -> None:
    leaves = inputs(torch.float32, size=5)
    (of_rows,) = torch.autograd.grad(loss_of(name, leaves), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiable"):
        torch.autograd.grad(of_rows.sum(), leaves[0])

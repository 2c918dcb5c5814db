"""The sigmoid's sweep by products of warpgroups (csrc/contrastive), in the emulator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from sparc_kernels.ops.contrastive.config import Blocks, TileConfig, choose_native
from tests.conftest import device_of
from tests.emulation.host import build
from tests.emulation.host.backend import _packed
from tests.emulation.host.run import server

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

SOURCE = Path(__file__).with_name("emulated.cpp")
UNWRITTEN = -77.0
EPS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Case:
    """``diagonal``: column less row of the pairs that take no part; ``scale``: up to it logits leave float32's 2^z."""

    rows: int
    cols: int
    channels: int
    columns: int
    runs: int = 1
    diagonal: int = 0
    scale: float = 9.0
    bias: float = -2.0
    dtype: torch.dtype = torch.bfloat16
    stored: bool = True

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}x{self.channels}"


# Tiles of 64 rows: runs of one or two of them, the last of which is shorter or empty; a diagonal through the tiles'
# corners, beside them, outside. Channels of one to twelve panels, the last of which may be short.
CASES = (
    Case(130, 300, 40, 128, runs=2, bias=-19.0),
    Case(200, 100, 136, 96, runs=3, diagonal=-65, dtype=torch.float16),
    Case(65, 192, 264, 192, diagonal=127, scale=-3.0),
    Case(64, 128, 768, 128, diagonal=-15),
    Case(192, 129, 128, 128, scale=160.0, bias=-1.0),
    Case(100, 96, 64, 96, diagonal=16, dtype=torch.float16, stored=False),
)


def make(case: Case) -> dict[str, Any]:
    """The arguments of the op. Some items are alike, one row is zero and so has a great inverse norm."""
    generator = torch.Generator().manual_seed(case.rows + case.channels)
    rows = torch.randn(case.rows, case.channels, generator=generator)
    cols = torch.randn(case.cols, case.channels, generator=generator)
    cols[3:40] = rows[10:47]
    rows[11] = 0.0
    room = torch.full((case.rows, case.channels + 8), torch.nan)
    room[:, : case.channels] = rows
    rows, cols = room.to(case.dtype)[:, : case.channels], cols.to(case.dtype)
    inverse = [1 / x.double().norm(dim=1).clamp(min=1e-12).float() for x in (rows, cols)]
    width = -(-case.cols // 16) * 16
    return {
        "rows": rows,
        "cols": cols,
        "row_inverse": inverse[0],
        "col_inverse": inverse[1],
        "scale": torch.tensor(case.scale),
        "bias": torch.tensor(case.bias),
        "weights": torch.rand(case.rows, generator=generator) / case.rows,
        "power": torch.tensor([2.0**9, 2.0**-9]) if case.dtype == torch.float16 else None,
        "gradient": torch.full((case.rows, width), UNWRITTEN, dtype=case.dtype) if case.stored else None,
        "partials": torch.full((3, -(-case.cols // case.columns), case.rows), UNWRITTEN),
        "columns": case.columns,
        "diagonal": case.diagonal,
        "runs": case.runs,
    }


def expected(case: Case, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """G and the partial sums by the definition, in float64."""
    rows, cols, a, b, w = (given[x].double() for x in ("rows", "cols", "row_inverse", "col_inverse", "weights"))
    cosines = rows @ cols.T * a[:, None] * b
    z = case.scale * cosines + case.bias
    own = torch.arange(case.cols) - torch.arange(case.rows)[:, None] == case.diagonal
    z = z.masked_fill(own, -torch.inf)
    slopes = w[:, None] * torch.sigmoid(z)
    gradient = slopes * a[:, None] * b * case.scale
    if given["power"] is not None:
        gradient = (gradient * given["power"][0].double()).clamp(-65504, 65504)
    softplus = torch.logaddexp(z, torch.zeros_like(z))
    fields = [
        torch.stack([part.sum(1) for part in field.split(case.columns, 1)])
        for field in (slopes * cosines, slopes, softplus)
    ]
    return gradient, torch.stack(fields)


def found(case: Case, given: dict[str, Any], seed: int = 0) -> tuple[Tensor | None, Tensor]:
    """G and the partial sums that the kernel has written."""
    packed = {name: _packed(x) for name, x in given.items()}
    made = server(SOURCE).call("resident_softplus", given=packed, bfloat16=case.dtype == torch.bfloat16, seed=seed)
    gradient, partials = made.unwrap()
    if gradient is not None:
        gradient = torch.from_numpy(gradient).view(case.dtype).view(given["gradient"].shape)
    return gradient, torch.from_numpy(partials).view(given["partials"].shape)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case: Case) -> None:
    given = make(case)
    (gradient, partials), (exact, sums) = found(case, given), expected(case, given)
    size = sums.abs().amax(2, keepdim=True)
    torch.testing.assert_close(partials.double() / size, sums / size, rtol=0, atol=3e-6)
    value = sums[2]  # small ones, too
    torch.testing.assert_close(partials[2].double(), value, rtol=2e-5, atol=0)
    assert (gradient is not None) == case.stored
    if gradient is not None:
        assert not gradient[:, case.cols :].any()
        torch.testing.assert_close(gradient[:, : case.cols].double(), exact, rtol=1.01 * EPS[case.dtype], atol=1e-7)


def test_the_same_bits_whatever_the_order_of_threads() -> None:
    """And a product that is not finite is its row's alone."""
    case = Case(100, 256, 64, 128)
    given = make(case)
    given["rows"][70, 3] = torch.nan
    first, again = (found(case, given, seed) for seed in (1, 2))
    for one, other in zip(first, again):
        assert one is not None
        assert other is not None
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    gradient, partials = first
    assert gradient is not None
    assert gradient.isnan().any(1).nonzero().flatten().tolist() == [70]
    assert partials.isnan().any(0).any(0).nonzero().flatten().tolist() == [70]


@pytest.fixture
def played_step() -> Iterator[list[int]]:
    """The step in the emulator where there is no GPU, beside Triton's steps in its interpreter; the diagonal of each
    call. On a GPU the step is run there."""
    pytest.importorskip("triton")
    from sparc_kernels.ops.contrastive import native

    ran: list[int] = []
    on_a_gpu = native.run_sweep

    def run_sweep(**arguments: Any) -> None:
        ran.append(arguments["diagonal"])
        if arguments["rows"].is_cuda:
            on_a_gpu(**arguments)
            return
        g, dtype = arguments["gradient"], arguments["rows"].dtype
        arguments["gradient"] = g.as_strided((len(g), -(-g.shape[1] // 16) * 16), g.stride())  # with its padding
        packed = {name: _packed(x) for name, x in arguments.items()}
        call = {"given": packed, "bfloat16": dtype == torch.bfloat16, "seed": 0}
        made, sums = server(SOURCE).call("resident_softplus", **call).unwrap()
        filled = torch.as_strided(torch.from_numpy(made).view(dtype), arguments["gradient"].shape, g.stride())
        arguments["gradient"].copy_(filled)
        arguments["partials"].view(-1).copy_(torch.from_numpy(sums))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(native, "run_sweep", run_sweep))
        if not torch.cuda.is_available():
            stack.enter_context(mock.patch.object(native, "missing", return_value=None))
        yield ran


def losses(leaves: list[Tensor], config: TileConfig | None, blocks: Blocks | None = None) -> list[Tensor]:
    """The sigmoid loss and what its plan keeps: its gradients."""
    from sparc_kernels.ops._triton.replay import run_plan
    from sparc_kernels.ops.contrastive.triton_losses import sigmoid_forward_plan
    from tests.ops.contrastive import test_triton

    arguments = (*leaves, True, True, True, True, True, "highest")
    if config is None:
        exact = [x.detach().double().requires_grad_() for x in leaves]
        from sparc_kernels import functional

        loss = functional.sigmoid_loss(*exact[:2], logit_scale=exact[2], logit_bias=exact[3], backend="eager")
        return [loss.detach(), *torch.autograd.grad(loss, exact)]
    with test_triton.tiles(config, blocks):
        return list(run_plan(sigmoid_forward_plan, arguments, leaves[0], config))


def check_plan(size: int, channels: int, config: TileConfig, blocks: Blocks | None, dtype: torch.dtype) -> None:
    """Loss and gradients against float64."""
    from sparc_kernels.ops.contrastive import native

    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(size, channels, generator=generator)
    cols = 0.7 * rows + torch.randn(size, channels, generator=generator)
    device = device_of("triton")
    leaves = [x.to(device, dtype) for x in (rows, cols)] + [torch.tensor(x, device=device) for x in (9.0, -2.0)]
    if (reason := native.refusal(leaves[0], leaves[1], config.block_n)) is not None:
        pytest.skip(reason)
    made, truth = losses(leaves, config, blocks), losses(leaves, None)
    for one, exact, most in zip(made, truth, (1e-5, 0.01, 0.01, 1e-4, 1e-4), strict=True):
        assert (one.double() - exact).norm() <= most * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_plan_with_it(dtype: torch.dtype, played_step: list[int]) -> None:
    """In blocks, one of which has the diagonal at its corner and one beside it."""
    columns = 128 if dtype == torch.bfloat16 else 96
    config = choose_native(64, columns)
    assert config is not None
    check_plan(150, 64, config, Blocks(128, columns, (1, 1)), dtype)
    assert sorted(played_step) == [-columns, 0, 128 - columns, 128]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "channels", "dtype"),
    [(1000, 64, torch.bfloat16), (2048, 512, torch.float16), (4096, 768, torch.bfloat16), (2049, 1024, torch.bfloat16)],
)
def test_the_plan_with_it_at_size(size: int, channels: int, dtype: torch.dtype, played_step: list[int]) -> None:
    config = choose_native(channels)
    assert config is not None
    check_plan(size, channels, config, None, dtype)
    check_plan(size, channels, replace(config, workspace_bytes=1 << 20), None, dtype)
    assert len(played_step) > 2

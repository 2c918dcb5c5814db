"""The sigmoid's sweep by products of warpgroups (csrc/contrastive), in the emulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
    Case(130, 300, 40, 128, runs=2),
    Case(200, 100, 136, 96, runs=3, diagonal=-65, dtype=torch.float16),
    Case(65, 192, 264, 192, diagonal=127, scale=-3.0),
    Case(64, 128, 768, 128, diagonal=500),
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

"""Inputs that every backend is tested on, and the float64 truth that they are held to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops.contrastive.reference import similarity_logsumexp_reference, similarity_softplus_reference

LOGSUMEXP_OUTPUTS = ("row_lse", "col_lse", "row_target", "col_target", "row_soft", "col_soft")


@dataclass(frozen=True)
class Case:
    """``cosine``: of the matched pairs (i, i); 0 leaves them random. ``ids``: how many items share one; 0: no ids.

    ``pairs``: excluded pairs per row. ``guide``: its width. ``padded``: items of id -1 at the end of the columns, and
    the first row. ``one_scale``: of both directions, and one tensor.
    ``opposite``: all cosines are negative.
    """

    name: str
    M: int = 7
    N: int = 7
    D: int = 16
    scale: float = 1 / 0.07
    col_scale: float | None = None
    bias: float = -3.0
    cosine: float = 0.0
    ids: int = 1
    ids_exclude: bool = True
    pairs: int = 0
    guide: int = 0
    threshold: float | None = None
    soft: bool = False
    per_item: bool = False
    padded: int = 0
    magnitude: float = 1.0
    strided: bool = False
    direction: tuple[bool, bool] = (True, True)
    zeros: bool = False
    one_scale: bool = False
    opposite: bool = False

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("square"),
    Case("no-ids", ids=0),
    Case("rectangular", M=5, N=19),
    Case("tall", M=23, N=3, D=40),
    Case("one-pair", M=1, N=1),  # nothing left
    Case("one-channel", D=1),
    Case("padded", padded=2),
    Case("shared-ids", M=12, N=12, ids=3),
    Case("labels", M=12, N=12, ids=3, ids_exclude=False),
    Case("labels-padded", M=12, N=9, ids=4, ids_exclude=False, padded=2),
    Case("pairs", M=9, N=14, ids=0, pairs=3),
    Case("pairs-and-ids", M=9, N=14, pairs=2),
    Case("all-pairs", M=4, N=3, ids=0, pairs=3),  # nothing left
    Case("above", guide=6, threshold=0.1),
    Case("above-per-row", M=6, N=11, guide=6, threshold=0.1, per_item=True),
    Case("teacher", M=6, N=11, ids=0, guide=5, soft=True),
    Case("teacher-of-labels", M=12, N=12, ids=3, ids_exclude=False, guide=20, soft=True),
    Case("teacher-and-above", M=8, N=8, guide=5, soft=True, threshold=0.2, pairs=1),
    Case("scales", col_scale=5.0),
    Case("scale-per-item", M=6, N=9, per_item=True),
    Case("sharp", scale=100.0, M=12, N=12, D=32),
    Case("matched", cosine=0.9, M=12, N=12, D=32),
    Case("matched-sharp", cosine=0.9, scale=100.0, M=12, N=12, D=32),
    Case("matched-half", cosine=0.5, scale=100.0, M=12, N=12, D=32, ids=0),
    Case("rows-only", direction=(True, False)),
    Case("cols-only", M=5, N=8, direction=(False, True)),
    Case("zero-vectors", zeros=True),
    Case("large", magnitude=100.0),
    Case("small", magnitude=1e-3),
    Case("strided", M=9, N=6, D=24, strided=True),
    Case("uneven", M=131, N=77, D=72, guide=9, soft=True, pairs=2),
    Case("uneven-labels", M=67, N=150, D=33, ids=5, ids_exclude=False, padded=3),
    Case("no-rows", M=0, N=4),
    Case("no-rows-of-many", M=0, N=600, D=8, ids_exclude=False, guide=5, soft=True),
    Case("no-cols", M=4, N=0),
)
LARGE = (
    Case("batch-300", M=300, N=300, D=128, cosine=0.5),
    Case("batch-300-sharp", M=300, N=270, D=64, cosine=0.9, scale=100.0),
    Case("wide", M=70, N=200, D=1030, padded=3),
)


@dataclass
class Inputs:
    rows: Tensor
    cols: Tensor
    row_scale: Tensor
    col_scale: Tensor
    scale: Tensor  # [], of the softplus
    bias: Tensor
    scope: dict[str, Tensor | None]  # row_ids ... guide_threshold, as the ops name them
    case: Case
    upstream: list[Tensor] = field(default_factory=list)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Inputs:
        """The same numbers in another embedding dtype and place, as leaves that need gradients."""
        accumulation = accumulation_dtype(dtype)

        def leaf(x: Tensor, kind: torch.dtype) -> Tensor:
            moved = x.detach().to(device, kind)
            return torch.empty_strided(x.shape, x.stride(), dtype=kind, device=device).copy_(moved).requires_grad_()

        def move(name: str, x: Tensor | None) -> Tensor | None:
            if x is None or not x.is_floating_point():
                return None if x is None else x.to(device)
            return x.to(device, dtype if name in ("guide_rows", "guide_cols") else accumulation)

        row_scale = leaf(self.row_scale, accumulation)
        return Inputs(
            leaf(self.rows, dtype),
            leaf(self.cols, dtype),
            row_scale,
            row_scale if self.case.one_scale else leaf(self.col_scale, accumulation),
            leaf(self.scale, accumulation),
            leaf(self.bias, accumulation),
            {name: move(name, x) for name, x in self.scope.items()},
            self.case,
            [x.to(device, accumulation) for x in self.upstream],
        )

    def logsumexp_leaves(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "cols": self.cols, "row_scale": self.row_scale, "col_scale": self.col_scale}

    def softplus_leaves(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "cols": self.cols, "scale": self.scale, "bias": self.bias}

    def logsumexp_reference(self, compute_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        found = similarity_logsumexp_reference(
            self.rows, self.cols, self.row_scale, self.col_scale, **self.scope, by_rows=self.case.direction[0],
            by_cols=self.case.direction[1], ids_exclude=self.case.ids_exclude, compute_dtype=compute_dtype,
        )  # fmt: skip
        return {name: x for name, x in zip(LOGSUMEXP_OUTPUTS, found) if x is not None}

    def softplus_reference(self, compute_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        scope = {name: x for name, x in self.scope.items() if name != "guide_scale"}
        found = similarity_softplus_reference(
            self.rows, self.cols, self.scale, self.bias, **scope, ids_exclude=self.case.ids_exclude,
            compute_dtype=compute_dtype,
        )  # fmt: skip
        return {"row_sum": found}

    @property
    def row_weights(self) -> Tensor:
        """[M], of the total."""
        return self.upstream[1][: self.case.M].abs() / max(self.case.M, 1)

    def softplus_total_reference(self, compute_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return {"total": (self.row_weights * self.softplus_reference(compute_dtype)["row_sum"]).sum()}

    def gradients(self, outputs: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of sum(upstream * output) over the outputs, a row with nothing left not among them."""
        total = sum(
            (torch.where(x.isfinite(), x, 0.0) * (up[: x.shape[0]] if x.dim() else up[0])).sum()
            for x, up in zip(outputs.values(), self.upstream, strict=False)
        )
        assert isinstance(total, Tensor)
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), found)}


def make(case: Case) -> Inputs:
    """Inputs in float64 that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(len(case.name) + case.M)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def exact(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).double()

    rows, cols = normal(case.M, case.D), normal(case.N, case.D)
    if case.opposite:
        rows, cols = -rows.abs(), cols.abs()
    if case.cosine:
        n = min(case.M, case.N)
        cols[:n] = case.cosine * rows[:n] + (1 - case.cosine**2) ** 0.5 * cols[:n]
    rows, cols = exact(rows * case.magnitude), exact(cols * case.magnitude)
    if case.zeros:
        rows[1], cols[2] = 0.0, 0.0
    if case.strided:
        rows, cols = rows.T.contiguous().T, torch.stack([cols, cols], 1)[:, 0]
    scope: dict[str, Any] = dict.fromkeys(
        ("row_ids", "col_ids", "excluded_indptr", "excluded_indices", "guide_rows", "guide_cols", "guide_scale",
         "guide_threshold")
    )  # fmt: skip
    if case.ids:
        scope["row_ids"], scope["col_ids"] = (torch.arange(n) // case.ids for n in (case.M, case.N))
    if case.padded:
        scope["row_ids"][0] = -1
        scope["col_ids"][case.N - case.padded :] = -1
    if case.pairs:
        chosen = [torch.randperm(case.N, generator=generator)[: case.pairs].sort().values for _ in range(case.M)]
        scope["excluded_indices"] = torch.cat(chosen)
        scope["excluded_indptr"] = torch.arange(case.M + 1) * case.pairs
    number = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
    if case.guide:
        scope["guide_rows"], scope["guide_cols"] = exact(normal(case.M, case.guide)), exact(normal(case.N, case.guide))
        scope["guide_scale"] = number(8.0) if case.soft else None
    if case.threshold is not None:
        scope["guide_threshold"] = number(case.threshold)
        if case.per_item:
            scope["guide_threshold"] = case.threshold + 0.1 * normal(case.M)
    row_scale, col_scale = number(case.scale), number(case.col_scale or case.scale)
    if case.per_item:
        row_scale, col_scale = (
            case.scale * (0.5 + torch.rand(n, generator=generator).double()) for n in (case.M, case.N)
        )
    upstream = [normal(max(case.M, case.N)) for _ in LOGSUMEXP_OUTPUTS]
    return Inputs(rows, cols, row_scale, col_scale, number(case.scale), number(case.bias), scope, case, upstream)

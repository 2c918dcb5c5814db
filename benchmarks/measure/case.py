"""What is measured: one case is an op, a direction, shapes and a dtype; its inputs, its bytes and its flop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCALE = 1 / 0.07
FORWARD, BOTH = "forward", "forward+backward"
OPS = ("fine_grained", "sparc", "grouping", "weights", "contrastive")


@dataclass(frozen=True)
class Case:
    """``patches`` and ``tokens`` are 0 for ops that have none. ``captions``: ``full`` or ``ragged`` (5 to L tokens).

    ``frozen``: the side that needs no gradient, ``first`` or ``second``, or empty. ``axis`` names the size that a
    scaling suite varies, and is empty elsewhere.
    """

    suite: str
    op: str
    batch: int
    patches: int = 0
    tokens: int = 0
    channels: int = 512
    dtype: str = "bfloat16"
    mode: str = BOTH
    captions: str = "full"
    frozen: str = ""
    axis: str = ""
    preset: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in ("", 0)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        return cls(**values)

    @property
    def torch_dtype(self) -> torch.dtype:
        kind = getattr(torch, self.dtype)
        assert isinstance(kind, torch.dtype)
        return kind

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    def __str__(self) -> str:
        sizes = (("B", self.batch), ("P", self.patches), ("L", self.tokens), ("D", self.channels))
        parts = [self.preset, *(f"{name}={size}" for name, size in sizes if size), self.dtype, self.mode]
        if self.captions != "full":
            parts.append(self.captions)
        if self.frozen:
            parts.append(f"{self.frozen} frozen")
        return " ".join([self.op, *filter(None, parts)])


def caption_lengths(case: Case) -> Tensor:
    """[B] valid tokens of each caption, the same for every device."""
    if case.captions == "full":
        return torch.full((case.batch,), case.tokens)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(min(5, case.tokens), case.tokens + 1, (case.batch,), generator=generator)


@dataclass
class Inputs:
    """``first`` and ``second`` are patches and tokens, or images and texts [B, D]."""

    first: Tensor
    second: Tensor
    mask: Tensor | None  # [B, L]
    upstream: Tensor | None  # gradient of a result that is no scalar
    scale: Tensor  # []

    @property
    def input_bytes(self) -> int:
        return self.first.nbytes + self.second.nbytes

    def leaves(self) -> dict[str, Tensor]:
        """The embeddings that need a gradient."""
        return {name: x for name, x in (("first", self.first), ("second", self.second)) if x.requires_grad}


def draw(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        # Drawn in its own dtype: at the largest shapes a float32 copy beside it would not fit.
        return torch.randn(*shape, generator=generator, device=device, dtype=case.torch_dtype)

    mask = None
    if case.captions != "full":
        mask = (torch.arange(case.tokens) < caption_lengths(case)[:, None]).to(device)
    scale = torch.full((), SCALE, device=device)
    if case.op == "contrastive":
        first, second = normal(case.batch, case.channels), normal(case.batch, case.channels)
        return Inputs(first.requires_grad_(), second.requires_grad_(), None, None, scale)
    first, second = normal(case.batch, case.patches, case.channels), normal(case.batch, case.tokens, case.channels)
    width = {"grouping": case.channels, "weights": case.patches}.get(case.op)
    upstream = None if width is None else normal(case.batch, case.tokens, width)
    first.requires_grad_(case.frozen != "first")
    second.requires_grad_(case.frozen != "second")
    return Inputs(first, second, mask, upstream, scale)


def model(case: Case) -> dict[str, float]:
    """The fewest bytes and flop that any implementation in linear memory needs (ops/*/MATH.md).

    Every input is read once per direction and every gradient written once. Of the products only those count that are
    left where nothing is computed twice. Padding is not read, but its gradients are written.
    """
    B, P, D, e, both = case.batch, case.patches, case.channels, case.itemsize, case.mode == BOTH
    if case.op == "contrastive":
        return {"bytes": (3 if both else 1) * 2 * B * D * e, "flop": (6 if both else 2) * B * B * D}
    lengths = caption_lengths(case).double()
    valid, squares, padded = float(lengths.sum()), float((lengths**2).sum()), B * case.tokens
    read = (B * P + valid) * D * e
    written = ((case.frozen != "first") * B * P + (case.frozen != "second") * padded) * D * e
    product = 2 * valid * P * D
    if case.op in ("fine_grained", "sparc"):
        # Forward S, C', U S^T; backward C' V^T, two for dV, dT, and three in L^2 P. Frozen patches save the two, frozen
        # tokens one.
        backward = 6 - {"first": 2, "second": 1}.get(case.frozen, 0)
        flop = (2 + both * backward) * product + (2 + both * 6) * squares * P
        if case.op == "sparc":
            flop += (6 if both else 2) * B * B * D
        return {"bytes": 2 * read + written if both else read, "flop": flop}
    output = padded * (D if case.op == "grouping" else P) * e
    products = {"grouping": (2, 7), "weights": (1, 4)}[case.op][both]
    return {"bytes": 2 * read + written + 2 * output if both else read + output, "flop": products * product}


def floor_milliseconds(work: dict[str, float], roofs: dict[str, float]) -> tuple[float, str]:
    """The time below which the machine's own rates allow nothing, and which of the two rates sets it."""
    memory = work["bytes"] / (roofs["copy_gb_per_s"] * 1e6)
    arithmetic = work["flop"] / (roofs["matrix_gflop_per_s"] * 1e6)
    return max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic"

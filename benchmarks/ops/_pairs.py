"""What the ops on pairs of an image and its caption share: axes, drawn inputs, and how a batch is cut into parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.measure.case import BOTH, Case, Inputs, Op

SCALE = 1 / 0.07
# Of the reference, whose float32 intermediates would not fit at the largest batches.
PAIRS_AT_ONCE = {"cpu": 64, "cuda": 512}
TINY = {"batch": 4, "patches": 16, "tokens": 8, "channels": 32, "dtype": "float32"}


@dataclass
class PairInputs(Inputs):
    """``first`` and ``second`` are patches and tokens, or images and texts [B, D]."""

    first: Tensor
    second: Tensor
    mask: Tensor | None  # [B, L]
    upstream: Tensor | None
    scale: Tensor  # []

    def sides(self) -> dict[str, Tensor]:
        return {"first": self.first, "second": self.second}


def paper_shape(batch: int) -> dict[str, Any]:
    """ViT-B/16 at 224 pixels, captions of 55 tokens, D = 512."""
    return {"batch": batch, "patches": 196, "tokens": 55, "channels": 512}


def headline(gpu: bool) -> dict[str, Any]:
    """The README's rows."""
    return paper_shape(1024 if gpu else 64) | {"mode": BOTH, "captions": "full"}


def caption_lengths(case: Case) -> Tensor:
    """[B] valid tokens of each caption, the same for every device."""
    if case.labels["captions"] == "full":
        return torch.full((case["batch"],), case["tokens"])
    generator = torch.Generator().manual_seed(1)
    return torch.randint(min(5, case["tokens"]), case["tokens"] + 1, (case["batch"],), generator=generator)


def caption_mask(case: Case, device: torch.device) -> Tensor:
    """[B, L] bool."""
    return (torch.arange(case["tokens"]) < caption_lengths(case)[:, None]).to(device)


class Normal:
    """Normal embeddings of a case, one after the other."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self.dtype, self.device = case.torch_dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        # Drawn in its own dtype: at the largest shapes a float32 copy beside it would not fit.
        return torch.randn(*shape, generator=self.generator, device=self.device, dtype=self.dtype)


class PairOp(Op):
    """An op on patches [B, P, D] and tokens [B, L, D]. ``captions``: ``full`` or ``ragged`` (5 to L tokens)."""

    axes: ClassVar = {"batch": "B", "patches": "P", "tokens": "L", "channels": "D"}
    sorted_by = ("tokens", "channels", "patches", "batch")
    labels: ClassVar = {"captions": "full"}
    sides: ClassVar = {"first": "patches", "second": "tokens"}
    warm_up: ClassVar = {"patches": 4, "tokens": 3}
    apart = True  # pairs do not meet each other
    mean_of_tokens = False  # the result is a mean over all valid tokens

    def draw(self, case: Case, device: torch.device, seed: int = 0) -> PairInputs:
        B, P, L, D = (case[axis] for axis in self.axes)
        normal = Normal(case, device, seed)
        mask = None if case.labels["captions"] == "full" else caption_mask(case, device)
        first, second, width = normal(B, P, D), normal(B, L, D), self.width(case)
        upstream = None if width is None else normal(B, L, width)
        inputs = PairInputs(first, second, mask, upstream, torch.full((), SCALE, device=device))
        inputs.freeze(case.frozen)
        return inputs

    def width(self, case: Case) -> int | None:
        """Of a result [B, L, width]; None = a scalar."""
        return None

    def work(self, case: Case) -> dict[str, float]:
        """Padding is not read, but its gradients are written."""
        B, P, L, D = (case[axis] for axis in self.axes)
        lengths = caption_lengths(case).double()
        valid, squares, both = float(lengths.sum()), float((lengths**2).sum()), case.mode == BOTH
        read = (B * P + valid) * D
        written = ((case.frozen != "first") * B * P + (case.frozen != "second") * B * L) * D
        output = B * L * (self.width(case) or 0)
        elements = 2 * read + written + 2 * output if both else read + output
        return {"bytes": elements * case.itemsize, "flop": self.flop(case, 2 * valid * P * D, squares * P)}

    @abstractmethod
    def flop(self, case: Case, product: float, squares: float) -> float:
        """``product``: flop of one product of L x P x D over all pairs; ``squares``: of L^2 P, half the flop."""

    def parts(self, x: PairInputs) -> Iterator[tuple[slice, PairInputs, float]]:
        if not self.apart:
            yield from super().parts(x)
            return
        size = PAIRS_AT_ONCE[x.first.device.type]
        for start in range(0, len(x.first), size):
            part = slice(start, start + size)
            first, second = (side.detach()[part].requires_grad_(side.requires_grad) for side in (x.first, x.second))
            mask, upstream = (None if given is None else given[part] for given in (x.mask, x.upstream))
            weight = 1.0
            if self.mean_of_tokens and mask is not None and x.mask is not None:
                weight = float(mask.sum() / x.mask.sum())
            elif self.mean_of_tokens:
                weight = len(second) / len(x.second)
            yield part, PairInputs(first, second, mask, upstream, x.scale), weight


def contrast_flop(case: Case, products: int = 4) -> float:
    """Every image with every text [B, D]: one product forward; of those forward and backward a frozen side saves one.

    A softmax in both directions takes 4 in linear memory (the similarities twice), a sigmoid 3.
    """
    count = products - bool(case.frozen) if case.mode == BOTH else 1
    return 2 * count * case["batch"] ** 2 * case["channels"]

"""Triton's kernels beside those of CUDA C++ on chips that nobody has timed: by the forecast, and by what an H100 took
over the forecasts of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.emulation.host import build
from tests.emulation.host.run import server
from tools.sass_model import float32
from tools.sass_model.chips import PAIRS, Chip
from tools.sass_model.launches import Shape
from tools.sass_model.measured import FACTORS
from tools.sass_model.model import predict, predict_triton


@dataclass(frozen=True)
class Ratio:
    """Time of Triton's kernels over that of CUDA C++, forward and backward with both gradients."""

    forecast: float
    own: float  # each by the factor that an H100 took of the forecast for kernels of its path
    alike: float  # those of Triton by the factor of CUDA C++: as if what holds these up held up all of their size

    @property
    def ends(self) -> tuple[float, float]:
        return min(self.own, self.alike), max(self.own, self.alike)

    @property
    def middle(self) -> float:
        return math.sqrt(self.own * self.alike)


def path_of(op: str, backward: bool, dtype: str, shape: Shape, chip: Chip) -> str:
    """Of CUDA C++, as the library plans it."""
    plan = (
        server(build.CHECKOUT / "tests" / "ops" / op / "emulated.cpp")
        .call(
            "plan",
            half_precision=dtype != "float32",
            backward=backward,
            text_rows=shape.tokens,
            image_rows=shape.patches,
            channels=shape.channels,
            pairs=PAIRS,
            multiprocessors=chip.multiprocessors,
            shared_bytes=chip.shared_bytes,
            warpgroups=chip.architecture == "sm_90",
        )
        .unwrap()
    )
    if not plan["pair_path"] or plan["tiled_path"]:
        return "tiled, float32" if dtype == "float32" else "tiled, bf16"
    return "warpgroups" if plan["warpgroups"] else "pair"


def factor(op: str, path: str, backward: bool, shape: Shape) -> float:
    """Of the kernels of that path for so many patches."""
    rows = 64 if shape.patches <= 64 else 256 if shape.patches <= 256 else 576
    return FACTORS[op, path, rows][backward]


def ratio(op: str, dtype: str, shape: Shape, chip: Chip) -> Ratio:
    ours, theirs = [0.0, 0.0], [0.0, 0.0, 0.0]  # forecast, by factors of their own, by those of the others
    for backward in (False, True):
        path = path_of(op, backward, dtype, shape, chip)
        prediction = predict(op, backward, shape, chip, path)
        held_up = factor(op, path, backward, shape)
        ours[0] += prediction.forecast
        ours[1] += prediction.expected(held_up)
        if dtype == "float32":
            cycles = float32.cycles(op, backward, shape, chip)
            passed = cycles * factor(op, "library", backward, shape)
            theirs = [whole + part for whole, part in zip(theirs, (cycles, passed, passed), strict=True)]
            continue
        own = factor(op, "triton", backward, shape)
        for kernel in predict_triton(op, backward, shape, chip):
            times = kernel.forecast, kernel.expected(own), kernel.expected(held_up)
            theirs = [whole + part for whole, part in zip(theirs, times, strict=True)]
    return Ratio(theirs[0] / ours[0], theirs[1] / ours[1], theirs[2] / ours[1])

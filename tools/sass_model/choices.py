"""The table of what ``backend="auto"`` takes between CUDA C++ and Triton, with predicted and measured reasons."""

from __future__ import annotations

import torch

from sparc_kernels.ops._alignment.choice import TRITON_FIRST, kind_of
from tools.sass_model.chips import CHIPS, Chip
from tools.sass_model.launches import OPS, Shape
from tools.sass_model.measured import LARGE, PAPER, RATIOS, SMALL
from tools.sass_model.model import predict, predict_triton

HEADING = "## What auto takes"
COLUMNS = ("chip", "op", "dtype", "L", "P", "D", "auto takes", "forecast", "measured", "record")

INTRODUCTION = f"""
{HEADING}

Between CUDA C++ and Triton, where both serve; decided by `sparc_kernels/ops/_alignment/choice.py`, the one table in the
code, which a test compares with this one. Time of Triton's kernels over that of CUDA C++, forward and backward with
both gradients: **forecast** by the model of the next section, **measured** side by side. A forecast chooses nothing by
itself, since its rate of issue was measured on sm_90 alone: `auto` leaves CUDA C++ where a measurement says so. In
float32 Triton's kernels leave the products to a library, which is not counted here. On sm_90 the pair path is that by
warpgroups, at 49 patches with two blocks to a multiprocessor. With the means of patches and tokens, as `sparc_loss`
asks for them, Triton takes 1.15 of the time of CUDA C++ at 196 patches (`warpgroups_code.txt`). `alignment_weights` of
up to 64 tokens and 256 patches go to Triton there: 0.85 of the time of CUDA C++ (`warpgroups_code.txt`). Captions of
more than 64 tokens under a mask are left to CUDA C++, which follows the mask.
"""


def taken(architecture: str, op: str, dtype: str, shape: Shape) -> str:
    """What ``auto`` takes on such a chip, if both backends serve."""
    number = int(architecture.removeprefix("sm_"))
    kind = kind_of(getattr(torch, dtype), shape.tokens, shape.patches)
    return "triton" if kind in TRITON_FIRST[op].get(divmod(number, 10), ()) else "cuda"


def asked() -> list[tuple[Chip, str, str, Shape]]:
    found = []
    for chip in CHIPS:
        for op in OPS:
            found += [(chip, op, "bfloat16", shape) for shape in (SMALL, PAPER)]
            if (chip.architecture, op, "bfloat16", LARGE) in RATIOS:
                found.append((chip, op, "bfloat16", LARGE))
            found.append((chip, op, "float32", PAPER))
    return found


def forecast(chip: Chip, op: str, shape: Shape) -> float:
    """In bfloat16."""
    path = "pair" if shape.patches <= 256 else "tiled, bf16"
    if path == "pair" and chip.architecture == "sm_90":
        path = "warpgroups"
    passes = (False, True)
    ours = sum(predict(op, backward, shape, chip, path).forecast for backward in passes)
    return sum(kernel.forecast for backward in passes for kernel in predict_triton(op, backward, shape, chip)) / ours


def cells(chip: Chip, op: str, dtype: str, shape: Shape) -> list[str]:
    """Without the forecast."""
    found = RATIOS.get((chip.architecture, op, dtype, shape))
    measured = (f"{found[0]:.2f}", f"`{found[1]}`") if found else ("", "")
    sizes = map(str, (shape.tokens, shape.patches, shape.channels))
    head = (f"{chip.name} ({chip.architecture})", op, dtype, *sizes, taken(chip.architecture, op, dtype, shape))
    return [*head, *measured]


def section() -> str:
    lines = [INTRODUCTION, f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in asked():
        chip, op, dtype, shape = row
        expected = f"{forecast(chip, op, shape):.2f}" if dtype == "bfloat16" else ""
        *head, measured, record = cells(*row)
        lines.append(f"| {' | '.join([*head, expected, measured, record])} |")
    return "\n".join(lines) + "\n"

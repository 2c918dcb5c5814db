"""The table of what ``backend="auto"`` takes between CUDA C++ and Triton, with forecast and measured reasons."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch

from sparc_kernels.ops._alignment.choice import TRITON_FIRST, kind_of
from tools.sass_model.chips import CHIPS, RELATIVES, Chip
from tools.sass_model.launches import OPS, Shape
from tools.sass_model.measured import PAPER, RATIOS, SHAPES

HEADING = "## What auto takes"
FORECASTS = ("forecast", "calibrated", "ragged")
COLUMNS = ("chip", "op", "dtype", "L", "P", "D", "auto takes", *FORECASTS, "measured", "record")
FASTER, NO_SLOWER = 0.9, 1.0
RAGGED = 24  # valid tokens of 55

INTRODUCTION = f"""
{HEADING}

Between CUDA C++ and Triton, where both serve; decided by `sparc_kernels/ops/_alignment/choice.py`, the one table in the
code, which a test compares with this one. Time of Triton's kernels over that of CUDA C++, forward and backward with
both gradients. Only what stands under **measured** (one H100, side by side) was timed; all else is a count of compiled
code, and on no other chip of this table have these kernels run.

- **forecast**: by the model of the next section.
- **calibrated**: the same, from what the H100 took over the forecast of its kernels (`tools/sass_model/measured.py`),
  within the limits of the other resources. One end takes each kernel by the factor of its own path there: 0.95 and 1.47
  for the loss by `mma.sync` of 256 patches, forward and backward, 0.82 and 1.02 for Triton's. But these were products
  of wgmma and code of 90 KB, where on other chips Triton's backward pass of the loss is `mma.sync` or tcgen05 and 120
  to 140 KB, as much as the `mma.sync` path runs through; and why that took 1.47 is not known. So the other end takes
  Triton's kernels by the factors of CUDA C++. They are those of one card, and can be off by a third elsewhere.
- **ragged**: the same where {RAGGED} of 55 tokens are valid, which CUDA C++ follows and Triton does not. Only the loss
  takes a mask of tokens.
- **auto takes** Triton where that was measured to be faster. Where nothing was, it does where the middle of
  **calibrated** (the geometric mean of its ends) is below {FASTER} and that of **ragged** below {NO_SLOWER:.1f}; else
  CUDA C++, whose kernels need no compilation at the first call. A row speaks for images of 1 to 64, 65 to 128, 129 to
  224 or 225 to 256 patches and up to 64 tokens, or for all that is larger; the model looked at this shape alone.
- In float32 Triton's kernels leave the products to a library. `tools/sass_model/float32.py` counts flop and bytes, at
  the 0.45 of the float32 peak that the H100 reached, against the instructions of the tiled path.
- Not in the table: `alignment_weights` of up to 64 tokens and 256 patches go to Triton on 9.0, by measurement (0.85 of
  the time of CUDA C++, `warpgroups_code.txt`), and elsewhere where the embeddings of 196 patches do: beside the
  `mma.sync` path Triton took 0.54 for weights, 0.61 for embeddings (`grouping_warpgroups.txt`, two runs). Captions of
  more than 64 tokens under a mask are left to CUDA C++, which follows the mask, on every chip. Another capability goes
  by the one before it of its major version (8.7 by 8.6, 10.3 by 10.0, 12.1 by 12.0); of another major version CUDA C++
  serves.
- Triton compiles a kernel at the first call of its kind, which takes seconds, and needs a C compiler and Python's
  headers for that: without them CUDA C++ goes first everywhere. `backend="cuda"` or `"triton"` chooses for a call,
  `SPARC_BACKEND` for all that leave it to `auto`.
- What was measured of more than 256 patches, and in float32, is of code of CUDA C++ that has become two to four times
  shorter since (performance_log.md, 2026-11-27): it decides until that is timed.
- L2 is no limit here but on 8.0 and 9.0, since its rate is not known of the others.
- Local memory counts as issue slots and as wavefronts of shared memory, whose way it takes. Triton's backward pass of
  the loss at 196 patches spills: 5,600 accesses of warps a pair on 8.0, 0.7 MB beside the 1.1 MB that it asks L2 for,
  were all of it to miss L1; that would not be the limit either.
- On sm_90 the pair path is that by warpgroups, up to 64 patches with two blocks to a multiprocessor. With the means of
  patches and tokens, as `sparc_loss` asks for them, Triton takes 1.15 of the time of CUDA C++ there at 196 patches
  (`warpgroups_code.txt`).
"""


def taken(architecture: str, op: str, dtype: str, shape: Shape) -> str:
    """What ``auto`` takes on such a chip, if both backends serve."""
    number = int(architecture.removeprefix("sm_"))
    kind = kind_of(getattr(torch, dtype), shape.tokens, shape.patches)
    return "triton" if kind in TRITON_FIRST[op].get(divmod(number, 10), ()) else "cuda"


def asked() -> list[tuple[Chip, str, str, Shape]]:
    """A shape of each kind that is looked at, on each chip."""
    chips = sorted((*CHIPS, *RELATIVES), key=lambda chip: int(chip.architecture.removeprefix("sm_")))
    of_op = [("bfloat16", shape) for shape in SHAPES] + [("float32", PAPER)]
    return [(chip, op, dtype, shape) for chip in chips for op in OPS for dtype, shape in of_op]


def forecasts(chip: Chip, op: str, dtype: str, shape: Shape) -> list[str]:
    from tools.sass_model.calibration import ratio

    found = ratio(op, dtype, shape, chip)
    cells = [f"{found.forecast:.2f}", " to ".join(f"{end:.2f}" for end in found.ends)]
    if op == "fine_grained" and dtype != "float32":
        found = ratio(op, dtype, replace(shape, valid_tokens=RAGGED), chip)
        return [*cells, " to ".join(f"{end:.2f}" for end in found.ends)]
    return [*cells, ""]


def middle(cell: str) -> float:
    """Of a range as it is printed."""
    low, high = map(float, re.fullmatch(r"(\d\.\d\d) to (\d\.\d\d)", cell).groups())  # type: ignore[union-attr]
    return math.sqrt(low * high)


def ruled(row: dict[str, str]) -> str:
    """What a row of the table says that ``auto`` should take."""
    if row["measured"]:
        return "triton" if float(row["measured"]) < 1 else "cuda"
    even = not row["ragged"] or middle(row["ragged"]) < NO_SLOWER
    return "triton" if middle(row["calibrated"]) < FASTER and even else "cuda"


def cells(chip: Chip, op: str, dtype: str, shape: Shape) -> dict[str, str]:
    """Without the forecasts, by column."""
    found = RATIOS.get((chip.architecture, op, dtype, shape))
    measured = (f"{found[0]:.2f}", f"`{found[1]}`") if found else ("", "")
    sizes = map(str, (shape.tokens, shape.patches, shape.channels))
    head = (f"{chip.name} ({chip.architecture})", op, dtype, *sizes, taken(chip.architecture, op, dtype, shape))
    names = [name for name in COLUMNS if name not in FORECASTS]
    return dict(zip(names, (*head, *measured), strict=True))


def section() -> str:
    lines = [INTRODUCTION, f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for chip, op, dtype, shape in asked():
        row = cells(chip, op, dtype, shape) | dict(zip(FORECASTS, forecasts(chip, op, dtype, shape), strict=True))
        lines.append(f"| {' | '.join(row[name] for name in COLUMNS)} |")
    return "\n".join(lines) + "\n"

"""The tables of predictions: for docs/cuda_resources.md and for the terminal."""

from __future__ import annotations

from collections import Counter

from tools.sass_model.chips import CHIPS, PAIRS, chip_of
from tools.sass_model.launches import OPS, PATHS, Shape
from tools.sass_model.model import SCHEDULERS, Part, Prediction, parts, predict

SHAPE = Shape(tokens=55, patches=196, channels=512)
TILED = [path for path in PATHS if path != "pair"]
HEADING = "## Predicted cost"

INTRODUCTION = f"""
{HEADING}

Written by `python -m tools.sass_model --write`, compared by `tests/tools/test_sass_model.py`. The tool runs the
compiled instructions of one block on one pair (L = 55, P = 196, D = 512, bfloat16, no masks) and counts what its warps
issue and what their addresses ask of shared memory and L2; the results must be those of the reference, and the counts
of matrix instructions, ldmatrix, copies, shuffles and barriers those of the emulation. Thousands of cycles per pair and
multiprocessor, by resource:

- **issue**: instructions of the busiest scheduler, one per cycle. **integer**, **float**, **special**: the pipes behind
  it. **shared**: wavefronts with bank conflicts, and shuffles. **tensor**, **L2**, **DRAM**: at the rates in
  `tools/sass_model/chips.py`, which gives their sources and says which are assumed (mma.sync on B200, L2 but on A100).
- **at most**: the share of the DRAM floor that the largest of them allows, for a batch of {PAIRS} pairs (whose last
  round of blocks is not full).

Left out: waits for results and at barriers, which two warps to a scheduler (one block of eight, by the launch plan)
hide badly; the instruction cache; instructions that collide in a pipe; reads beyond the first that miss L2; clocks that
fall under load. What a GPU gives is less. `gpu-check` keeps Nsight Compute's counters, and
`python -m tools.gpu_check.counters counters.json` puts these figures beside them. On an H200
(performance_log.md, 2026-11-26) issue slots and wavefronts agreed within 5 %, the backward read 1.4 x as much from
DRAM, and the time was four to five times what the binding resource alone would take.
"""


def thousands(cycles: float | None) -> str:
    return "?" if cycles is None else f"{cycles / 1000:.1f}"


def row(prediction: Prediction) -> list[str]:
    p = prediction
    cycles = (p.issue, p.alu, p.fma, p.special, p.shared, p.tensor, p.l2, p.dram)
    return [*map(thousands, cycles), p.binding, f"{100 * p.share:.0f} %"]


COLUMNS = ("issue", "integer", "float", "special", "shared", "tensor", "L2", "DRAM", "binding", "at most")


def both(forward: Prediction, backward: Prediction) -> str:
    """Share of the floor that forward and backward together may reach."""
    floor = forward.dram + backward.dram
    return f"{100 * floor / (forward.dram / forward.share + backward.dram / backward.share):.0f} %"


def by_name(found: list[Part]) -> list[tuple[str, int, Counter[str], int, int]]:
    """Parts of one name together: issue slots, their mix, wavefronts, matrix instructions."""
    names = list(dict.fromkeys(part.name for part in found))
    merged = []
    for name in names:
        same = [part for part in found if part.name == name]
        mix = sum((Counter(part.mix) for part in same), Counter())
        merged.append(
            (
                name,
                sum(part.slots for part in same),
                mix,
                sum(part.wavefronts for part in same),
                sum(part.matrix_instructions for part in same),
            )
        )
    return sorted(merged, key=lambda entry: -entry[1])


def section(shape: Shape = SHAPE) -> str:
    """The section of docs/cuda_resources.md."""
    pair_path = {}
    lines = [INTRODUCTION, f"| op | chip | pass | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for op in OPS:
        for chip in CHIPS:
            forward, backward = (predict(op, is_backward, shape, chip) for is_backward in (False, True))
            if chip.architecture == "sm_90":
                pair_path[op] = (forward, backward)
            name = f"{chip.name} ({chip.architecture})"
            lines.append(f"| {op} | {name} | forward | {' | '.join(row(forward))} |")
            lines.append(f"| {op} | {name} | backward | {' | '.join(row(backward))} |")
            lines.append(f"| {op} | {name} | both |{'  |' * (len(COLUMNS) - 1)} {both(forward, backward)} |")
    lines += [
        "",
        "The tiled path on sm_90, by the products that it takes (float32 by torch.get_float32_matmul_precision()):",
        "",
        f"| op | products | pass | {' | '.join(COLUMNS)} |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    chip = chip_of("sm_90")
    for op in OPS:
        for path in TILED:
            forward, backward = (predict(op, is_backward, shape, chip, path) for is_backward in (False, True))
            products = path.removeprefix("tiled, ")
            lines.append(f"| {op} | {products} | forward | {' | '.join(row(forward))} |")
            lines.append(f"| {op} | {products} | backward | {' | '.join(row(backward))} |")
    lines += [
        "",
        "Where the instructions of the pair path are, on sm_90: thousands of issue slots per scheduler (mean of the",
        "four), those of them that compute indices (integers, uniform registers, constants) or steer (comparisons,",
        "selections, branches), wavefronts, and matrix instructions of all warps. A loop counts without those inside",
        "it.",
        "",
        "| op, pass | part | slots | of which integer | of which control | wavefronts | matrix instructions |",
        "|---|---|---|---|---|---|---|",
    ]
    for op in OPS:
        for is_backward in (False, True):
            head = f"{op}, {'backward' if is_backward else 'forward'}"
            for name, slots, mix, wavefronts, matrices in by_name(parts(pair_path[op][is_backward].launch)):
                integer = mix["integer"] + mix["uniform"] + mix["constant"]
                control = mix["select, compare"] + mix["control"] + mix["wait"]
                numbers = (slots / SCHEDULERS, integer / SCHEDULERS, control / SCHEDULERS, wavefronts)
                lines.append(f"| {head} | {name} | {' | '.join(map(thousands, numbers))} | {matrices} |")
    return "\n".join(lines) + "\n"


def details(prediction: Prediction, listed: int) -> str:
    """For the terminal: resources, then the loops that cost most."""
    launch = prediction.launch
    lines = [
        f"predicted, not measured: {launch.op} {'backward' if launch.backward else 'forward'} on "
        f"{prediction.chip.name} ({prediction.chip.architecture}; {prediction.chip.notes})",
        f"  {launch.path}: {launch.chunk} channels x {launch.stages} stages, {launch.shared_bytes / 1024:.1f} KB, "
        f"{launch.at_once} blocks at once, {launch.trace.block_barriers} barriers; L2 {prediction.l2_bytes / 1e6:.2f} MB, "
        f"DRAM {prediction.dram_bytes / 1e6:.2f} MB",
    ]
    for name, cycles in sorted(prediction.resources.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<18} {cycles:>9.0f} cycles per pair")
    lines.append(f"  at most {100 * prediction.share:.0f} % of the DRAM floor, bound by {prediction.binding}")
    for part in parts(launch)[:listed]:
        where = f"loop at {16 * part.loop.header:#x}, {part.passes} times" if part.loop else "no loop"
        mix = ", ".join(f"{name} {count / SCHEDULERS:.0f}" for name, count in Counter(part.mix).most_common(5))
        lines.append(f"  {part.name:<22} {part.slots / SCHEDULERS:>8.0f} slots  {where:<28} {mix}")
    return "\n".join(lines)

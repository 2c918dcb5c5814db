"""The tables of predictions: for docs/cuda_resources.md and for the terminal."""

from __future__ import annotations

from collections import Counter

from tools.sass_model import measured
from tools.sass_model.chips import CHIPS, PAIRS, Chip, chip_of
from tools.sass_model.launches import OPS, PATHS, Shape
from tools.sass_model.measured import PAPER as SHAPE
from tools.sass_model.model import SCHEDULERS, Part, Prediction, parts, predict, predict_triton

PAIR_PATHS = ("pair", "warpgroups")  # by mma.sync on every chip; the other on 9.0, where `auto` takes it
TILED = [path for path in PATHS if path.startswith("tiled")]
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
- On sm_90 the pair path stands twice: by `mma.sync`, which serves every chip, and by warpgroups, which is taken there.
- **forecast**: the share if warps issue in 0.15 of the cycles each, as they did where Nsight Compute looked (two to a
  scheduler: 22 to 38 %), and wait for products of wgmma and tcgen05; or the ceiling where that is lower.

Left out of the ceiling: waits for results and at barriers, which two warps to a scheduler (one block of eight, by the
launch plan) hide badly; the instruction cache; instructions that collide in a pipe; reads beyond the first that miss
L2; clocks that fall under load. What a GPU gives is less. `gpu-check` keeps Nsight Compute's counters, and
`python -m tools.gpu_check.counters counters.json` puts these figures beside them. On an H200
(performance_log.md, 2026-11-26) issue slots and wavefronts agreed within 5 %, the backward read 1.4 x as much from
DRAM, and the time was three to four times what the binding resource alone would take.
"""


def thousands(cycles: float | None) -> str:
    return "?" if cycles is None else f"{cycles / 1000:.1f}"


def row(prediction: Prediction) -> list[str]:
    p = prediction
    cycles = (p.issue, p.alu, p.fma, p.special, p.shared, p.tensor, p.l2, p.dram)
    return [*map(thousands, cycles), p.binding, f"{100 * p.share:.0f} %", f"{100 * p.dram / p.forecast:.0f} %"]


COLUMNS = ("issue", "integer", "float", "special", "shared", "tensor", "L2", "DRAM", "binding", "at most", "forecast")


def both(*passes: Prediction) -> tuple[str, str]:
    """Shares of the floor that forward and backward together may reach, and are forecast to."""
    floor = sum(one.dram for one in passes)
    most, expected = sum(one.dram / one.share for one in passes), sum(one.forecast for one in passes)
    return f"{100 * floor / most:.0f} %", f"{100 * floor / expected:.0f} %"


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
            for path in PAIR_PATHS[: 2 if chip.architecture == "sm_90" else 1]:
                forward, backward = (predict(op, is_backward, shape, chip, path) for is_backward in (False, True))
                if chip.architecture == "sm_90" and path == "pair":
                    pair_path[op] = (forward, backward)
                name = f"{chip.name} ({chip.architecture}{', by warpgroups' if path == 'warpgroups' else ''})"
                lines.append(f"| {op} | {name} | forward | {' | '.join(row(forward))} |")
                lines.append(f"| {op} | {name} | backward | {' | '.join(row(backward))} |")
                lines.append(
                    f"| {op} | {name} | both |{'  |' * (len(COLUMNS) - 2)} {' | '.join(both(forward, backward))} |"
                )
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
    lines += ["", *triton_lines(shape), "", *held_against(chip)]
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


TRITON = """\
Triton's kernels, same shape and dtype, compiled by the ptxas of its wheel, in outline: integers, addresses and masks
are followed, floating numbers are not, which changes a count where a branch looks at one (by 1 % on the pair path
above). Operands of wgmma and tcgen05 count as wavefronts without conflicts, once for the warps that share them; tensor
memory counts nothing. **Blocks**: of a multiprocessor at once, by registers, shared memory and warps. The CUDA C++ pair
path has one (by warpgroups two up to 64 patches), the tiled path two.
"""


def triton_lines(shape: Shape) -> list[str]:
    lines = [TRITON, f"| op | chip | pass | registers | blocks | {' | '.join(COLUMNS)} |"]
    lines.append("|---" * (5 + len(COLUMNS)) + "|")
    for op in OPS:
        for chip in CHIPS:
            kernels = []
            for backward in (False, True):
                for one in predict_triton(op, backward, shape, chip):
                    head = f"{op} | {chip.name} ({chip.architecture}) | {'backward' if backward else 'forward'}"
                    lines.append(f"| {head} | {one.launch.registers} | {one.blocks} | {' | '.join(row(one))} |")
                    kernels.append(one)
            shares = " | ".join(both(*kernels))
            lines.append(f"| {op} | {chip.name} ({chip.architecture}) | both |{'  |' * len(COLUMNS)} {shares} |")
    return lines


def held_against(chip: Chip) -> list[str]:
    """Forecasts beside what was timed."""
    lines = [
        "What an H100 took over the forecast, and over what the binding resource alone allows (CUDA graphs; backward",
        "of the loss: both less forward; the clock is the vendor's; records in `benchmarks/results/nvidia-h100`:",
        "`warpgroups_code.txt`, `warpgroups.txt` for `mma.sync` and Triton at 49 patches, `grouping_warpgroups.txt`):",
        "",
        "| op | kernels | P | blocks | pass | over forecast | over the ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for op, path, shape in measured.PASSES:
        for backward in (False, True):
            if path == "triton":
                kernels = predict_triton(op, backward, shape, chip)
            else:
                kernels = [predict(op, backward, shape, chip, path)]
            took = measured.cycles(op, path, shape, backward, chip.clock, chip.multiprocessors)
            numbers = (took / sum(k.forecast for k in kernels), took / sum(k.dram / k.share for k in kernels))
            cells = " | ".join(f"{number:.2f}" for number in numbers)
            head = f"{op} | {path} | {shape.patches} | {kernels[0].blocks} | {'backward' if backward else 'forward'}"
            lines.append(f"| {head} | {cells} |")
    return lines


def details(prediction: Prediction, listed: int) -> str:
    """For the terminal: resources, then the loops that cost most."""
    launch = prediction.launch
    trace = launch.trace
    lines = [
        f"predicted, not measured: {launch.op} {'backward' if launch.backward else 'forward'} on "
        f"{prediction.chip.name} ({prediction.chip.architecture}; {prediction.chip.notes})",
        f"  {launch.kernel}",
        f"  {launch.path}: {launch.chunk} channels x {launch.stages} stages, {launch.shared_bytes / 1024:.1f} KB, "
        f"{launch.registers} registers, {trace.threads // 32} warps, {prediction.blocks} blocks to a multiprocessor, "
        f"{trace.block_barriers} barriers; L2 {prediction.l2_bytes / 1e6:.2f} MB, "
        f"DRAM {prediction.dram_bytes / 1e6:.2f} MB",
    ]
    for name, cycles in sorted(prediction.resources.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<18} {cycles:>9.0f} cycles per pair")
    lines.append(
        f"  at most {100 * prediction.share:.0f} % of the DRAM floor, bound by {prediction.binding}; forecast "
        f"{100 * prediction.dram / prediction.forecast:.0f} %"
    )
    if trace.guessed or trace.unplaced:
        lines.append(
            f"  in outline: {sum(trace.guessed.values())} branches by numbers that are not followed, at "
            f"{len(trace.guessed)} places; {sum(trace.unplaced.values())} accesses of warps to places not known"
        )
    for part in parts(launch)[:listed]:
        where = f"loop at {16 * part.loop.header:#x}, {part.passes} times" if part.loop else "no loop"
        mix = ", ".join(f"{name} {count / SCHEDULERS:.0f}" for name, count in Counter(part.mix).most_common(5))
        lines.append(f"  {part.name:<22} {part.slots / SCHEDULERS:>8.0f} slots  {where:<28} {mix}")
    return "\n".join(lines)

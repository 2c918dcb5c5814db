"""From what a block did to what it costs: cycles of each resource per pair, and the share of the DRAM floor they allow.

Left out, so that the share is a ceiling and no forecast: waits for results and at barriers (two warps to a scheduler,
or four of two blocks, hide few of them), the instruction cache, replays, two instructions that need one pipe at once,
L2 misses of the second and later reads, clocks that fall under load.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tools.sass_model.block import Trace
from tools.sass_model.chips import Chip
from tools.sass_model.disassembly import LENGTH, Instruction
from tools.sass_model.launches import Launch, Shape, run
from tools.sass_model.loops import Loop, innermost
from tools.sass_model.memory import SECTOR, Lanes

MATRIX = ("HMMA", "HGMMA", "TCHMMA")
# Share of the cycles in which a warp of such kernels issues. Nsight Compute on an H100 and an H200, two warps to a
# scheduler: 22 to 38 % (docs/performance_log.md, 2026-11-26).
RATE = 0.15
SCHEDULERS = 4  # warp w is taken to belong to scheduler w % 4, as arXiv 1804.06826 found on Volta

CLASSES = {
    "tensor": ("HMMA", "HGMMA"),
    "ldmatrix": ("LDSM", "STSM"),
    "shared": ("LDS", "STS", "ATOMS", "LDTM", "STTM"),
    "copy": ("LDGSTS",),
    "global": ("LDG", "STG", "LD", "ATOMG", "RED"),
    "local": ("LDL", "STL"),
    "exchange": ("SHFL", "VOTE", "REDUX", "ELECT"),
    "special": ("MUFU", "F2F", "F2I", "I2F", "POPC", "FLO", "BREV"),
    "float": (
        *("FADD", "FMUL", "FFMA", "FMNMX", "FSET", "FCHK", "F2FP", "I2FP", "HADD2"),
        *("FADD2", "FMUL2", "FFMA2", "FMNMX3"),
    ),
    "select, compare": ("SEL", "FSEL", "FSETP", "ISETP", "PLOP3", "P2R", "R2P"),
    "integer": (
        *("IADD3", "IADD", "VIADD", "IMAD", "LEA", "LOP3", "SHF", "PRMT", "IABS", "IMNMX", "VIMNMX", "VIADDMNMX"),
        *("MOV", "CS2R", "S2R", "R2UR", "HFMA2", "SGXT"),
    ),
    "constant": ("LDC",),
    "control": ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "WARPSYNC", "NOP", "ENDCOLLECTIVE", "BREAK", "BPT"),
    "wait": ("BAR", "DEPBAR", "LDGDEPBAR", "SYNCS", "WARPGROUP", "FENCE", "MEMBAR", "NANOSLEEP", "CCTL"),
}
_CLASS = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}

# Cycles of a scheduler's pipe for one instruction of a warp, from the CUDA C++ Programming Guide's table of arithmetic
# instructions: 64 results per multiprocessor and cycle for integers, comparisons and selections, 16 for the others.
# Taken for every chip, though 12.0 may add integers faster.
ALU, SPECIAL = 2.0, 8.0
ALU_INTEGERS = ("IADD3", "IADD", "VIADD", "LEA", "LOP3", "SHF", "PRMT", "IABS", "IMNMX", "VIMNMX", "VIADDMNMX", "MOV")
ALU_OTHERS = (*CLASSES["select, compare"], "FMNMX", "FMNMX3", "FSET", "F2FP", "I2FP", "VOTE")


class ModelError(Exception):
    """The code is no longer what the model takes it for."""


def class_of(it: Instruction) -> str:
    if it.uniform and it.opcode != "LDC":
        return "uniform"
    try:
        return _CLASS[it.opcode]
    except KeyError:
        raise ModelError(f"no class for {it.text}") from None


@dataclass(frozen=True)
class Prediction:
    """Cycles per pair and multiprocessor."""

    launch: Launch
    chip: Chip
    issue: float  # slots of the busiest scheduler
    shared: float  # wavefronts of shared memory, and shuffles, which take the same way
    tensor: float
    awaited: float  # of that, products that a warp issues and then waits for
    alu: float
    fma: float
    special: float
    l2: float | None
    dram: float  # the floor: every byte once
    l2_bytes: float
    dram_bytes: float
    tail: float  # share of the last round of blocks that is filled

    @property
    def resources(self) -> dict[str, float]:
        found = {
            "issue slots": self.issue,
            "shared memory": self.shared,
            "tensor": self.tensor,
            "integer pipe": self.alu,
            "float pipe": self.fma,
            "special functions": self.special,
            "DRAM": self.dram,
        }
        return found if self.l2 is None else {**found, "L2": self.l2}

    @property
    def binding(self) -> str:
        return max(self.resources, key=lambda name: self.resources[name])

    @property
    def blocks(self) -> int:
        """Of a multiprocessor at once."""
        return -(-self.launch.at_once // self.chip.multiprocessors)

    @property
    def forecast(self) -> float:
        """Cycles of a pair and multiprocessor, if its warps issue as those do that were measured, wait for the products
        of wgmma and tcgen05 unless another block goes on, and no resource takes longer."""
        return self.expected(1.0)

    def expected(self, factor: float) -> float:
        """The forecast for kernels that take so many times what they should where no resource is the limit."""
        warps = self.blocks * self.launch.trace.threads / 32 / SCHEDULERS
        worked = self.issue / min(1.0, RATE * warps) + self.awaited / self.blocks
        return max(factor * worked, *self.resources.values()) / self.tail

    @property
    def share(self) -> float:
        """Of the floor, at most: one instruction per cycle, everything else hidden behind the binding resource."""
        return self.dram / max(self.resources.values()) * self.tail


def _count(launch: Launch, opcodes: tuple[str, ...], uniform: bool = False) -> Lanes:
    """Instructions of each warp that did something."""
    trace = launch.trace
    places = [
        place for place, it in enumerate(trace.instructions) if it.opcode in opcodes and (uniform or not it.uniform)
    ]
    return np.asarray((trace.issues - trace.idle)[places].sum(axis=0))


def matrix_columns(it: Instruction) -> int:
    """N of a wgmma."""
    return int(it.modifiers[0].split("x")[1])


def _busiest(per_warp: Lanes) -> float:
    return float(per_warp.reshape(-1, SCHEDULERS).sum(axis=0).max())


def _tensor(launch: Launch, chip: Chip) -> tuple[float, float]:
    """Cycles of the matrix units by mma.sync and by what is waited for: of the busiest scheduler, or, by tcgen05, of
    all four together."""
    cycles = np.zeros(launch.trace.threads // 32)
    trace = launch.trace
    for place, it in enumerate(trace.instructions):
        if it.opcode == "HGMMA":  # m64nNk16 of a warpgroup, or m64nNk8 of tf32, is m16 of each of its warps
            cycles = cycles + (trace.issues - trace.idle)[place] * matrix_columns(it) / 64 * chip.wgmma_cycles
    if (cycles.any() and not chip.wgmma_cycles) or (trace.tensor_work and not chip.tcgen05_cycles):
        raise ModelError(f"the rate of these matrix instructions on {chip.name} is not known")
    synchronous = _busiest(_count(launch, ("HMMA",)) * chip.tensor_cycles)
    return synchronous, _busiest(cycles) + sum(trace.tensor_work.values()) * chip.tcgen05_cycles


def floor_bytes(op: str, backward: bool, shape: Shape, itemsize: int) -> int:
    """Of DRAM, for a pair, every byte once: patches and tokens, what comes out, and what is kept for each token."""
    tokens, patches = shape.rows
    if op == "grouping":
        tokens = shape.tokens
    read = (tokens + patches) * shape.channels * itemsize
    written = (shape.tokens + shape.patches) * shape.channels * itemsize
    if op == "fine_grained":
        return read + (written + 4 * 8 * tokens if backward else 4 * 8 * shape.tokens)
    groups = shape.tokens * shape.channels * itemsize
    return read + groups + (written if backward else 4 * 3 * shape.tokens)


def check_outline(trace: Trace) -> None:
    """Raises ``ModelError`` where data end a loop of products, which an outline goes through once."""
    for place in trace.guessed:
        it = trace.instructions[place]
        back = it.operands[-1].value // LENGTH if it.opcode == "BRA" else place + 1
        if any(other.opcode in MATRIX for other in trace.instructions[back : place + 1]):
            raise ModelError(f"{it.address:#x}: {it.text}: how often this loop of products runs is not known")


def cost(launch: Launch, chip: Chip, dram_bytes: float) -> Prediction:
    """Of a pair: what a block asks for, times blocks to a pair."""
    trace = launch.trace
    check_outline(trace)
    share = launch.blocks / chip.pairs
    l2 = share * SECTOR * sum(trace.sectors.values())
    rounds = -(-launch.blocks // launch.at_once)
    synchronous, awaited = _tensor(launch, chip)
    pipe = _count(launch, ("FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2")) * chip.float_cycles
    return Prediction(
        launch,
        chip,
        issue=share * _busiest(trace.issues.sum(axis=0)),
        shared=share * (sum(trace.wavefronts.values()) + float(_count(launch, ("SHFL",)).sum())),
        tensor=share * (synchronous + awaited),
        awaited=share * awaited,
        alu=share * _busiest(_count(launch, (*ALU_INTEGERS, *ALU_OTHERS))) * ALU,
        fma=share * _busiest(pipe + _count(launch, ("IMAD",)) * 2.0),
        special=share * _busiest(_count(launch, CLASSES["special"])) * SPECIAL,
        l2=None if chip.l2_bytes is None else l2 / chip.l2_bytes,
        dram=dram_bytes / chip.dram_bytes,
        l2_bytes=l2,
        dram_bytes=dram_bytes,
        tail=launch.blocks / (rounds * launch.at_once),
    )


def predict(op: str, backward: bool, shape: Shape, chip: Chip, path: str = "pair") -> Prediction:
    """Of the kernel in CUDA C++."""
    launch = run(op, backward, shape, chip.library, chip, path)
    if path.startswith("pair"):
        check(launch)
    return cost(launch, chip, sum(launch.memory.compulsory(but="scratch")))


def predict_triton(op: str, backward: bool, shape: Shape, chip: Chip) -> list[Prediction]:
    """Of each kernel of Triton's plan for a pass, in bfloat16. The floor is that of the pass, dealt to its kernels by
    what they ask L2 for."""
    from tools.sass_model import triton_launches

    launches = triton_launches.run(op, backward, shape, chip)
    asked = [launch.blocks * sum(launch.trace.sectors.values()) for launch in launches]
    floor = floor_bytes(op, backward, shape, 2)
    return [cost(launch, chip, floor * part / sum(asked)) for launch, part in zip(launches, asked)]


# What the loops mean.


def matrix_instructions(launch: Launch) -> dict[str, int]:
    """m16n8k16 that each product of a pair needs: its rows and columns in tiles of 16, channels in chunks."""
    tokens, patches = launch.shape.rows
    if launch.op == "grouping":  # it takes no mask of tokens
        tokens = launch.shape.tokens
    n, p = -(-tokens // 16), -(-patches // 16)
    d = -(-launch.shape.channels // launch.chunk) * launch.chunk // 16
    one, logits = 2 * n * p * d, 2 * n * n * d
    if launch.op == "grouping":
        return {"S": one, "dV, dT": 3 * one, "dC V^T": one} if launch.backward else {"S": one, "C": one}
    if not launch.backward:
        return {"S": one + 2 * n * d, "C', Z": one + 2 * logits}  # with the tokens' norms: the diagonal of T T^T
    return {
        "S": one,
        "C', Z": one + 2 * logits,
        "W, dU": logits + one,
        "dZ^T U": 2 * n * n * p,
        "dV, dT": 3 * one,
    }


@dataclass(frozen=True)
class Part:
    """Instructions that belong together: a product with its loads, copies, or the rest."""

    name: str
    slots: int  # issue slots of all schedulers
    mix: dict[str, int]
    wavefronts: int
    matrix_instructions: int
    passes: int  # of the loop by the warp that goes through it most; 0 where there is none
    loop: Loop | None


def _phases(launch: Launch) -> dict[int, list[int]]:
    """Matrix instructions by the outermost loop below that over pairs which holds them, in the code's order."""
    trace = launch.trace
    done = trace.done
    all_loops = trace.loops
    pairs = max((loop for loop in all_loops if loop.parent is None), key=lambda loop: len(loop.places))
    found: dict[int, list[int]] = {}
    for place, it in enumerate(trace.instructions):
        if it.opcode != "HMMA" or not done[place]:
            continue
        holding = [loop for loop in all_loops if place in loop.places and loop is not pairs]
        header = holding[0].header if holding else -1
        found.setdefault(header, []).append(place)
    return found


def check(launch: Launch) -> list[tuple[str, int]]:
    """Every product is where the model expects it, with as many matrix instructions; their loops by header. Raises
    ``ModelError`` where the code has changed: then ``matrix_instructions`` must be looked at."""
    trace = launch.trace
    done = trace.done
    phases = _phases(launch)
    found = [(header, int(done[places].sum())) for header, places in sorted(phases.items())]
    expected = matrix_instructions(launch)
    if Counter(count for _, count in found) != Counter(expected.values()):
        raise ModelError(f"{launch.op}: {expected} matrix instructions were expected, found by loop: {found}")
    unnamed = list(expected.items())
    result = []
    for header, count in found:
        name = next(name for name, number in unnamed if number == count)
        unnamed.remove((name, count))
        result.append((name, header))
    return result


def parts(launch: Launch) -> list[Part]:
    """All instructions of a block by the innermost loop that they are in, the costly ones first."""
    trace = launch.trace
    all_loops = trace.loops
    inside = innermost(trace.instructions, all_loops)
    phases = {header: name for name, header in check(launch)} if launch.path.startswith("pair") else {}
    slots = trace.issues.sum(axis=1)
    done = trace.done
    groups: dict[int, list[int]] = {}
    for place, loop in enumerate(inside):
        groups.setdefault(-1 if loop is None else loop.header, []).append(place)
    by_header = {loop.header: loop for loop in all_loops}
    found = []
    for header, places in groups.items():
        loop = by_header.get(header)
        total = int(slots[places].sum())
        if not total:
            continue
        mix: Counter[str] = Counter()
        for place in places:
            mix[class_of(trace.instructions[place])] += int(slots[place])
        found.append(
            Part(
                _name(trace.instructions, places, loop, phases),
                total,
                dict(mix),
                sum(trace.wavefronts.get(trace.instructions[place].address, 0) for place in places),
                sum(int(done[place]) for place in places if trace.instructions[place].opcode in MATRIX),
                0 if loop is None else int(trace.issues[loop.header].max()),
                loop,
            )
        )
    return sorted(found, key=lambda part: -part.slots)


def _name(code: tuple[Instruction, ...], places: list[int], loop: Loop | None, phases: dict[int, str]) -> str:
    opcodes = {code[place].opcode for place in places}
    around, outer = loop, ""
    while around is not None:
        outer = phases.get(around.header, outer)
        around = around.parent
    where = f" ({outer})" if outer else ""
    if loop is None and opcodes & {*MATRIX, "LDGSTS"}:
        return "outside of loops"
    if opcodes & set(MATRIX):
        return f"products{where}"
    if "LDGSTS" in opcodes:
        return f"copies{where}"
    if loop is None or loop.parent is None:
        return "between the loops"
    return f"other loop{where}"

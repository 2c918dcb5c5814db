"""From what a block did to what it costs: cycles of each resource per pair, and the share of the DRAM floor they allow.

Left out, so that the share is a ceiling and no forecast: waits for results and at barriers (two warps to a scheduler
hide few of them), the instruction cache, replays, two instructions that need one pipe at once, L2 misses of the second
and later reads, clocks that fall under load.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tools.sass_model.chips import Chip
from tools.sass_model.disassembly import Instruction
from tools.sass_model.launches import Launch, Shape, run
from tools.sass_model.loops import Loop, innermost
from tools.sass_model.memory import SECTOR, Lanes

SCHEDULERS = 4  # warp w is taken to belong to scheduler w % 4, as arXiv 1804.06826 found on Volta

CLASSES = {
    "tensor": ("HMMA",),
    "ldmatrix": ("LDSM",),
    "shared": ("LDS", "STS"),
    "copy": ("LDGSTS",),
    "global": ("LDG", "STG", "LD"),
    "local": ("LDL", "STL"),
    "exchange": ("SHFL", "VOTE"),
    "special": ("MUFU", "F2F", "F2I", "I2F", "POPC"),
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "FSET", "FCHK", "F2FP", "I2FP"),
    "select, compare": ("SEL", "FSEL", "FSETP", "ISETP", "PLOP3", "P2R", "R2P"),
    "integer": (
        *("IADD3", "IADD", "VIADD", "IMAD", "LEA", "LOP3", "SHF", "PRMT", "IABS", "IMNMX", "VIMNMX", "VIADDMNMX"),
        *("MOV", "CS2R", "S2R", "R2UR", "HFMA2"),
    ),
    "constant": ("LDC",),
    "control": ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "WARPSYNC", "NOP", "ENDCOLLECTIVE"),
    "wait": ("BAR", "DEPBAR", "LDGDEPBAR"),
}
_CLASS = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}

# Cycles of a scheduler's pipe for one instruction of a warp, from the CUDA C++ Programming Guide's table of arithmetic
# instructions: 64 results per multiprocessor and cycle for integers, comparisons and selections, 16 for the others.
# Taken for every chip, though 12.0 may add integers faster.
ALU, SPECIAL = 2.0, 8.0
ALU_INTEGERS = ("IADD3", "IADD", "VIADD", "LEA", "LOP3", "SHF", "PRMT", "IABS", "IMNMX", "VIMNMX", "VIADDMNMX", "MOV")
ALU_OTHERS = (*CLASSES["select, compare"], "FMNMX", "FSET", "F2FP", "I2FP", "VOTE")


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
    alu: float
    fma: float
    special: float
    l2: float | None
    dram: float  # the floor: every byte once
    l2_bytes: int
    dram_bytes: int
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


def _busiest(per_warp: Lanes) -> float:
    return float(per_warp.reshape(-1, SCHEDULERS).sum(axis=0).max())


def predict(op: str, backward: bool, shape: Shape, chip: Chip, path: str = "pair") -> Prediction:
    launch = run(op, backward, shape, chip.architecture, chip, path)
    if path == "pair":
        check(launch)
    trace = launch.trace
    issues = trace.issues.sum(axis=0)
    l2 = SECTOR * sum(trace.sectors.values())
    dram = sum(launch.memory.compulsory(but="scratch"))
    rounds = -(-chip.pairs // launch.grid)
    return Prediction(
        launch,
        chip,
        issue=_busiest(issues),
        shared=sum(trace.wavefronts.values()) + float(_count(launch, ("SHFL",)).sum()),
        tensor=_busiest(_count(launch, ("HMMA",))) * chip.tensor_cycles,
        alu=_busiest(_count(launch, (*ALU_INTEGERS, *ALU_OTHERS))) * ALU,
        fma=_busiest(_count(launch, ("FADD", "FMUL", "FFMA")) * chip.float_cycles + _count(launch, ("IMAD",)) * 2.0),
        special=_busiest(_count(launch, CLASSES["special"])) * SPECIAL,
        l2=None if chip.l2_bytes is None else l2 / chip.l2_bytes,
        dram=dram / chip.dram_bytes,
        l2_bytes=l2,
        dram_bytes=dram,
        tail=chip.pairs / (rounds * launch.grid),
    )


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
    phases = {header: name for name, header in check(launch)} if launch.path == "pair" else {}
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
                sum(int(done[place]) for place in places if trace.instructions[place].opcode == "HMMA"),
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
    if "HMMA" in opcodes:
        return f"products{where}"
    if "LDGSTS" in opcodes:
        return f"copies{where}"
    if loop is None or loop.parent is None:
        return "between the loops"
    return f"other loop{where}"

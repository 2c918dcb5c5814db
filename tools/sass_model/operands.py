"""State of a block, and the operands of its instructions as functions of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.sass_model.disassembly import BANK, TRUE, UNIFORM, ZERO, Instruction, Operand
from tools.sass_model.memory import LANES, Costs, Global, Lanes

Action = Callable[[Lanes], None]  # given the lanes that do it
LOCAL = 4096  # bytes of local memory of a thread
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


class State:
    """Registers, predicates and memory of one block."""

    def __init__(self, threads: int, memory: Global, shared_bytes: int, constants: bytes, block: int) -> None:
        self.threads = threads
        self.registers = np.zeros((2 * UNIFORM, threads), np.uint32)
        self.predicates = np.zeros((16, threads), bool)
        self.predicates[TRUE] = True
        self.memory = memory
        self.shared = np.zeros((shared_bytes + 2047) // 16 * 16, np.uint8)
        self.local = np.zeros((threads, LOCAL), np.uint8)
        self.constants = np.frombuffer(constants.ljust(2 * BANK, b"\0"), np.uint8)
        self.costs = Costs()
        self.block = block
        self.warps = threads // LANES
        # of each instruction of memory: wavefronts of shared memory, sectors of L2, lanes
        self.wavefronts: dict[int, int] = {}
        self.sectors: dict[int, int] = {}
        self.lanes: dict[int, int] = {}


def _row(state: State, operand: Operand) -> Callable[[], Lanes]:
    """The plain bits, without sign and magnitude."""
    if operand.kind == "register":
        row = state.registers[operand.index]
        return lambda: row
    if operand.kind == "number":
        fixed = np.full(state.threads, operand.value & 0xFFFFFFFF, np.uint32)
        return lambda: fixed
    if operand.kind == "constant" and operand.index == ZERO:
        word = int(state.constants[operand.value : operand.value + 4].view(np.uint32)[0])
        fixed = np.full(state.threads, word, np.uint32)
        return lambda: fixed
    raise ValueError(f"operand {operand.text}")


def integer(state: State, operand: Operand) -> Callable[[], Lanes]:
    row = _row(state, operand)
    if operand.magnitude:
        raise ValueError(f"operand {operand.text}")
    if operand.inverted:
        return lambda: ~row()
    if operand.negative:
        return lambda: np.uint32(0) - row()
    return row


def real(state: State, operand: Operand) -> Callable[[], Lanes]:
    row = _row(state, operand)

    def get() -> Lanes:
        value = row().view(np.float32)
        if operand.magnitude:
            value = np.abs(value)
        return -value if operand.negative else value

    return get


def pair(state: State, operand: Operand) -> Callable[[], Lanes]:
    """64 bits, unsigned."""
    if operand.kind == "number":
        fixed = np.full(state.threads, operand.value & 0xFFFFFFFFFFFFFFFF, np.uint64)
        return lambda: fixed
    if operand.kind == "constant" and operand.index == ZERO:
        word = int(state.constants[operand.value : operand.value + 8].view(np.uint64)[0])
        fixed = np.full(state.threads, word, np.uint64)
        return lambda: fixed
    if operand.kind != "register" or operand.inverted or operand.magnitude:
        raise ValueError(f"operand {operand.text}")
    if operand.index == ZERO:
        fixed = np.zeros(state.threads, np.uint64)
        return lambda: fixed
    low, high = state.registers[operand.index], state.registers[operand.index + 1]

    def get() -> Lanes:
        value = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        return np.uint64(0) - value if operand.negative else value

    return get


def predicate(state: State, operand: Operand) -> Callable[[], Lanes]:
    if operand.kind != "predicate":
        raise ValueError(f"operand {operand.text}")
    row = state.predicates[operand.index]
    if operand.negative:
        return lambda: ~row
    return lambda: row


def setter(state: State, operand: Operand, uniform: bool = False) -> Callable[[Lanes, Lanes], None]:
    """Writes bits to a register, or truths to a predicate, in some lanes."""
    if operand.kind == "predicate":
        if operand.index == TRUE:
            return lambda value, lanes: None
        row = state.predicates[operand.index]
    elif operand.kind == "register":
        if operand.index == ZERO:
            return lambda value, lanes: None
        row = state.registers[operand.index]
    else:
        raise ValueError(f"result {operand.text}")
    if uniform:  # one value for a warp, kept in all of its lanes
        return lambda value, lanes: np.copyto(row, value, where=whole_warps(lanes))
    return lambda value, lanes: np.copyto(row, value, where=lanes)


def whole_warps(lanes: Lanes) -> Lanes:
    return np.repeat(lanes.reshape(-1, LANES).any(axis=1), LANES)


def next_register(operand: Operand, step: int = 1) -> Operand:
    if operand.index == ZERO:
        return operand
    return Operand("register", f"{operand.text}+{step}", operand.index + step)


def wide_setter(state: State, operand: Operand, uniform: bool = False) -> Callable[[Lanes, Lanes], None]:
    low = setter(state, operand, uniform)
    high = setter(state, next_register(operand), uniform)

    def put(value: Lanes, lanes: Lanes) -> None:
        low((value & np.uint64(0xFFFFFFFF)).astype(np.uint32), lanes)
        high((value >> np.uint64(32)).astype(np.uint32), lanes)

    return put


def split(instruction: Instruction) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Predicates behind the first operand, the operands that follow, the predicates at the end."""
    rest = list(instruction.operands[1:])
    first: list[Operand] = []
    while rest and rest[0].kind == "predicate":
        first.append(rest.pop(0))
    last: list[Operand] = []
    while rest and rest[-1].kind == "predicate":
        last.insert(0, rest.pop())
    return first, rest, last


def simple(state: State, it: Instruction, compute: Callable[..., Lanes], operands: list[Operand], kind: Any) -> Action:
    put = setter(state, it.operands[0], it.uniform)
    get = [kind(state, operand) for operand in operands]
    if len(get) == 1:
        (a,) = get
        return lambda lanes: put(compute(a()), lanes)
    if len(get) == 2:
        a, b = get
        return lambda lanes: put(compute(a(), b()), lanes)
    a, b, c = get
    return lambda lanes: put(compute(a(), b(), c()), lanes)


def converged(it: Instruction, lanes: Lanes) -> None:
    warps = lanes.reshape(-1, LANES)
    if (warps.any(axis=1) != warps.all(axis=1)).any():
        raise RuntimeError(f"{it.address:#x}: {it.text}: a warp has come apart")

"""What instructions on memory do, and what each costs: wavefronts of shared memory, sectors of L2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.sass_model.disassembly import TRUE, ZERO, Instruction, Operand
from tools.sass_model.memory import LANES, Lanes
from tools.sass_model.operands import (
    Action,
    State,
    converged,
    integer,
    next_register,
    pair,
    predicate,
    setter,
    whole_warps,
)

SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def _note(counter: dict[int, int], it: Instruction, count: int) -> None:
    counter[it.address] = counter.get(it.address, 0) + count


def _size(it: Instruction) -> int:
    return next((SIZES[m] for m in it.modifiers if m in SIZES), 4)


def _place(state: State, operand: Operand) -> Callable[[], Lanes]:
    """Addresses of a shared or local access."""
    if operand.kind != "address" or operand.wide:
        raise ValueError(f"operand {operand.text}")
    register, uniform = state.registers[operand.index], state.registers[operand.uniform]
    scale, offset = np.uint32(operand.scale), np.uint32(operand.value & 0xFFFFFFFF)
    return lambda: register * scale + uniform + offset


def _global_place(state: State, operand: Operand) -> Callable[[], Lanes]:
    if operand.kind != "address":
        raise ValueError(f"operand {operand.text}")
    offset = np.uint64(operand.value & 0xFFFFFFFFFFFFFFFF)
    if operand.index == ZERO:  # the address is in uniform registers
        base = pair(state, Operand("register", operand.text, operand.uniform))
        return lambda: base() + offset
    if operand.wide:
        base = pair(state, Operand("register", operand.text, operand.index))
    else:
        row = state.registers[operand.index]
        base = lambda: row.astype(np.uint64)  # noqa: E731
    if operand.uniform == ZERO:
        return lambda: base() + offset
    more = pair(state, Operand("register", operand.text, operand.uniform))
    return lambda: base() + more() + offset


def _words(size: int) -> tuple[Any, int]:
    """The dtype of the words that an access moves, and how many."""
    return (WORDS[size], 1) if size <= 4 else (np.uint32, size // 4)


def load_shared(state: State, it: Instruction) -> Action:
    size, place = _size(it), _place(state, it.operands[1])
    kind, count = _words(size)
    puts = [setter(state, next_register(it.operands[0], step)) for step in range(count)]
    memory = state.shared.view(kind)
    if it.has("S8", "S16"):
        raise ValueError("signed")

    def act(lanes: Lanes) -> None:
        at = np.where(lanes, place(), np.uint32(0))
        _note(state.wavefronts, it, state.costs.wavefronts(at, lanes, size))
        for step, put in enumerate(puts):
            put(memory[at // np.uint32(memory.itemsize) + np.uint32(step)].astype(np.uint32), lanes)

    return act


def store_shared(state: State, it: Instruction) -> Action:
    size, place = _size(it), _place(state, it.operands[0])
    kind, count = _words(size)
    gets = [integer(state, next_register(it.operands[1], step) if step else it.operands[1]) for step in range(count)]
    memory = state.shared.view(kind)

    def act(lanes: Lanes) -> None:
        at = place()
        _note(state.wavefronts, it, state.costs.wavefronts(at, lanes, size))
        for step, get in enumerate(gets):
            memory[at[lanes] // memory.itemsize + step] = get()[lanes].astype(kind)

    return act


def load_matrices(state: State, it: Instruction) -> Action:
    """LDSM: four 8 x 8 tiles of 16 bits, as ldmatrix lays them over the lanes."""
    turned = it.has("MT88")
    if not it.has("4") or not it.has("M88", "MT88"):
        raise ValueError("form of LDSM")
    place = _place(state, it.operands[1])
    puts = [setter(state, next_register(it.operands[0], step)) for step in range(4)]
    words, halves, warps = state.shared.view(np.uint32), state.shared.view(np.uint16), state.warps
    four, eight = np.arange(4, dtype=np.uint32), np.arange(8, dtype=np.uint32)

    def act(lanes: Lanes) -> None:
        converged(it, lanes)
        at = np.where(lanes, place(), np.uint32(0))
        if (at % 16).any():
            raise IndexError(f"{it.address:#x}: {it.text}: a misaligned row")
        _note(state.wavefronts, it, state.costs.wavefronts(at, lanes, 16))
        rows = at.reshape(warps, 4, 8)
        if turned:
            tiles = halves[rows[..., None] // 2 + eight].astype(np.uint32).transpose(0, 1, 3, 2)
            found = tiles[..., 0::2] | tiles[..., 1::2] << np.uint32(16)
        else:
            found = words[rows[..., None] // 4 + four]
        for tile, put in enumerate(puts):
            put(found[:, tile].reshape(-1), lanes)

    return act


def load_global(state: State, it: Instruction) -> Action:
    size, place = _size(it), _global_place(state, it.operands[1])
    kind, count = _words(size)
    puts = [setter(state, next_register(it.operands[0], step)) for step in range(count)]
    memory = state.memory.bytes.view(kind)
    if it.has("S8", "S16"):
        raise ValueError("signed")

    def act(lanes: Lanes) -> None:
        at = place()
        offsets = state.memory.places(at[lanes], size)
        _note(state.sectors, it, state.costs.sectors(at, lanes, size))
        state.memory.touch(offsets, write=False)
        for step, put in enumerate(puts):
            value = np.zeros(state.threads, np.uint32)
            value[lanes] = memory[offsets // memory.itemsize + step]
            put(value, lanes)

    return act


def store_global(state: State, it: Instruction) -> Action:
    size, place = _size(it), _global_place(state, it.operands[0])
    kind, count = _words(size)
    gets = [integer(state, next_register(it.operands[1], step) if step else it.operands[1]) for step in range(count)]
    memory = state.memory.bytes.view(kind)

    def act(lanes: Lanes) -> None:
        at = place()
        offsets = state.memory.places(at[lanes], size)
        _note(state.sectors, it, state.costs.sectors(at, lanes, size))
        state.memory.touch(offsets, write=True)
        for step, get in enumerate(gets):
            memory[offsets // memory.itemsize + step] = get()[lanes].astype(kind)

    return act


def copy_to_shared(state: State, it: Instruction) -> Action:
    """LDGSTS of 16 bytes: a false predicate tells that all of them are zeros, with ZFILL the address's last four bits
    how many are."""
    if not it.has("128"):
        raise ValueError("form of LDGSTS")
    target, source = _place(state, it.operands[0]), _global_place(state, it.operands[1])
    some = predicate(state, it.operands[2]) if len(it.operands) > 2 else lambda: state.predicates[TRUE]
    shared = state.shared.reshape(-1, 16)
    columns = np.arange(16)

    def act(lanes: Lanes) -> None:
        to = target()
        _note(state.wavefronts, it, state.costs.wavefronts(to, lanes, 16))
        _note(state.lanes, it, int(lanes.sum()))
        shared[to[lanes] // 16] = 0
        given = lanes & some()
        if not given.any():
            return
        at = source()
        lacking = (at & np.uint64(15)).astype(np.int64)[given]
        if lacking.any() and not it.has("ZFILL"):
            raise ValueError("LDGSTS of a misaligned address")
        at = at & ~np.uint64(15)
        offsets = state.memory.places(at[given], 16)
        _note(state.sectors, it, state.costs.sectors(at, given, 16))
        state.memory.touch(offsets, write=False)
        value = state.memory.bytes[offsets[:, None] + columns]
        shared[to[given] // 16] = np.where(columns < 16 - lacking[:, None], value, 0)

    return act


def local(state: State, it: Instruction) -> Action:
    """LDL and STL: each thread's own memory, laid out so that a warp's words of one address are neighbours."""
    loads = it.opcode == "LDL"
    size = _size(it)
    kind, count = _words(size)
    place = _place(state, it.operands[1 if loads else 0])
    register = it.operands[0 if loads else 1]
    if it.has("S8", "S16"):
        raise ValueError("signed")
    puts = [setter(state, next_register(register, step)) for step in range(count)] if loads else []
    gets = (
        [] if loads else [integer(state, next_register(register, step) if step else register) for step in range(count)]
    )
    memory, thread = state.local.view(kind), np.arange(state.threads)

    def act(lanes: Lanes) -> None:
        at = np.where(lanes, place(), np.uint32(0))
        if int(at.max()) + size > state.local.shape[1]:
            raise IndexError(f"{it.address:#x}: {it.text}: beyond local memory")
        _note(state.wavefronts, it, count * int(lanes.reshape(-1, LANES).any(axis=1).sum()))
        for step, put in enumerate(puts):
            put(memory[thread, at // memory.itemsize + step].astype(np.uint32), lanes)
        for step, get in enumerate(gets):
            memory[thread[lanes], at[lanes] // memory.itemsize + step] = get()[lanes].astype(kind)

    return act


def load_constant(state: State, it: Instruction) -> Action:
    size, source = _size(it), it.operands[1]
    if source.kind != "constant":
        raise ValueError(f"operand {source.text}")
    kind, count = _words(size)
    puts = [setter(state, next_register(it.operands[0], step), it.uniform) for step in range(count)]
    register = state.registers[source.index]

    def act(lanes: Lanes) -> None:
        at = (register + np.uint32(source.value & 0xFFFFFFFF)).astype(np.int64)
        at = np.where(whole_warps(lanes), at, source.value if source.index == ZERO else 0)
        values = state.constants.view(kind)
        for step, put in enumerate(puts):
            put(values[at // values.itemsize + step].astype(np.uint32), lanes)

    return act

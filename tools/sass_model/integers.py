"""What instructions on integers, bits and predicates do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.sass_model.disassembly import TRUE, ZERO, Instruction, Operand
from tools.sass_model.memory import LANES, Lanes
from tools.sass_model.operands import (
    COMPARE,
    Action,
    State,
    _row,
    integer,
    pair,
    predicate,
    real,
    setter,
    simple,
    split,
    wide_setter,
)


def move(state: State, it: Instruction) -> Action:
    if it.has("64"):
        wide, get = wide_setter(state, it.operands[0], it.uniform), pair(state, it.operands[1])
        return lambda lanes: wide(get(), lanes)
    return simple(state, it, lambda a: a, [it.operands[1]], integer)


def add(state: State, it: Instruction) -> Action:
    carries, sources, given = split(it)
    if it.has("64"):
        wide, gets = wide_setter(state, it.operands[0], it.uniform), [pair(state, source) for source in sources]
        if any(carry.index != TRUE for carry in carries) or given:
            raise ValueError("carries of 64 bits")
        return lambda lanes: wide(sum((get() for get in gets[1:]), gets[0]()), lanes)
    put = setter(state, it.operands[0], it.uniform)
    outs = [setter(state, carry, it.uniform) for carry in carries if carry.index != TRUE]
    if not it.has("X") and not outs:
        values = [integer(state, source) for source in sources]
        if given:
            raise ValueError("a carry without .X")
        return lambda lanes: put(sum((get() for get in values[1:]), values[0]()), lanes)
    wides = [_wide_term(state, source, it.has("X")) for source in sources]
    ins = [predicate(state, carry) for carry in given] if it.has("X") else []

    def act(lanes: Lanes) -> None:
        total = sum((get() for get in wides[1:]), wides[0]())
        for carry in ins:
            total = total + carry().astype(np.int64)
        put((total & 0xFFFFFFFF).astype(np.uint32), lanes)
        for place, out in enumerate(outs):
            out(total >> 32 > place, lanes)

    return act


def _wide_term(state: State, operand: Operand, extended: bool) -> Callable[[], Lanes]:
    """A term of a sum whose carry is looked at; -x is ~x + 1, in which 0 carries."""
    row = _row(state, operand)
    if operand.inverted:
        return lambda: (~row()).astype(np.int64)
    if operand.negative:
        if extended or operand.text.endswith("RZ"):
            raise ValueError(f"operand {operand.text}")
        return lambda: (~row()).astype(np.int64) + 1
    return lambda: row().astype(np.int64)


def multiply_add(state: State, it: Instruction) -> Action:
    carries, (a, b, c), given = split(it)
    if it.has("WIDE"):
        if it.has("X") or given:
            raise ValueError("a carry")
        wide, third = wide_setter(state, it.operands[0], it.uniform), pair(state, c)
        outs = [setter(state, carry, it.uniform) for carry in carries if carry.index != TRUE]
        x, y = integer(state, a), integer(state, b)
        kind = np.uint64 if it.has("U32") else np.int64

        def act_wide(lanes: Lanes) -> None:
            with np.errstate(over="ignore"):
                if it.has("U32"):
                    product = x().astype(kind) * y().astype(kind)
                else:
                    product = (x().view(np.int32).astype(kind) * y().view(np.int32).astype(kind)).view(np.uint64)
                total = product + third()
            wide(total, lanes)
            for out in outs:
                out(total < product, lanes)

        return act_wide
    put = setter(state, it.operands[0], it.uniform)
    x, y = integer(state, a), integer(state, b)
    if it.has("HI"):
        if not it.has("U32") or carries:
            raise ValueError("signed")
        addend = pair(state, c)  # its lower half is 0 where a compiler multiplies by a reciprocal
        return lambda lanes: put(
            ((x().astype(np.uint64) * y().astype(np.uint64) + addend()) >> np.uint64(32)).astype(np.uint32), lanes
        )
    if it.has("X") or any(carry.index != TRUE for carry in carries):
        return add(
            state,
            Instruction(
                it.address,
                it.guard,
                "IADD3",
                it.modifiers,
                (it.operands[0], *carries, *_as_sum(a, b), c, *given),
                it.text,
                it.uniform,
            ),
        )
    z = integer(state, c)
    return lambda lanes: put(x() * y() + z(), lanes)


def _as_sum(a: Operand, b: Operand) -> tuple[Operand, ...]:
    if b.kind == "number" and b.value == 1:
        return (a,)
    if a.index == ZERO and a.kind == "register":
        return (a,)
    raise ValueError("a product with a carry")


def extremum(state: State, it: Instruction) -> Action:
    _, sources, (pick,) = split(it)
    first = predicate(state, pick)
    put = setter(state, it.operands[0], it.uniform)
    gets = [integer(state, source) for source in sources]
    kind = np.uint32 if it.has("U32") else np.int32

    def act(lanes: Lanes) -> None:
        values = [get().view(kind) for get in gets]
        if len(values) == 3:  # VIADDMNMX
            values = [values[0] + values[1], values[2]]
        result = np.where(first(), np.minimum(*values), np.maximum(*values))
        if it.has("RELU"):
            result = np.maximum(result, 0)
        put(result.view(np.uint32), lanes)

    return act


def load_address(state: State, it: Instruction) -> Action:
    """LEA: a shifted and added."""
    carries, sources, given = split(it)
    put = setter(state, it.operands[0], it.uniform)
    outs = [setter(state, carry, it.uniform) for carry in carries if carry.index != TRUE]
    shift = sources[-1].value
    if sources[-1].kind != "number":
        raise ValueError("a shift in a register")
    a, b = integer(state, sources[0]), integer(state, sources[1])
    if not it.has("HI"):
        if given or it.has("X"):
            raise ValueError("a carry")

        def act(lanes: Lanes) -> None:
            total = (a() << np.uint32(shift)).astype(np.uint64) + b()
            put((total & np.uint64(0xFFFFFFFF)).astype(np.uint32), lanes)
            for out in outs:
                out(total > np.uint64(0xFFFFFFFF), lanes)

        return act
    high = integer(state, sources[2]) if not it.has("SX32") else lambda: (a().view(np.int32) >> 31).view(np.uint32)
    carry = predicate(state, given[0]) if it.has("X") else None

    def act_high(lanes: Lanes) -> None:
        both = a().astype(np.uint64) | high().astype(np.uint64) << np.uint64(32)
        total = ((both << np.uint64(shift)) >> np.uint64(32)) + b()
        if carry is not None:
            total = total + carry().astype(np.uint64)
        put((total & np.uint64(0xFFFFFFFF)).astype(np.uint32), lanes)
        for out in outs:
            out(total > np.uint64(0xFFFFFFFF), lanes)

    return act_high


def _table(lut: int, terms: list[Lanes]) -> Lanes:
    a, b, c = terms
    result = np.zeros_like(a)
    for place in range(8):
        if lut >> place & 1:
            result |= (a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c)
    return result


def logic(state: State, it: Instruction) -> Action:
    operands = list(it.operands)
    flag = setter(state, operands.pop(0), it.uniform) if operands[0].kind == "predicate" else None
    put = setter(state, operands[0], it.uniform)
    gets = [integer(state, operand) for operand in operands[1:4]]
    lut, also = operands[4].value, predicate(state, operands[5])
    short = {0xC0: np.bitwise_and, 0xFC: np.bitwise_or, 0x3C: np.bitwise_xor}.get(lut)

    def act(lanes: Lanes) -> None:
        value = short(gets[0](), gets[1]()) if short else _table(lut, [get() for get in gets])
        if flag is not None:
            flag((value != 0) | also(), lanes)
        put(value, lanes)

    return act


def predicate_logic(state: State, it: Instruction) -> Action:
    first, second = (setter(state, operand, it.uniform) for operand in it.operands[:2])
    gets = [predicate(state, operand) for operand in it.operands[2:5]]
    luts = [operand.value for operand in it.operands[5:7]]

    def act(lanes: Lanes) -> None:
        terms = [get() for get in gets]
        one, two = (_table(lut, terms) for lut in luts)
        first(one, lanes)
        second(two, lanes)

    return act


def compare_integers(state: State, it: Instruction) -> Action:
    first, second = (setter(state, operand, it.uniform) for operand in it.operands[:2])
    relation = it.modifiers[0]
    compare = COMPARE[relation]
    combine = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}[
        next(m for m in it.modifiers if m in ("AND", "OR", "XOR"))
    ]
    both = it.has("S64", "U64")
    read = pair if both else integer
    a, b = read(state, it.operands[2]), read(state, it.operands[3])
    also = predicate(state, it.operands[4])
    lower = predicate(state, it.operands[5]) if it.has("EX") else None
    if both:
        kind: Any = np.uint64 if it.has("U64") else np.int64
    else:
        kind = np.uint32 if it.has("U32") else np.int32

    def act(lanes: Lanes) -> None:
        x, y = a().view(kind), b().view(kind)
        found = compare(x, y)
        if lower is not None:
            if relation == "NE":
                found = found | lower()
            elif relation == "EQ":
                found = found & lower()
            else:
                strict = np.less if relation[0] == "L" else np.greater
                found = strict(x, y) | ((x == y) & lower())
        other = also()
        one, two = combine(found, other), combine(~found, other)
        first(one, lanes)
        second(two, lanes)

    return act


def select(state: State, it: Instruction) -> Action:
    pick = predicate(state, it.operands[3])
    if it.has("64"):
        wide = wide_setter(state, it.operands[0], it.uniform)
        x, y = pair(state, it.operands[1]), pair(state, it.operands[2])
        return lambda lanes: wide(np.where(pick(), x(), y()), lanes)
    put, read = setter(state, it.operands[0], it.uniform), real if it.opcode == "FSEL" else integer
    a, b = read(state, it.operands[1]), read(state, it.operands[2])
    return lambda lanes: put(np.where(pick(), a().view(np.uint32), b().view(np.uint32)), lanes)


def shift(state: State, it: Instruction) -> Action:
    put = setter(state, it.operands[0], it.uniform)
    low, by, high = (integer(state, operand) for operand in it.operands[1:4])
    left, upper = it.has("L"), it.has("HI")
    most = 63 if upper or it.has("U64", "S64") else 32
    signed, wrapped = it.has("S32", "S64"), it.has("W")

    def act(lanes: Lanes) -> None:
        count = (by() & np.uint32(31) if wrapped else np.minimum(by(), np.uint32(most))).astype(np.uint64)
        both = low().astype(np.uint64) | high().astype(np.uint64) << np.uint64(32)
        if left:
            result = both << count
        elif signed:
            result = (both.view(np.int64) >> count.view(np.int64)).view(np.uint64)
        else:
            result = both >> count
        if upper:
            result = result >> np.uint64(32)
        put((result & np.uint64(0xFFFFFFFF)).astype(np.uint32), lanes)

    return act


def permute(state: State, it: Instruction) -> Action:
    put = setter(state, it.operands[0], it.uniform)
    a, c = integer(state, it.operands[1]), integer(state, it.operands[3])
    if it.operands[2].kind != "number" or it.modifiers:
        raise ValueError("a pattern in a register")
    nibbles = [it.operands[2].value >> (4 * place) & 15 for place in range(4)]

    def act(lanes: Lanes) -> None:
        both = a().astype(np.uint64) | c().astype(np.uint64) << np.uint64(32)
        result = np.zeros(state.threads, np.uint32)
        for place, nibble in enumerate(nibbles):
            byte = (both >> np.uint64(8 * (nibble & 7))).astype(np.uint32) & np.uint32(0xFF)
            if nibble & 8:  # its sign, eight times
                byte = (byte >> np.uint32(7)) * np.uint32(0xFF)
            result |= byte << np.uint32(8 * place)
        put(result, lanes)

    return act


def count_bits(state: State, it: Instruction) -> Action:
    return simple(state, it, lambda a: np.bitwise_count(a).astype(np.uint32), [it.operands[1]], integer)


def absolute(state: State, it: Instruction) -> Action:
    return simple(state, it, lambda a: np.abs(a.view(np.int32)).view(np.uint32), [it.operands[1]], integer)


def predicates_to_register(state: State, it: Instruction) -> Action:
    put, old = setter(state, it.operands[0]), integer(state, it.operands[2])
    mask = it.operands[3].value
    if it.operands[1].text != "PR" or it.modifiers:
        raise ValueError("form of P2R")

    def act(lanes: Lanes) -> None:
        bits = np.zeros(state.threads, np.uint32)
        for place in range(7):
            bits |= state.predicates[place].astype(np.uint32) << np.uint32(place)
        put(old() & np.uint32(~mask & 0xFFFFFFFF) | bits & np.uint32(mask), lanes)

    return act


def register_to_predicates(state: State, it: Instruction) -> Action:
    source, mask = it.operands[1], it.operands[2].value
    get = integer(state, Operand("register", source.text, source.index))

    def act(lanes: Lanes) -> None:
        bits = get() >> np.uint32(8 * source.part)
        for place in range(7):
            if mask >> place & 1:
                np.copyto(state.predicates[place], bits >> np.uint32(place) & 1 != 0, where=lanes)

    return act


def special(state: State, it: Instruction) -> Action:
    put = setter(state, it.operands[0], it.uniform)
    name = it.operands[1].text
    index = np.arange(state.threads, dtype=np.uint32)
    value = {
        "SR_TID.X": index,
        "SR_LANEID": index % LANES,
        "SR_CTAID.X": np.full(state.threads, state.block, np.uint32),
        "SR_CgaCtaId": np.zeros(state.threads, np.uint32),
        "SRZ": np.zeros(state.threads, np.uint32),
    }[name]
    if it.opcode == "CS2R" and not it.has("32"):
        wide = wide_setter(state, it.operands[0])
        return lambda lanes: wide(value.astype(np.uint64), lanes)
    return lambda lanes: put(value, lanes)


def to_uniform(state: State, it: Instruction) -> Action:
    put, get = setter(state, it.operands[0], True), integer(state, it.operands[1])

    def act(lanes: Lanes) -> None:
        first = np.argmax(lanes.reshape(-1, LANES), axis=1) + np.arange(state.warps) * LANES
        put(np.repeat(get()[first], LANES), lanes)

    return act


def extend(state: State, it: Instruction) -> Action:
    """SGXT: the lower bits of a number, with zeros or with the uppermost of them above."""
    put, get = setter(state, it.operands[0], it.uniform), integer(state, it.operands[1])
    if it.operands[2].kind != "number" or it.has("W"):
        raise ValueError("form of SGXT")
    away = np.uint32(32 - it.operands[2].value)
    kind: Any = np.uint32 if it.has("U32") else np.int32
    return lambda lanes: put(((get() << away).view(kind) >> away.astype(kind)).view(np.uint32), lanes)

"""What each instruction does to the lanes of a block.

Only what the kernels use is here; anything else raises ``NotImplementedError`` with the instruction's text, so that a
kernel with a new one is never counted by guess. Meanings follow NVIDIA's "CUDA Binary Utilities" (names) and were
settled by running the kernels: their results must be those of the reference (tests/tools/test_sass_model.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.sass_model.disassembly import BANK, TRUE, UNIFORM, ZERO, Instruction, Operand
from tools.sass_model.memory import LANES, Costs, Global, Lanes

Action = Callable[[Lanes], None]  # given the lanes that do it
SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
LOCAL = 4096  # bytes of local memory of a thread
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
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


def action(state: State, instruction: Instruction) -> Action | None:
    """What the instruction does, or None where it changes no number (control is the machine's)."""
    name = instruction.opcode
    if name in IGNORED:
        return None
    maker = MAKERS.get(name)
    if maker is None:
        raise NotImplementedError(f"{instruction.address:#x}: {instruction.text}")
    try:
        return maker(state, instruction)
    except (IndexError, KeyError, ValueError) as error:
        raise NotImplementedError(f"{instruction.address:#x}: {instruction.text} ({error})") from error


CONTROL = {"BRA", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "BAR", "WARPSYNC", "BREAK", "BRX", "BMOV", "YIELD"}
# Waits: everything they wait for has happened by then, since instructions are done in order here.
IGNORED = {*CONTROL, "NOP", "LDGDEPBAR", "DEPBAR", "ENDCOLLECTIVE", "MEMBAR", "ERRBAR", "CCTL"}


# Operands.


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


# Integers.


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


# Between lanes.


def vote(state: State, it: Instruction) -> Action:
    result, source = it.operands[0], predicate(state, it.operands[-1])
    put = setter(state, result, it.uniform)
    weights = np.uint32(1) << np.arange(LANES, dtype=np.uint32)

    def act(lanes: Lanes) -> None:
        asked = (source() & lanes).reshape(-1, LANES)
        if result.kind == "register":
            put(np.repeat((asked * weights).sum(axis=1, dtype=np.uint32), LANES), lanes)
        elif it.has("ANY"):
            put(np.repeat(asked.any(axis=1), LANES), lanes)
        elif it.has("ALL"):
            put(np.repeat((asked | ~lanes.reshape(-1, LANES)).all(axis=1), LANES), lanes)
        else:
            raise NotImplementedError(it.text)

    if result.kind == "register" and it.operands[1].index != TRUE:
        raise ValueError("a second result")
    return act


def shuffle(state: State, it: Instruction) -> Action:
    flag, put = setter(state, it.operands[0]), setter(state, it.operands[1])
    value, by = integer(state, it.operands[2]), integer(state, it.operands[3])
    lane = np.arange(state.threads, dtype=np.uint32)
    if not it.has("BFLY", "IDX"):
        raise ValueError("form of SHFL")

    def act(lanes: Lanes) -> None:
        _converged(it, lanes)
        source = lane ^ by() if it.has("BFLY") else lane // LANES * LANES + by() % np.uint32(LANES)
        put(value()[source], lanes)
        flag(np.ones(state.threads, bool), lanes)

    return act


def _converged(it: Instruction, lanes: Lanes) -> None:
    warps = lanes.reshape(-1, LANES)
    if (warps.any(axis=1) != warps.all(axis=1)).any():
        raise RuntimeError(f"{it.address:#x}: {it.text}: a warp has come apart")


# Floating numbers.


def _rounded(it: Instruction, exact: Lanes) -> Lanes:
    value = exact.astype(np.float32)
    if it.has("RM", "RP", "RZ"):
        toward = np.where(it.has("RP"), np.inf, -np.inf)
        over = value.astype(np.float64) > exact if it.has("RM") else value.astype(np.float64) < exact
        if it.has("RZ"):
            over, toward = np.abs(value.astype(np.float64)) > np.abs(exact), np.zeros(())
        value = np.where(over, np.nextafter(value, toward.astype(np.float32)), value).astype(np.float32)
    if it.has("SAT"):
        value = np.clip(np.nan_to_num(value), 0.0, 1.0).astype(np.float32)
    return value


def arithmetic(state: State, it: Instruction) -> Action:
    put = setter(state, it.operands[0])
    gets = [real(state, operand) for operand in it.operands[1:]]
    plain = not it.has("RM", "RP", "RZ", "SAT")
    if it.opcode == "FFMA":

        def act_fused(lanes: Lanes) -> None:
            exact = gets[0]().astype(np.float64) * gets[1]().astype(np.float64) + gets[2]()
            put((exact.astype(np.float32) if plain else _rounded(it, exact)).view(np.uint32), lanes)

        return act_fused
    compute = np.add if it.opcode == "FADD" else np.multiply
    if plain:
        return lambda lanes: put(compute(gets[0](), gets[1]()).view(np.uint32), lanes)
    return lambda lanes: put(
        _rounded(it, compute(gets[0]().astype(np.float64), gets[1]().astype(np.float64))).view(np.uint32), lanes
    )


def real_extremum(state: State, it: Instruction) -> Action:
    put, pick = setter(state, it.operands[0]), predicate(state, it.operands[3])
    a, b = real(state, it.operands[1]), real(state, it.operands[2])
    return lambda lanes: put(np.where(pick(), np.fmin(a(), b()), np.fmax(a(), b())).view(np.uint32), lanes)


def _ordered(it: Instruction) -> Callable[[Lanes, Lanes], Lanes]:
    name = next(m for m in it.modifiers if m.rstrip("U") in COMPARE or m in ("NUM", "NAN"))
    compare = COMPARE[name.rstrip("U")]
    if name.endswith("U"):
        return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)
    if name == "NE":
        return lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    return compare


def compare_reals(state: State, it: Instruction) -> Action:
    compare = _ordered(it)
    combine = np.logical_or if it.has("OR") else np.logical_and
    if it.opcode == "FSET":
        if not it.has("BF"):
            raise ValueError("form of FSET")
        put, also = setter(state, it.operands[0]), predicate(state, it.operands[3])
        a, b = real(state, it.operands[1]), real(state, it.operands[2])
        one = np.float32(1).view(np.uint32)
        return lambda lanes: put(np.where(combine(compare(a(), b()), also()), one, np.uint32(0)), lanes)
    first, second = (setter(state, operand) for operand in it.operands[:2])
    a, b = real(state, it.operands[2]), real(state, it.operands[3])
    also = predicate(state, it.operands[4])

    def act(lanes: Lanes) -> None:
        found, other = compare(a(), b()), also()
        one, two = combine(found, other), combine(~found, other)
        first(one, lanes)
        second(two, lanes)

    return act


def check_division(state: State, it: Instruction) -> Action:
    """Whether a / b needs the slow way: where the quotient, or a step towards it, may leave the normal range."""
    put, a, b = setter(state, it.operands[0]), real(state, it.operands[1]), real(state, it.operands[2])

    def act(lanes: Lanes) -> None:
        x, y = np.frexp(a())[1], np.frexp(b())[1]
        usual = np.isfinite(a()) & np.isfinite(b()) & (b() != 0) & (np.abs(y) < 125)
        put(~(usual & ((a() == 0) | ((x > -100) & (np.abs(x - y) < 125)))), lanes)

    return act


def function(state: State, it: Instruction) -> Action:
    known: dict[str, Callable[[Lanes], Lanes]] = {
        "RCP": lambda x: 1.0 / x,
        "RSQ": lambda x: 1.0 / np.sqrt(x),
        "SQRT": np.sqrt,
        "EX2": np.exp2,
        "LG2": np.log2,
    }
    compute = known[it.modifiers[0]]
    return simple(state, it, lambda a: compute(a).astype(np.float32).view(np.uint32), [it.operands[1]], real)


def to_integer(state: State, it: Instruction) -> Action:
    if not it.has("TRUNC") or not it.has("U32"):
        raise ValueError("form of F2I")
    return simple(
        state,
        it,
        lambda a: np.clip(np.trunc(np.nan_to_num(a)), 0, 4294967040).astype(np.uint32),
        [it.operands[1]],
        real,
    )


def from_integer(state: State, it: Instruction) -> Action:
    kind = np.uint32 if it.has("U32") else np.int32

    def convert(a: Lanes) -> Lanes:
        return _rounded(it, a.view(kind).astype(np.float64)).view(np.uint32)

    return simple(state, it, convert, [it.operands[1]], integer)


def to_half(value: Lanes) -> Lanes:
    """bfloat16, rounded to nearest even, in the lower 16 bits."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded)


def convert(state: State, it: Instruction) -> Action:
    if "TF32" in it.modifiers:  # to nearest, ties away from zero
        cut = np.uint32(0xFFFFE000)
        source = it.operands[-1]
        return simple(state, it, lambda a: (a.view(np.uint32) + np.uint32(0x1000)) & cut, [source], real)
    if "BF16" not in it.modifiers:
        raise ValueError("not bfloat16")
    if it.opcode == "F2FP":
        return simple(state, it, lambda a, b: to_half(a) << np.uint32(16) | to_half(b), list(it.operands[1:3]), real)
    return simple(state, it, to_half, [it.operands[1]], real)


def _halves(words: Lanes) -> Lanes:
    """Pairs of bfloat16 as float32, in a new last dimension."""
    low, high = words << np.uint32(16), words & np.uint32(0xFFFF0000)
    return np.stack([low, high], axis=-1).view(np.float32)


def multiply_matrices(state: State, it: Instruction) -> Action:
    """HMMA: fragments as PTX lays those of mma.m16n8k16 (bfloat16) and m16n8k8 (tf32) over the lanes."""
    half = it.modifiers == ("16816", "F32", "BF16")
    if not half and it.modifiers != ("1688", "F32", "TF32"):
        raise ValueError("shape or dtype")
    d, a, b, c = it.operands
    warps, pairs = state.warps, 2 if half else 1
    left, right = state.registers[a.index : a.index + 4], state.registers[b.index : b.index + 2]
    sums = state.registers[c.index : c.index + 4] if c.index != ZERO else np.zeros((4, state.threads), np.uint32)
    puts = [setter(state, next_register(d, step)) for step in range(4)]

    def numbers(words: Lanes) -> Lanes:
        return _halves(words) if half else (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]

    def act(lanes: Lanes) -> None:
        _converged(it, lanes)
        # [k half, row half, warp, g, t, pair] -> [warp, row, k]
        x = numbers(left.reshape(2, 2, warps, 8, 4)).transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, 8 * pairs)
        y = numbers(right.reshape(2, warps, 8, 4)).transpose(1, 0, 3, 4, 2).reshape(warps, 8 * pairs, 8)
        product = np.matmul(x, y).reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, state.threads)
        result = (product + sums.view(np.float32)).view(np.uint32)
        for put, row in zip(puts, result):
            put(row, lanes)

    return act


def half_constant(state: State, it: Instruction) -> Action:
    """HFMA2 with zeros as factors: a constant by its halves, the upper one first."""
    put = setter(state, it.operands[0])
    if [operand.text.lstrip("-") for operand in it.operands[1:3]] != ["RZ", "RZ"] or len(it.operands) != 5:
        raise ValueError("not a constant")
    upper, lower = (
        int(np.uint32(operand.value).view(np.float32).astype(np.float16).view(np.uint16)) for operand in it.operands[3:]
    )
    value = np.full(state.threads, upper << 16 | lower, np.uint32)
    return lambda lanes: put(value, lanes)


# Memory.


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
        _converged(it, lanes)
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
    """LDGSTS.ZFILL of 16 bytes: the address's last four bits tell how many of them are zeros, a false predicate that
    all are."""
    if not it.has("128") or not it.has("ZFILL"):
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


MAKERS: dict[str, Callable[[State, Instruction], Action]] = {
    "MOV": move,
    "IADD3": add,
    "IADD": add,
    "VIADD": add,
    "IMAD": multiply_add,
    "IMNMX": extremum,
    "VIMNMX": extremum,
    "VIADDMNMX": extremum,
    "LEA": load_address,
    "LOP3": logic,
    "PLOP3": predicate_logic,
    "ISETP": compare_integers,
    "SEL": select,
    "FSEL": select,
    "SHF": shift,
    "PRMT": permute,
    "POPC": count_bits,
    "IABS": absolute,
    "P2R": predicates_to_register,
    "R2P": register_to_predicates,
    "S2R": special,
    "CS2R": special,
    "R2UR": to_uniform,
    "VOTE": vote,
    "SHFL": shuffle,
    "FADD": arithmetic,
    "FMUL": arithmetic,
    "FFMA": arithmetic,
    "FMNMX": real_extremum,
    "FSETP": compare_reals,
    "FSET": compare_reals,
    "FCHK": check_division,
    "MUFU": function,
    "F2I": to_integer,
    "I2F": from_integer,
    "I2FP": from_integer,
    "F2F": convert,
    "F2FP": convert,
    "HMMA": multiply_matrices,
    "HFMA2": half_constant,
    "LDS": load_shared,
    "STS": store_shared,
    "LDSM": load_matrices,
    "LDG": load_global,
    "LD": load_global,  # of any memory: raises where the address lies in no tensor
    "LDL": local,
    "STL": local,
    "STG": store_global,
    "LDGSTS": copy_to_shared,
    "LDC": load_constant,
}

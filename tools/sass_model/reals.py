"""What instructions on floating numbers do, matrices among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.sass_model.disassembly import ZERO, Instruction
from tools.sass_model.memory import Lanes
from tools.sass_model.operands import (
    COMPARE,
    Action,
    State,
    converged,
    integer,
    next_register,
    predicate,
    real,
    setter,
    simple,
)


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
    """FMNMX of two numbers, FMNMX3 of three."""
    target, *given, last = it.operands
    put, pick = setter(state, target), predicate(state, last)
    first, *others = (real(state, operand) for operand in given)

    def act(lanes: Lanes) -> None:
        least = most = first()
        for other in others:
            value = other()
            least, most = np.fmin(least, value), np.fmax(most, value)
        put(np.where(pick(), least, most).view(np.uint32), lanes)

    return act


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
        converged(it, lanes)
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

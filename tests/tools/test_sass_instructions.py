"""The interpreter of compiled code on listings of a few lines: threads that part, barriers, integers against Python's,
and what accesses to memory cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tools.sass_model import disassembly
from tools.sass_model.block import Block
from tools.sass_model.memory import Costs, Global
from tools.sass_model.operands import State
from tools.sass_model.semantics import action

THREADS = 256


def listing(*texts: str) -> tuple[disassembly.Instruction, ...]:
    return disassembly.parse([f"        /*{16 * i:04x}*/    {text} ;    /* 0x0 */" for i, text in enumerate(texts)])


def run_listing(*texts: str, memory: Global | None = None) -> tuple[Block, Any]:
    block = Block(listing(*texts, "EXIT"), memory or Global({}), 4096, b"")
    return block, block.run()


def test_an_unknown_instruction_stops_the_count() -> None:
    with pytest.raises(NotImplementedError, match="FROB"):
        run_listing("FROB R1, R2")
    with pytest.raises(ValueError, match="no instruction was found"):
        disassembly.parse(["a listing of another form"])


def test_threads_that_part_and_meet() -> None:
    """A warp that comes apart issues both ways, and meets again where the code says so."""
    _, trace = run_listing(
        "S2R R0, SR_TID.X",
        "ISETP.GE.U32.AND P0, PT, R0, 0x30, PT",  # half of warp 1, and the warps behind it
        "BSSY B0, 0x60",
        "@P0 BRA 0x50",
        "MOV R1, 0x1",
        "BSYNC B0",
        "MOV R2, R1",
    )
    assert trace.issues[4].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert trace.issues[5].tolist() == [1, 2, 1, 1, 1, 1, 1, 1]
    assert trace.issues[6].tolist() == [1] * 8


def test_loops_and_guards() -> None:
    _, trace = run_listing(
        "S2R R0, SR_TID.X",
        "SHF.R.U32.HI R0, RZ, 0x5, R0",
        "MOV R1, RZ",
        "IADD3 R1, R1, 0x1, RZ",  # as many times as the warp's number, once at least
        "ISETP.LT.AND P0, PT, R1, R0, PT",
        "@P0 MOV R2, R1",
        "@P0 BRA 0x30",
    )
    assert trace.issues[3].tolist() == [1, 1, 2, 3, 4, 5, 6, 7]
    assert (trace.issues - trace.idle)[5].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    (loop,) = trace.loops
    assert sorted(loop.places) == [3, 4, 5, 6]


def test_barriers_by_number_and_threads_that_break_away() -> None:
    """Two halves of the block meet at barriers of their own; a thread that leaves a meeting is not waited for."""
    texts = (
        "S2R R0, SR_TID.X",
        "ISETP.GE.U32.AND P0, PT, R0, 0x80, PT",
        "@P0 BRA 0x60",
        "BAR.SYNC 0x1, 0x80",
        "MOV R1, 0x1",
        "BRA 0x80",
        "BAR.SYNC 0x2, 0x80",
        "MOV R1, 0x2",
        "ISETP.EQ.U32.AND P1, PT, R0, 0x21, PT",
        "BSSY B0, 0xd0",
        "@P1 BREAK B0",
        "@P1 BRA 0xd0",
        "BSYNC B0",
        "MOV R2, R1",
    )
    block, trace = run_listing(*texts)
    assert trace.block_barriers == 2
    assert block.state.registers[2].tolist() == [1] * 128 + [2] * 128
    assert trace.issues[13].tolist() == [1, 2, 1, 1, 1, 1, 1, 1]


# Single instructions, against Python's integers.

WORDS = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0x12345678)
ALL = 0xFFFFFFFF
WIDE = 0xFFFFFFFFFFFFFFFF


def signed(x: int, bits: int = 32) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


CASES: list[tuple[str, Callable[[int, int, int], int]]] = [
    ("IADD3 R0, R1, -R2, R3", lambda a, b, c: a - b + c),
    ("IMAD R0, R1, R2, R3", lambda a, b, c: a * b + c),
    ("LEA R0, R1, R2, 0x3", lambda a, b, c: (a << 3) + b),
    ("LEA.HI R0, R1, R2, R3, 0x5", lambda a, b, c: ((((c << 32) | a) << 5) >> 32) + b),
    ("LEA.HI.SX32 R0, R1, R2, 0x1c", lambda a, b, c: (signed(a) >> 4) + b),
    ("LOP3.LUT R0, R1, R2, R3, 0xe2, !PT", lambda a, b, c: (a & b) | (c & ~b)),
    ("SHF.R.S32.HI R0, RZ, 0x3, R1", lambda a, b, c: signed(a) >> 3),
    ("SHF.R.U32.HI R0, RZ, 0x3, R1", lambda a, b, c: a >> 3),
    ("SHF.R.U64 R0, R1, 0x5, R2", lambda a, b, c: ((b << 32) | a) >> 5),
    ("SHF.L.U64.HI R0, R1, 0x2, R2", lambda a, b, c: (((b << 32) | a) << 2) >> 32),
    ("SHF.L.U32 R0, R1, 0x4, RZ", lambda a, b, c: a << 4),
    ("PRMT R0, R1, 0x9910, RZ", lambda a, b, c: signed(a & 0xFFFF, 16)),
    ("PRMT R0, R1, 0x5410, R2", lambda a, b, c: (a & 0xFFFF) | (b & 0xFFFF) << 16),
    ("IABS R0, R1", lambda a, b, c: abs(signed(a))),
    ("VIMNMX.RELU R0, R1, 0x10, PT", lambda a, b, c: max(0, min(signed(a), 16))),
    ("VIADDMNMX R0, R1, 0x1, R2, !PT", lambda a, b, c: max(signed((a + 1) & ALL), signed(b))),
    ("POPC R0, R1", lambda a, b, c: bin(a).count("1")),
    ("SGXT.U32 R0, R1, 0x5", lambda a, b, c: a & 31),
    ("SGXT R0, R1, 0x8", lambda a, b, c: signed(a & 255, 8)),
]


def value_of(texts: list[str], registers: dict[int, int], result: int = 0) -> int:
    state = State(32, Global({}), 16, b"", 0)
    for register, value in registers.items():
        state.registers[register] = np.uint32(value)
    for it in listing(*texts):
        act = action(state, it)
        assert act is not None
        act(np.ones(32, bool))
    return int(state.registers[result][0])


@pytest.mark.parametrize("text, meaning", CASES, ids=[text for text, _ in CASES])
def test_integers(text: str, meaning: Callable[[int, int, int], int]) -> None:
    for a in WORDS:
        for b in WORDS[::2]:
            for c in WORDS[1::3]:
                assert value_of([text], {1: a, 2: b, 3: c}) == meaning(a, b, c) & ALL, (a, b, c)


@pytest.mark.parametrize("a", [0, 1, 0x80000000, 0xFFFFFFFF, 0x1FFFFFFFF, 1 << 40])
@pytest.mark.parametrize("b", [0, 1, 0x80000001, 0x1FFFFFFFF])
def test_carries(a: int, b: int) -> None:
    """Sums, differences and comparisons of 64 bits in two halves."""
    registers = {2: a & ALL, 3: a >> 32, 4: b & ALL, 5: b >> 32}
    for signs, expected in (("R4 R5", a + b), ("-R4 ~R5", a - b)):
        low, high = signs.split()
        texts = [f"IADD3 R0, P0, R2, {low}, RZ", f"IADD3.X R1, R3, {high}, RZ, P0, !PT"]
        halves = [value_of(texts, registers, result) for result in (0, 1)]
        assert halves[0] | halves[1] << 32 == expected & WIDE
    less = ["ISETP.LT.U32.AND P0, PT, R2, R4, PT", "ISETP.LT.AND.EX P0, PT, R3, R5, PT, P0", "SEL R0, RZ, 0x1, !P0"]
    assert value_of(less, registers) == int(a < b)
    product = [value_of(["IMAD.WIDE.U32 R0, R2, R4, R4"], registers, result) for result in (0, 1)]
    assert product[0] | product[1] << 32 == ((a & ALL) * (b & ALL) + b) & WIDE


@pytest.mark.parametrize("first", range(3))
def test_extremes_of_three_reals(first: int) -> None:
    """NaN is left out."""
    numbers = np.roll(np.array([-1.5, 2.25, np.nan], np.float32), first).view(np.uint32)
    registers = {1 + place: int(bits) for place, bits in enumerate(numbers)}
    for pick, expected in (("PT", -1.5), ("!PT", 2.25)):
        found = value_of([f"FMNMX3 R0, R1, R2, R3, {pick}"], registers)
        assert np.uint32(found).view(np.float32) == expected


# Costs.


@pytest.mark.parametrize(
    "step, size, wavefronts",
    [
        (4, 4, 1),  # a word to each bank
        (0, 4, 1),  # all the same word
        (8, 4, 2),
        (128, 4, 32),  # all in one bank
        (2, 2, 1),  # two to a word
        (8, 8, 2),
        (16, 16, 4),
        (144, 16, 4),  # rows of 64 numbers and 8 between them: ldmatrix without conflicts
        (128, 16, 32),  # without them
    ],
)
def test_bank_conflicts(step: int, size: int, wavefronts: int) -> None:
    addresses = (np.arange(THREADS) % 32 * step + 4096).astype(np.uint32)
    active = np.arange(THREADS) < 32
    assert Costs().wavefronts(addresses, active, size) == wavefronts
    assert Costs().wavefronts(addresses, np.ones(THREADS, bool), size) == 8 * wavefronts


def test_sectors_and_bytes_of_memory() -> None:
    memory = Global({"x": np.arange(256, dtype=np.uint32), "y": np.zeros(256, np.uint32)})
    at = memory.addresses()
    assert at["y"] % 256 == 0
    _, trace = run_listing(
        "S2R R0, SR_TID.X",
        f"MOV R2, {at['x'] & ALL:#x}",
        f"MOV R3, {at['x'] >> 32:#x}",
        "IMAD.WIDE.U32 R2, R0, 0x4, R2",
        "LDG.E R4, [R2.64]",
        f"STG.E [R2.64+{at['y'] - at['x']:#x}], R4",
        "LDG.E R5, [R2.64]",
        memory=memory,
    )
    assert (memory.tensor("y") == np.arange(256)).all()
    assert sum(trace.sectors.values()) == 3 * 32
    assert (int(memory.read.sum()), int(memory.written.sum())) == (32, 32), "each byte once"
    with pytest.raises(IndexError, match="outside"):
        run_listing("MOV R2, 0x10", "MOV R3, RZ", "LDG.E R4, [R2.64]", memory=memory)

"""One block of a kernel, run from its machine code: how often each of its warps issues each instruction.

The threads of a warp that have come apart are brought together where the code says so (BSSY, BSYNC). Warps that stand
at the same instruction are done together, which changes no count.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tools.sass_model.disassembly import LENGTH, TRUE, Instruction, Operand
from tools.sass_model.loops import Loop, loops
from tools.sass_model.memory import LANES, Global, Lanes
from tools.sass_model.operands import Action, State
from tools.sass_model.semantics import CONTROL, action

THREADS = 256
LIMIT = 20_000_000  # steps; a kernel that goes on longer has been misunderstood


@dataclass
class Trace:
    """What a block did."""

    instructions: tuple[Instruction, ...]
    issues: Lanes  # [instructions, warps]
    idle: Lanes  # of these, how often no thread of the warp had anything to do: the guard was false
    # by address, over the block
    wavefronts: dict[int, int]
    sectors: dict[int, int]
    lanes: dict[int, int]
    block_barriers: int
    # of an outline, by place: columns of 128 x N x 16 that tcgen05 multiplies; branches on what is unknown, accesses to
    # unknown places
    tensor_work: dict[int, float] = field(default_factory=dict)
    guessed: dict[int, int] = field(default_factory=dict)
    unplaced: dict[int, int] = field(default_factory=dict)

    @functools.cached_property
    def loops(self) -> list[Loop]:
        return loops(self.instructions)

    @property
    def threads(self) -> int:
        return LANES * int(self.issues.shape[1])

    @property
    def done(self) -> Lanes:
        """How often a warp did something by each instruction."""
        return np.asarray((self.issues - self.idle).sum(axis=1))

    def count(self, opcode: str, but: str = "") -> int:
        """Of all warps; without those that have the modifier ``but``."""
        places = [
            place for place, it in enumerate(self.instructions) if it.opcode == opcode and not (but and it.has(but))
        ]
        return int(self.done[places].sum())


@dataclass
class _Meeting:
    """Threads of one warp that a BSSY has bound to meet."""

    expected: int  # bits of lanes
    back: int  # where they go on
    arrived: int = 0


class Block:
    def __init__(
        self, code: Sequence[Instruction], memory: Global, shared_bytes: int, constants: bytes, threads: int = THREADS
    ) -> None:
        self.code = tuple(code)
        self.state = State(threads, memory, shared_bytes, constants, block=0)
        self._actions: dict[int, Action | None] = {}  # made when first needed: much code is for other inputs
        self._guards = [self._guard(it) for it in self.code]
        self._control = [it.opcode in CONTROL for it in self.code]
        self._threads, self._warps = threads, threads // LANES
        self._idle = np.zeros((len(self.code), self._warps), np.int64)
        self._issues = np.zeros((len(self.code) + 1, self._warps), np.int64)
        # Runnable threads by the place they are at. Those of one warp stay apart until the code brings them together.
        self._groups: dict[int, list[Lanes]] = {0: [np.ones(threads, bool)]}
        self._syncing: dict[int, Lanes] = {}  # threads at a WARPSYNC by the place they go on at
        self._meetings: list[dict[str, list[_Meeting]]] = [{} for _ in range(self._warps)]
        # threads at a barrier, by its number and the place they go on at, and how many each waits for; 0: all
        self._waiting: dict[int, dict[int, Lanes]] = {}
        self._expected: dict[int, int] = {}
        self._alive = np.ones(threads, bool)
        self._barriers = 0

    def _action(self, it: Instruction) -> Action | None:
        return action(self.state, it)

    def _guard(self, it: Instruction) -> tuple[Lanes, bool] | None:
        if it.guard is None or (it.guard.index == TRUE and not it.guard.negative):
            return None
        return self.state.predicates[it.guard.index], it.guard.negative

    def _acting(self, place: int, lanes: Lanes) -> Lanes:
        """Those of ``lanes`` whose guard is true."""
        guard = self._guards[place]
        if guard is None:
            return lanes
        return lanes & ~guard[0] if guard[1] else lanes & guard[0]

    def run(self) -> Trace:
        steps = 0
        with np.errstate(all="ignore"):
            while self._groups:
                place = min(self._groups)
                lanes = self._groups[place].pop()
                if not self._groups[place]:
                    del self._groups[place]
                following = min(self._groups, default=len(self.code))
                steps += self._run_group(place, lanes, following)
                if steps > LIMIT:
                    raise RuntimeError(f"no end after {steps} steps")
        if self._alive.any():
            raise RuntimeError("threads wait for each other and none can go on")
        state = self.state
        return Trace(
            self.code,
            np.cumsum(self._issues, axis=0)[:-1],
            self._idle,
            state.wavefronts,
            state.sectors,
            state.lanes,
            self._barriers,
        )

    def _join(self, place: int, lanes: Lanes) -> None:
        if not lanes.any():
            return
        there = self._groups.setdefault(place, [])
        for index, others in enumerate(there):
            if not (self._standing(others) & self._standing(lanes)).any():
                there[index] = others | lanes
                return
        there.append(lanes)

    def _run_group(self, start: int, lanes: Lanes, following: int) -> int:
        """Runs threads from ``start`` to a branch, or to ``following``, where others stand."""
        place = start
        while True:
            acting = self._acting(place, lanes)
            if acting is not lanes:
                self._idle[place] += self._standing(lanes) & ~self._standing(acting)
            if self._control[place]:
                break
            if place not in self._actions:
                self._actions[place] = self._action(self.code[place])
            act = self._actions[place]
            if act is not None and (acting is lanes or acting.any()):
                act(acting)
            place += 1
            if place == following:
                self._count(start, place, lanes)
                self._join(place, lanes)
                return place - start
        self._count(start, place + 1, lanes)
        self._steer(place, lanes, acting)
        return place - start + 1

    def _count(self, start: int, end: int, lanes: Lanes) -> None:
        warps = self._standing(lanes)
        self._issues[start] += warps
        self._issues[end] -= warps

    def _standing(self, lanes: Lanes) -> Lanes:
        """The warps that have one of them."""
        return np.asarray(lanes.view(np.uint32).reshape(self._warps, -1).any(axis=1))

    def _steer(self, place: int, lanes: Lanes, acting: Lanes) -> None:
        it = self.code[place]
        name = it.opcode
        if name == "BRA":
            taken = self._taken(it, acting)
            self._join(it.operands[-1].value // LENGTH, taken)
            self._join(place + 1, lanes & ~taken)
        elif name == "BSSY":
            for warp, bits in self._bits(acting):
                mine = self._meetings[warp].setdefault(it.operands[0].text, [])
                mine[:] = [meeting for meeting in mine if not meeting.expected & bits]
                mine.append(_Meeting(bits, it.operands[1].value // LENGTH))
            self._join(place + 1, lanes)
        elif name == "BSYNC":
            self._join(place + 1, lanes & ~acting)
            self._meet(it, acting)
        elif name == "WARPSYNC":
            if it.has("COLLECTIVE"):
                raise NotImplementedError(f"{it.address:#x}: {it.text}")
            self._join(place + 1, lanes & ~acting)
            waiting = acting | self._syncing.get(place + 1, False)
            warps, alive = waiting.reshape(-1, LANES), self._alive.reshape(-1, LANES)
            whole = np.repeat((warps == alive).all(axis=1), LANES) & waiting
            self._syncing[place + 1] = waiting & ~whole
            self._join(place + 1, whole)
        elif name == "BAR":
            self._join(place + 1, lanes & ~acting)
            self._wait(place, it, acting)
        elif name == "BREAK":
            self._join(place + 1, lanes)
            self._leave(it, acting)
        elif name == "EXIT":
            self._join(place + 1, lanes & ~acting)
            self._alive &= ~acting
            self._exit(acting)
        elif name == "CALL":
            self._join(it.operands[-1].value // LENGTH, acting)
            self._join(place + 1, lanes & ~acting)
        elif name == "RET":
            back = self.state.registers[it.operands[0].index]
            for address in np.unique(back[acting]):
                self._join(int(address) // LENGTH, acting & (back == address))
            self._join(place + 1, lanes & ~acting)
        else:
            raise NotImplementedError(f"{it.address:#x}: {it.text}")

    def _taken(self, it: Instruction, acting: Lanes) -> Lanes:
        if it.has("DIV") or it.has("CONV"):
            # The one is taken by a warp whose threads have come apart, the other by one whose have not; code that both
            # lead such a warp to does the same lane by lane.
            warps = acting.reshape(-1, LANES)
            if (warps.any(axis=1) != warps.all(axis=1)).any():
                raise RuntimeError(f"{it.address:#x}: {it.text}: a warp has come apart")
            return acting if it.has("CONV") else np.zeros_like(acting)
        conditions = [operand for operand in it.operands[:-1] if operand.kind == "predicate"]
        if len(conditions) != len(it.operands) - 1 or it.operands[-1].kind != "number":
            raise NotImplementedError(f"{it.address:#x}: {it.text}")
        for condition in conditions:
            row = self.state.predicates[condition.index]
            acting = acting & (~row if condition.negative else row)
        return acting

    def _bits(self, lanes: Lanes) -> list[tuple[int, int]]:
        words = np.packbits(lanes, bitorder="little").view(np.uint32)
        return [(warp, int(bits)) for warp, bits in enumerate(words) if bits]

    def _meet(self, it: Instruction, acting: Lanes) -> None:
        for warp, bits in self._bits(acting):
            mine = self._meetings[warp].get(it.operands[0].text, [])
            for meeting in mine:
                meeting.arrived |= meeting.expected & bits
                bits &= ~meeting.expected
            if bits:
                raise RuntimeError(f"{it.address:#x}: threads meet that nothing has bound")
            self._go_on(warp, mine)

    def _leave(self, it: Instruction, acting: Lanes) -> None:
        """Threads that will not come to a meeting: those who are there no longer wait for them."""
        for warp, bits in self._bits(acting):
            mine = self._meetings[warp].get(it.operands[0].text, [])
            for meeting in mine:
                meeting.expected &= ~bits
            self._go_on(warp, mine)

    def _go_on(self, warp: int, meetings: list[_Meeting]) -> None:
        for meeting in meetings:
            if meeting.arrived == meeting.expected:
                lanes = np.zeros(self._threads, bool)
                bits = np.array([meeting.arrived], np.uint32).view(np.uint8)
                lanes[warp * LANES : (warp + 1) * LANES] = np.unpackbits(bits, bitorder="little").astype(bool)
                self._join(meeting.back, lanes)
        meetings[:] = [meeting for meeting in meetings if meeting.arrived != meeting.expected]

    def _exit(self, acting: Lanes) -> None:
        for warp, bits in self._bits(acting):
            for meetings in self._meetings[warp].values():
                for meeting in meetings:
                    if meeting.expected & bits & ~meeting.arrived and meeting.arrived:
                        raise NotImplementedError("threads leave that others wait for")
                    meeting.expected &= ~bits
                meetings[:] = [meeting for meeting in meetings if meeting.expected]
        if self._waiting:
            raise NotImplementedError("threads leave while others wait at a barrier")

    def _wait(self, place: int, it: Instruction, acting: Lanes) -> None:
        """Warps may wait at different instructions: it is one barrier. They go on behind their own."""
        if it.has("ARV", "RED"):
            raise NotImplementedError(f"{it.address:#x}: {it.text}")
        asked = [self._number(operand, acting) for operand in it.operands]
        barrier = asked[0] if asked else 0
        there = self._waiting.setdefault(barrier, {})
        there[place + 1] = acting | there.get(place + 1, False)
        self._expected[barrier] = asked[1] if len(asked) > 1 else 0
        arrived = np.logical_or.reduce(list(there.values()))
        if (arrived == self._alive).all() or int(arrived.sum()) == self._expected[barrier]:
            self._barriers += 1
            for back, lanes in self._waiting.pop(barrier).items():
                self._join(back, lanes)

    def _number(self, operand: Operand, lanes: Lanes) -> int:
        """Of a barrier, or of threads: one for all who ask."""
        if operand.kind == "number":
            return operand.value
        found = np.unique(self.state.registers[operand.index][lanes])
        if operand.kind != "register" or len(found) != 1:
            raise NotImplementedError(f"barrier {operand.text}")
        return int(found[0])

"""A block run without its floating numbers: enough for its counts where no branch looks at them.

Followed are integers, predicates and addresses, as far as they come from indices of threads, parameters, masks, and
what was kept of such in memory. All else is unknown, and so is what is made of it; results are not checked. What is
unknown counts as work: a guard as true, a branch forward as not taken (so that what it would skip is done), unless it
skips a call (the slow way of a division, of which the fast way is the rule); a branch back as not taken (a wait that is
over). ``Outline.guessed`` says where, so that a loop that ends by data cannot hide.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tools.sass_model.accesses import _global_place, _note, _place, _size
from tools.sass_model.block import THREADS, Block, Trace
from tools.sass_model.disassembly import LENGTH, TRUE, UNIFORM, ZERO, Instruction, Operand
from tools.sass_model.memory import LANES, SECTOR, Global, Lanes
from tools.sass_model.operands import Action, next_register, whole_warps
from tools.sass_model.semantics import IGNORED, MAKERS, action

ACROSS = ("VOTE", "SHFL", "R2UR", "REDUX", "ELECT")  # whose result any lane of the warp may change
SHARED = ("LDS", "STS", "LDSM", "STSM")
REMOTE = ("LDG", "STG", "LD", "LDGSTS")
# Without numbers of their own: barriers of copies in memory, waits of the matrix units and of copies, tensor memory.
QUIET = {
    *("WARPGROUP", "FENCE", "UTMACCTL", "TMACCTL", "TMACMDFLUSH", "TMALDG", "TMASTG", "TCBAR", "TCATOMSWS", "BPT"),
    *("NANOSLEEP", "VIRTCOUNT", "STTM", "ATOMG", "ATOMS", "RED", "TCHMMA", "BLKCP", "TMAPF", "CCTL", "ACQBULK"),
}
WIDE = {"FADD2": 2, "FMUL2": 2, "FFMA2": 2, "HMMA": 4}
OTHERS = {*WIDE, "HADD2", "LDTM", "HGMMA", "FLO", "BREV", "SYNCS", *QUIET, *IGNORED, *SHARED}
LINE = 128  # bytes of a wavefront


def _steps(it: Instruction) -> int:
    """How many registers the result takes."""
    if it.opcode == "HGMMA":
        return int(it.modifiers[0].split("x")[1]) // 2
    if it.opcode == "LDTM":
        return int(next(m for m in it.modifiers if re.fullmatch(r"x\d+", m))[1:])
    if it.opcode == "LDSM":
        return next((int(m) for m in it.modifiers if m in ("2", "4")), 1)
    if it.opcode == "CS2R":
        return 1 if it.has("32") else 2
    if it.opcode in WIDE:
        return WIDE[it.opcode]
    return 4 if it.has("128") else 2 if it.has("64", "WIDE", "U64", "S64") else 1


def _results(it: Instruction) -> list[Operand]:
    """Operands that are written."""
    first = it.operands[:1]
    rest = it.operands[1:]
    if it.opcode in ("STG", "STS", "STL", "STSM", "LDGSTS", "STTM", *QUIET) or not first:
        return [operand for operand in first if operand.kind in ("register", "predicate")]
    found = list(first)
    if (it.opcode in ("LOP3", "SHFL", "ELECT", "R2UR") and first[0].kind == "predicate") or it.opcode in (
        "ISETP",
        "FSETP",
        "PLOP3",
    ):
        found += rest[:1]
    elif it.opcode in ("IADD3", "LEA", "IMAD", "VOTE", "LOP3"):
        for operand in rest:
            if operand.kind != "predicate":
                break
            found.append(operand)
    return found


class Outline(Block):
    def __init__(
        self, code: Sequence[Instruction], memory: Global, shared_bytes: int, constants: bytes, threads: int = THREADS
    ) -> None:
        super().__init__(code, memory, shared_bytes, constants, threads)
        state = self.state
        self._registers = np.ones(state.registers.shape, bool)  # which are known
        self._predicates = np.ones(state.predicates.shape, bool)
        self._shared = np.zeros(len(state.shared), bool)
        self._local = np.zeros(state.local.shape, bool)
        self._lane = np.arange(threads) % LANES
        self._work: defaultdict[int, float] = defaultdict(float)
        self.guessed: Counter[int] = Counter()  # of each branch on what is unknown, how often one came to it
        self.unplaced: Counter[int] = Counter()  # of each access, how often a warp's address was unknown

    def run(self) -> Trace:
        trace = super().run()
        return replace(trace, tensor_work=dict(self._work), guessed=dict(self.guessed), unplaced=dict(self.unplaced))

    # Guards and branches.

    def _acting(self, place: int, lanes: Lanes) -> Lanes:
        guard = self.code[place].guard
        if guard is None or self._guards[place] is None:
            return lanes
        row, known = self.state.predicates[guard.index], self._predicates[guard.index]
        true = ~row if guard.negative else row
        if self._control[place] and self.code[place].opcode not in ("BSSY", "BSYNC", "BAR", "WARPSYNC"):
            return self._decided(place, lanes, true, known)
        return lanes & (true | ~known)

    def _decided(self, place: int, lanes: Lanes, true: Lanes, known: Lanes) -> Lanes:
        """Lanes for which a condition of a branch holds."""
        it = self.code[place]
        if not (lanes & ~known).any():
            return lanes & true
        self.guessed[place] += 1
        target = it.operands[-1].value // LENGTH if it.opcode == "BRA" else 0
        skips = any(other.opcode == "CALL" for other in self.code[place + 1 : target])
        return lanes & (true | ~known if skips else true & known)

    def _taken(self, it: Instruction, acting: Lanes) -> Lanes:
        if it.has("DIV"):
            return np.zeros_like(acting)
        place = it.address // LENGTH
        for condition in it.operands[:-1]:
            row, known = self.state.predicates[condition.index], self._predicates[condition.index]
            acting = self._decided(place, acting, ~row if condition.negative else row, known)
        return acting

    # Instructions.

    def _action(self, it: Instruction) -> Action | None:
        if it.opcode not in MAKERS and it.opcode not in OTHERS:
            raise NotImplementedError(f"{it.address:#x}: {it.text}")
        if it.opcode in SHARED:
            return self._of_shared(it)
        if it.opcode in REMOTE:
            return self._of_memory(it)
        if it.opcode == "HGMMA":
            return self._multiplied(it)
        if it.opcode == "TCHMMA":
            return self._multiplied_in_tensor_memory(it)
        if it.opcode == "SYNCS":
            return self._barrier_in_memory(it)
        exact = None
        if it.opcode in MAKERS and it.opcode != "HMMA":
            try:
                exact = action(self.state, it)
            except NotImplementedError:  # a form of it that is not known
                exact = None
        if it.opcode in ("LDL", "STL"):
            return self._of_thread(it, exact)
        return self._computed(it, exact)

    def _computed(self, it: Instruction, exact: Action | None) -> Action | None:
        results = _results(it)
        if not results:
            return None
        put = [self._row(operand, step) for operand in results for step in range(self._width(it, operand))]
        get = self._sources(it, len(results))
        if it.opcode == "R2P":
            put = [self._predicates[place] for place in range(7) if it.operands[2].value >> place & 1]
        elif it.opcode == "P2R":
            get += [self._predicates[place] for place in range(7) if it.operands[3].value >> place & 1]
        succeeds = it.opcode == "TCATOMSWS" and results[0].kind == "predicate"
        guard = None if it.guard is None else self._predicates[it.guard.index]
        across = it.opcode in ACROSS

        def act(lanes: Lanes) -> None:
            known = np.full(len(lanes), exact is not None)
            for row in get:
                known = known & row
            if guard is not None:
                known = known & guard
            if across:  # of lanes that are there
                known = np.repeat((known | ~lanes).reshape(-1, LANES).all(axis=1), LANES)
            if exact is not None and known.any():
                exact(lanes)
            written = whole_warps(lanes) if it.uniform else lanes
            for row in put:
                np.copyto(row, known, where=written)
            if succeeds:
                np.copyto(self.state.predicates[results[0].index], True, where=written)
                np.copyto(put[0], True, where=written)

        return act

    def _width(self, it: Instruction, operand: Operand) -> int:
        return _steps(it) if operand.kind == "register" else 1

    def _row(self, operand: Operand, step: int = 0) -> Lanes:
        """Which lanes of it are known; of what is no number, all, and nothing is written there."""
        if operand.kind == "predicate":
            return self._predicates[operand.index] if operand.index != TRUE else np.ones(self._threads, bool)
        if operand.kind != "register" or operand.index == ZERO:
            return np.ones(self._threads, bool)
        return self._registers[operand.index + step]

    def _sources(self, it: Instruction, results: int) -> list[Lanes]:
        found = []
        sources = it.operands[results:]
        for place, operand in enumerate(sources):
            if operand.kind == "predicate":
                found.append(self._row(operand))
            elif operand.kind == "register":
                wide = it.has("64", "U64", "S64") or (it.has("WIDE") and place == 2)
                found += [self._row(operand, step) for step in range(2 if wide else 1)]
            elif operand.kind == "constant" and operand.index != ZERO:
                found.append(self._registers[operand.index])
        return found

    def _address(self, operand: Operand) -> list[Lanes]:
        """Which lanes of an address are known."""
        found = []
        if operand.index != ZERO:
            found += [self._registers[operand.index + step] for step in range(2 if operand.wide else 1)]
        if operand.uniform != ZERO:
            found += [self._registers[operand.uniform]]
        return found

    def _placed(self, it: Instruction, rows: list[Lanes], lanes: Lanes, size: int, counter: dict[int, int]) -> Lanes:
        """Lanes whose address is known. Others are taken to lie side by side."""
        known = lanes.copy()
        for row in rows:
            known &= row
        if (lost := int((lanes & ~known).sum())) > 0:
            self.unplaced[it.address // LENGTH] += int(self._standing(lanes & ~known).sum())
            unit = SECTOR if counter is self.state.sectors else LINE
            _note(counter, it, -(-lost * size // unit))
        return known

    def _of_shared(self, it: Instruction) -> Action:
        """Bytes are kept as far as they are known. Matrices' rows are 16 bytes, one an address."""
        loads, matrices = it.opcode in ("LDS", "LDSM"), it.opcode in ("LDSM", "STSM")
        operand, data = (it.operands[1], it.operands[0]) if loads else it.operands[:2]
        size = 16 if matrices else _size(it)
        place, rows = _place(self.state, operand), self._address(operand)
        given = self._lane < 8 * _steps(it) if matrices else np.ones(self._threads, bool)
        words = max(1, size // 4) if not matrices else _steps(it)
        put = [self._row(data, step) for step in range(words)]
        bare = replace(it, guard=None)
        exact = None if matrices or it.has("S8", "S16") else MAKERS[it.opcode](_Unpriced(self), bare)  # type: ignore[arg-type]
        state, each = self.state, np.arange(min(4, size))

        def act(lanes: Lanes) -> None:
            known = self._placed(it, rows, lanes & given, size, state.wavefronts)
            at = np.where(known, place(), np.uint32(0)).astype(np.int64)
            known &= at + size <= len(self._shared)
            if known.any():
                _note(state.wavefronts, it, state.costs.wavefronts(at, known, size))
                if exact is not None:
                    exact(known)
            for step, row in enumerate(put):
                where = (at[:, None] + 4 * step + each) % len(self._shared)
                if loads:
                    valid = known & self._shared[where].all(axis=1) & (exact is not None)
                    np.copyto(row, valid, where=lanes)
                else:
                    self._shared[where[known]] = (row & (exact is not None))[known, None]

        return act

    def _of_thread(self, it: Instruction, exact: Action | None) -> Action:
        """LDL, STL: known words stay known."""
        loads = it.opcode == "LDL"
        operand, data = it.operands[1 if loads else 0], it.operands[0 if loads else 1]
        place, rows = _place(self.state, operand), self._address(operand)
        put = [self._row(data, step) for step in range(max(1, _size(it) // 4))]
        thread = np.arange(self._threads)
        if exact is None:
            raise NotImplementedError(f"{it.address:#x}: {it.text}")

        def act(lanes: Lanes) -> None:
            known = self._placed(it, rows, lanes, _size(it), self.state.wavefronts)
            if known.any():
                exact(known)
            at = np.where(known, place(), np.uint32(0)).astype(np.int64)
            for step, row in enumerate(put):
                if loads:
                    np.copyto(row, known & self._local[thread, at + 4 * step], where=lanes)
                else:
                    self._local[thread[known], at[known] + 4 * step] = row[known]

        return act

    def _of_memory(self, it: Instruction) -> Action:
        """Loads of masks are followed. Lanes outside of the tensors are those that a guard would have kept back."""
        copies, loads = it.opcode == "LDGSTS", it.opcode in ("LDG", "LD")
        operand = it.operands[1 if loads or copies else 0]
        size, state, memory = _size(it), self.state, self.state.memory
        place, rows = _global_place(state, operand), self._address(operand)
        if operand.uniform != ZERO:
            rows = [*rows, self._registers[operand.uniform + 1]]
        put = [self._row(it.operands[0], step) for step in range(max(1, size // 4))] if loads else []
        target = (_place(state, it.operands[0]), self._address(it.operands[0])) if copies else None
        condition = next((o for o in it.operands[1:] if o.kind == "predicate"), None)
        results = [next_register(it.operands[0], step) for step in range(len(put))]

        def act(lanes: Lanes) -> None:
            if target is not None:
                known = self._placed(it, target[1], lanes, size, state.wavefronts)
                _note(state.wavefronts, it, state.costs.wavefronts(target[0]().astype(np.int64), known, size))
                _note(state.lanes, it, int(lanes.sum()))
                if condition is not None:
                    row, sure = state.predicates[condition.index], self._row(condition)
                    lanes = lanes & ((~row if condition.negative else row) | ~sure)
            known = self._placed(it, rows, lanes, size, state.sectors)
            at = place()
            if copies:
                at = at & ~np.uint64(size - 1)  # below which LDGSTS may say how much is zeros
            known &= memory.holds(at, size)
            for row in put:
                np.copyto(row, False, where=lanes)
            if not known.any():
                return
            offsets = memory.places(at[known], size)
            _note(state.sectors, it, state.costs.sectors(at, known, size))
            memory.touch(offsets, write=not loads and not copies)
            if loads and size <= 4 and (sure := memory.is_known(offsets)).any():
                lane = np.flatnonzero(known)[sure]
                raw = memory.bytes[offsets[sure, None] + np.arange(size)].astype(np.uint32)
                value = (raw << np.arange(0, 8 * size, 8, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
                if results[0].index != ZERO:
                    state.registers[results[0].index][lane] = value
                put[0][lane] = True if it.guard is None else self._predicates[it.guard.index][lane]

        return act

    def _multiplied(self, it: Instruction) -> Action:
        """wgmma m64nNk16: its warpgroup reads B [16, N] from shared memory, and A [64, 16] unless it is in registers;
        taken without conflicts, once for its four warps."""
        columns = int(it.modifiers[0].split("x")[1])
        rows = [self._row(it.operands[0], step) for step in range(_steps(it))]
        size = 32 * columns + (0 if it.operands[1].kind == "register" else 32 * 64)

        def act(lanes: Lanes) -> None:
            warps = int(self._standing(lanes).sum())
            _note(self.state.wavefronts, it, warps * size // (4 * LINE))
            for row in rows:
                np.copyto(row, False, where=lanes)

        return act

    def _multiplied_in_tensor_memory(self, it: Instruction) -> Action:
        """tcgen05.mma of one thread for all: M and N stand in the instruction descriptor (PTX ISA, "Instruction
        descriptor": N / 8 from bit 17 on, M / 16 from bit 24 on)."""
        (register,) = (int(m.group(1)) for m in [re.search(r"idesc\[UR(\d+)\]", it.text)] if m)
        row, known = self.state.registers[UNIFORM + register], self._registers[UNIFORM + register]

        def act(lanes: Lanes) -> None:
            lane = int(lanes.argmax())
            if not known[lane]:
                raise NotImplementedError(f"{it.address:#x}: {it.text}: of what shape?")
            columns, height = (int(row[lane]) >> 17 & 63) * 8, (int(row[lane]) >> 24 & 31) * 16
            self._work[it.address // LENGTH] += columns * height / 128
            _note(self.state.wavefronts, it, 32 * (columns + height) // LINE)

        return act

    def _barrier_in_memory(self, it: Instruction) -> Action | None:
        """mbarrier: a wait is over when one comes to it; an arrival says how many bytes a bulk copy brings."""
        state = self.state
        if it.has("PHASECHK") and it.operands[0].kind == "predicate":
            index = it.operands[0].index

            def over(lanes: Lanes) -> None:
                np.copyto(state.predicates[index], True, where=lanes)
                np.copyto(self._predicates[index], True, where=lanes)

            return over
        if it.has("ARRIVE") and len(it.operands) > 2 and it.operands[2].kind == "register":
            row, known = state.registers[it.operands[2].index], self._registers[it.operands[2].index]

            def arrive(lanes: Lanes) -> None:
                if not (known | ~lanes).all():
                    raise NotImplementedError(f"{it.address:#x}: {it.text}: of how many bytes?")
                size = int(row[lanes].astype(np.int64).sum())
                _note(state.sectors, it, size // SECTOR)
                _note(state.wavefronts, it, size // LINE)

            return arrive
        return None


class _Unpriced:
    """The state of a block as an access sees it that has been counted already."""

    def __init__(self, block: Block) -> None:
        self._state = block.state
        self.wavefronts: dict[int, int] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._state, name)

"""Loops in which the compiler lets a copy overwrite a tile that a matrix product may still be reading.

Triton's pipeliner gives a tile in shared memory as many slots as its copies run ahead of its use, one more where a
product reads it while the loop goes on. Triton 3.6 forgets the one more where the same tile is read into registers too,
and where a product is split in two: the copy then goes into the slot of the wgmma that is still in flight. Which bits
come out depends on timing. Nothing in Triton reports it, so this reads the compiled kernel (TTGIR). It knows wgmma
(sm_90) alone: mma.sync returns when it is done, and what tcgen05's barriers (sm_100) order is not looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_RESULT = re.compile(r"\s*(%[\w#]+)(?::\d+)? = ")
_OPERAND = re.compile(r"%[\w]+(?:#\d+)?")
_VIEW = re.compile(r"ttg\.memdesc_(?:index|trans|subslice|reinterpret|reshape) (%\w+)")


@dataclass
class _Loop:
    """A loop's copies, products and waits in their order, and how many tiles were copied to a buffer before it."""

    indent: int
    ahead: dict[str, int]
    events: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)  # open ones inside of it, by their indentation


def races(ttgir: str) -> list[str]:
    """Buffers that a copy may overwrite under a product, with the line of their allocation; [] where there is none."""
    slots: dict[str, int] = {}
    buffer: dict[str, str] = {}  # of a view, or of what a wait hands on
    copied: dict[str, int] = {}
    open_loops: list[_Loop] = []
    found: list[str] = []
    for line in ttgir.splitlines():
        indent = len(line) - len(line.lstrip())
        if "scf.for" in line or "scf.while" in line:
            open_loops.append(_Loop(indent, dict(copied)))
            continue
        if open_loops and line.strip().startswith("}") and indent == open_loops[-1].indent:
            loop = open_loops.pop()
            found += _overwritten(loop, slots)
            continue
        branches = open_loops[-1].branches if open_loops else []
        if "scf.if" in line:
            branches.append(indent)
        elif branches and line.strip().startswith("}") and "else" not in line and indent == branches[-1]:
            branches.pop()
        match = _RESULT.match(line)
        name = match.group(1) if match else ""
        buffer.pop(name, None)  # a region may give a name again that another had
        if "ttg.local_alloc :" in line:
            shape = re.search(r"memdesc<([\dx]+)x[a-z]", line)
            assert shape, line
            sizes = shape.group(1).split("x")
            slots[name], buffer[name] = (int(sizes[0]) if len(sizes) > 2 else 1), name
        elif view := _VIEW.search(line):
            if view.group(1) in buffer:
                buffer[name] = buffer[view.group(1)]
        elif "ttg.async_copy_global_to_local" in line or "ttng.async_tma_copy_global_to_local" in line:
            if "tma" in line:
                into = buffer[_OPERAND.findall(line.split("] ")[1])[0]]  # behind descriptor and position
            else:
                into = buffer[_OPERAND.findall(line.split(" = ")[1])[1]]  # behind the pointers
            copied[into] = copied.get(into, 0) + 1
            for loop in open_loops[-1:]:
                loop.events.append(("copy", (into,), 0))
        elif "ttng.warp_group_dot_wait" in line:
            operands = _OPERAND.findall(line.split("ttng.warp_group_dot_wait")[1].split("{")[0])
            buffer |= {f"{name}#{i}": buffer[x] for i, x in enumerate(operands) if x in buffer}
            pending = re.search(r"pendings = (\d+)", line)
            assert pending, line
            for loop in open_loops[-1:]:
                if not loop.branches:  # a wait that not every iteration makes is none
                    loop.events.append(("wait", (), int(pending.group(1))))
        elif "ttng.warp_group_dot " in line:
            operands = _OPERAND.findall(line.split("ttng.warp_group_dot ")[1].split(" : ")[0])
            for loop in open_loops[-1:]:
                loop.events.append(("product", tuple(buffer[x] for x in operands if x in buffer), 0))
                if "isAsync" not in line:
                    loop.events.append(("wait", (), 0))
    return sorted(set(found))


def _overwritten(loop: _Loop, slots: dict[str, int]) -> list[str]:
    """Plays some iterations: tile i is read in iteration i, tile i + ahead is copied in it."""
    found = []
    in_flight: list[tuple[int, tuple[str, ...]]] = []  # oldest first
    for iteration in range(2 * max(slots.values(), default=1) + 2):
        for kind, buffers, pending in loop.events:
            if kind == "product":
                in_flight.append((iteration, buffers))
            elif kind == "wait":
                in_flight = in_flight[len(in_flight) - pending :] if pending < len(in_flight) else in_flight
            else:
                tile = iteration + loop.ahead.get(buffers[0], 0)
                for read, reads in in_flight:
                    if buffers[0] in reads and (tile - read) % slots[buffers[0]] == 0:
                        found.append(f"{buffers[0]} of {slots[buffers[0]]} slots")
    return found

"""The loops of a kernel's code: basic blocks, dominators, back edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.sass_model.disassembly import LENGTH, TRUE, Instruction

ROOT = -1  # stands before the kernel and the routines that it calls
ENDS = ("BRA", "EXIT", "RET", "BSYNC", "CALL")


@dataclass
class Loop:
    header: int  # place of its first instruction
    places: frozenset[int]  # of all its instructions
    parent: Loop | None = None
    children: list[Loop] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1


def _always(it: Instruction) -> bool:
    plain = it.guard is None or (it.guard.index == TRUE and not it.guard.negative)
    return plain and not any(operand.kind == "predicate" for operand in it.operands)


def _comes_back(code: Sequence[Instruction], place: int) -> bool:
    """Whether a CALL is one, and no jump: its return address is put in a register before."""
    back = (place + 1) * LENGTH
    return any(
        operand.kind == "number" and operand.value == back
        for it in code[max(0, place - 24) : place]
        if it.opcode in ("MOV", "IMAD")
        for operand in it.operands
    )


def _successors(code: Sequence[Instruction], place: int) -> list[int]:
    """What a call runs is no part of a loop around it."""
    it = code[place]
    jumps = it.opcode == "BRA" or (it.opcode == "CALL" and not _comes_back(code, place))
    leaves = (jumps or it.opcode in ("EXIT", "RET")) and _always(it) and not it.has("DIV")
    found = []
    if jumps and not it.has("DIV"):
        found.append(it.operands[-1].value // LENGTH)
    if not leaves:
        found.append(place + 1)
    return [target for target in found if target < len(code)]


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """All loops, outer ones before those inside them. Loops that share a header are one."""
    starts = {0}
    for place, it in enumerate(code):
        if it.opcode in ENDS:
            starts.update({place + 1, *_successors(code, place)})
        if it.opcode == "CALL":
            starts.add(it.operands[-1].value // LENGTH)
    blocks = sorted(start for start in starts if start < len(code))
    ends = dict(zip(blocks, [*blocks[1:], len(code)]))
    after = {block: _successors(code, ends[block] - 1) for block in blocks}
    called = [
        it.operands[-1].value // LENGTH
        for place, it in enumerate(code)
        if it.opcode == "CALL" and _comes_back(code, place)
    ]
    after[ROOT] = [0, *dict.fromkeys(called)]
    before: dict[int, list[int]] = {block: [] for block in after}
    for block, targets in after.items():
        for target in targets:
            before[target].append(block)
    order = _reverse_postorder(after)
    dominator = _dominators(order, before)

    def dominates(one: int, other: int) -> bool:
        while other not in (one, ROOT):
            other = dominator[other]
        return other == one

    bodies: dict[int, set[int]] = {}
    for block in order:
        for target in after[block]:
            if target in dominator and dominates(target, block):
                body, open_blocks = bodies.setdefault(target, {target}), [block]
                while open_blocks:
                    current = open_blocks.pop()
                    if current not in body:
                        body.add(current)
                        open_blocks += [one for one in before[current] if one in dominator]
    found = [
        Loop(header, frozenset(place for block in body for place in range(block, ends[block])))
        for header, body in bodies.items()
    ]
    found.sort(key=lambda loop: (-len(loop.places), loop.header))
    for index, loop in enumerate(found):
        around = [other for other in found[:index] if loop.header in other.places and loop.places <= other.places]
        if around:
            loop.parent = around[-1]
            around[-1].children.append(loop)
    return found


def _reverse_postorder(after: dict[int, list[int]]) -> list[int]:
    order: list[int] = []
    seen, stack = {ROOT}, [(ROOT, iter(after[ROOT]))]
    while stack:
        block, targets = stack[-1]
        for target in targets:
            if target not in seen:
                seen.add(target)
                stack.append((target, iter(after[target])))
                break
        else:
            order.append(block)
            stack.pop()
    return order[::-1]


def _dominators(order: list[int], before: dict[int, list[int]]) -> dict[int, int]:
    """Immediate dominators, by Cooper, Harvey and Kennedy's iteration."""
    number = {block: index for index, block in enumerate(order)}
    found = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            candidates = [one for one in before[block] if one in found]
            best = candidates[0]
            for other in candidates[1:]:
                while best != other:
                    if number[best] > number[other]:
                        best = found[best]
                    else:
                        other = found[other]
            if found.get(block) != best:
                found[block], changed = best, True
    return found


def innermost(code: Sequence[Instruction], found: Sequence[Loop]) -> list[Loop | None]:
    """The innermost loop around each instruction."""
    inside: list[Loop | None] = [None] * len(code)
    for loop in found:  # inner ones come last
        for place in loop.places:
            inside[place] = loop
    return inside

"""Launches of the pair path on one pair: its parameters, its tensors, and the block that runs it.

Parameters come from the emulation's build of the same headers (tests/ops/<op>/emulated.cpp), so that their layout is
the host's; this needs g++ and pybind11. The numbers are drawn, since a few branches look at them; what is counted
hardly depends on them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.emulation.host import build
from tests.emulation.host.run import server
from tools.sass_model.block import Block, Trace
from tools.sass_model.chips import Chip
from tools.sass_model.disassembly import kernel
from tools.sass_model.memory import Global, Lanes

# Where the parameters begin in constant bank 0, and where the grid's size is found there.
PARAMETERS = {"sm_80": 0x160, "sm_90": 0x210, "sm_100": 0x380, "sm_120": 0x380}
GRID = {"sm_80": 0xC, "sm_90": 0xC, "sm_100": 0x370, "sm_120": 0x370}
ALIGNMENT = (8, 4, 4)  # of the arguments, the streaming, the layout


@dataclass(frozen=True)
class Shape:
    """Sizes of a pair, and how many of its rows are valid: the first ones; all where None, and all tokens of ops that
    take no mask of them."""

    tokens: int
    patches: int
    channels: int
    valid_tokens: int | None = None
    valid_patches: int | None = None

    @property
    def rows(self) -> tuple[int, int]:
        """Valid tokens and patches."""
        return (
            self.tokens if self.valid_tokens is None else self.valid_tokens,
            self.patches if self.valid_patches is None else self.valid_patches,
        )


@dataclass(frozen=True)
class Launch:
    """How the host launches the kernel for a batch of such pairs, and what a block did with one of them."""

    op: str
    backward: bool
    shape: Shape
    strips: int
    chunk: int
    stages: int
    grid: int
    shared_bytes: int
    trace: Trace
    memory: Global


def bfloat16(numbers: Lanes) -> Lanes:
    """Rounded to nearest even, as 16-bit words."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def widened(words: Lanes) -> Lanes:
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def inputs(shape: Shape, text_mask: bool) -> dict[str, Lanes]:
    """V, T and masks of one pair; masked rows hold NaN."""
    draw = np.random.default_rng(0)
    tokens, patches = shape.rows
    found: dict[str, Lanes] = {}
    for name, rows, valid in (("image", shape.patches, patches), ("text", shape.tokens, tokens)):
        numbers = draw.standard_normal((1, rows, shape.channels))
        if valid < rows and (text_mask or name == "image"):
            numbers[:, valid:] = np.nan
            found[f"{name}_mask"] = np.arange(rows)[None] < valid
        found[f"{name}_embeds"] = bfloat16(numbers)
    return found


def floats(*shape: int) -> Lanes:
    return np.full(shape, np.nan, np.float32)


def halves(*shape: int) -> Lanes:
    return np.full(shape, 0x7FC0, np.uint16)


def fine_grained(shape: Shape, backward: bool, architecture: str, chip: Chip) -> dict[str, Lanes]:
    tensors = inputs(shape, text_mask=True)
    tensors["logit_scale"] = np.array([10.0], np.float32)
    if not backward:
        return {**tensors, "token_loss": floats(1, shape.tokens), "stats": floats(7, 1, shape.tokens)}
    forward = run("fine_grained", False, shape, architecture, chip)
    return {
        **tensors,
        "stats": forward.memory.tensor("stats").copy(),
        "grad_token_loss": np.random.default_rng(1).random((1, shape.tokens), np.float32),
        "grad_patches": halves(1, shape.patches, shape.channels),
        "grad_tokens": (gradient := halves(1, shape.tokens, shape.channels)),
        "saved_groups": gradient,
    }


def grouping(shape: Shape, backward: bool, architecture: str, chip: Chip) -> dict[str, Lanes]:
    tensors = inputs(shape, text_mask=False)
    if not backward:
        return {**tensors, "output": halves(1, shape.tokens, shape.channels), "stats": floats(3, 1, shape.tokens)}
    return {
        **tensors,
        "grad": bfloat16(np.random.default_rng(1).standard_normal((1, shape.tokens, shape.channels))),
        "grad_patches": halves(1, shape.patches, shape.channels),
        "grad_tokens": halves(1, shape.tokens, shape.channels),
    }


OPS: dict[str, tuple[str, Callable[[Shape, bool, str, Chip], dict[str, Lanes]]]] = {
    "fine_grained": ("20FineGrainedArguments", fine_grained),
    "grouping": ("17GroupingArguments", grouping),
}


@functools.lru_cache(maxsize=8)
def run(op: str, backward: bool, shape: Shape, architecture: str, chip: Chip) -> Launch:
    """The kernel of this op for one architecture on one pair, as planned for a chip and a batch."""
    if (reason := build.missing()) is not None:
        raise RuntimeError(reason)
    name, tensors_of = OPS[op]
    tensors = tensors_of(shape, backward, architecture, chip)
    saved = tensors.pop("saved_groups", None)
    memory = Global(tensors)
    addresses = memory.addresses()
    if saved is not None:  # C' waits in dT
        addresses["saved_groups"] = addresses["grad_tokens"]
    emulated = server(build.CHECKOUT / "tests" / "ops" / op / "emulated.cpp")
    planned: dict[str, Any] = emulated.call(
        "parameters",
        backward=backward,
        pairs=1,
        text_rows=shape.tokens,
        image_rows=shape.patches,
        channels=shape.channels,
        multiprocessors=chip.multiprocessors,
        shared_bytes=chip.shared_bytes,
        addresses=addresses,
    ).unwrap()
    found = kernel(architecture, "11pair_kernel", name, "8BFloat16", f"Li{planned['strips']}ELb{int(backward)}E")
    constants = bytearray(4096)
    struct.pack_into("<III", constants, GRID[architecture], 1, 1, 1)
    place = PARAMETERS[architecture]
    for part, step in zip(planned["parameters"], ALIGNMENT):
        place = (place + step - 1) // step * step
        constants[place : place + len(part)] = part
        place += len(part)
    trace = Block(found.code, memory, planned["shared_bytes"], bytes(constants) + found.constants).run()
    return Launch(
        op,
        backward,
        shape,
        planned["strips"],
        planned["chunk"],
        planned["stages"],
        min(chip.pairs, chip.multiprocessors),
        planned["shared_bytes"],
        trace,
        memory,
    )

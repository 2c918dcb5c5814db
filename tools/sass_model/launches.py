"""Launches of the kernels on one pair: their parameters, their tensors, and the block that runs it.

Parameters come from the emulation's build of the same headers (tests/ops/<op>/emulated.cpp), so that their layout is
the host's; this needs g++ and pybind11. The numbers are drawn, since a few branches look at them; what is counted
hardly depends on them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.emulation.host import build
from tests.emulation.host.run import server
from tools.sass_model.block import Block, Trace
from tools.sass_model.chips import Chip
from tools.sass_model.disassembly import BANK, kernel
from tools.sass_model.memory import Global, Lanes
from tools.sass_model.operands import LOCAL
from tools.sass_model.outline import Outline

# Where the parameters begin in constant bank 0, and where the grid's size is found there.
PARAMETERS = {"sm_80": 0x160, "sm_90": 0x210, "sm_100": 0x380, "sm_120": 0x380}
GRID = {"sm_80": 0xC, "sm_90": 0xC, "sm_100": 0x370, "sm_120": 0x370}
# Where the stack's end is found, which begins at its top.
STACK = {"sm_80": 0x28, "sm_90": 0x28, "sm_100": 0x37C, "sm_120": 0x37C}
# Of each path and products: words in its kernels' names, its name in the emulation, the alignment of its parameters.
# float16 is run in outline alone, with parameters of bfloat16, which have its size.
PATHS = {
    "pair": (("11pair_kernel", "8BFloat16"), "pair", (8, 4, 4)),
    "pair, float16": (("11pair_kernel", "7Float16"), "pair", (8, 4, 4)),
    "warpgroups": (("16warpgroup_kernel", "8BFloat16"), "warpgroups", (8, 4, 4)),
    "tiled, bf16": (("12tiled_kernel", "HalfProductsINS_8BFloat16"), "tiled", (8, 8, 8)),
    "tiled, tf32 x 3": (("12tiled_kernel", "12Tf32Products"), "tiled float32", (8, 8, 8)),
    "tiled, float32": (("12tiled_kernel", "15Float32Products"), "tiled float32", (8, 8, 8)),
}


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
    path: str  # of PATHS
    backward: bool
    shape: Shape
    chunk: int  # 0 on the tiled path
    stages: int
    blocks: int  # that the batch needs; a block that goes on to the next pair is as many as it has pairs
    at_once: int  # of them on the chip
    shared_bytes: int
    registers: int  # of a thread
    trace: Trace  # of one block
    memory: Global
    kernel: str

    def more(self, blocks: int) -> Launch:
        """The same for another part of the batch."""
        return replace(self, blocks=self.blocks + blocks)


def bfloat16(numbers: Lanes) -> Lanes:
    """Rounded to nearest even, as 16-bit words."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def widened(words: Lanes) -> Lanes:
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


class Elements:
    """How the numbers of the op's dtype are held."""

    def __init__(self, path: str) -> None:
        self.single = PATHS[path][1] == "tiled float32"

    def of(self, numbers: Lanes) -> Lanes:
        return numbers.astype(np.float32) if self.single else bfloat16(numbers)

    def unwritten(self, *shape: int) -> Lanes:
        return self.of(np.full(shape, np.nan))


def inputs(shape: Shape, text_mask: bool, elements: Elements) -> dict[str, Lanes]:
    """V, T and masks of one pair; masked rows hold NaN."""
    draw = np.random.default_rng(0)
    tokens, patches = shape.rows
    found: dict[str, Lanes] = {}
    for name, rows, valid in (("image", shape.patches, patches), ("text", shape.tokens, tokens)):
        numbers = draw.standard_normal((1, rows, shape.channels))
        if valid < rows and (text_mask or name == "image"):
            numbers[:, valid:] = np.nan
            found[f"{name}_mask"] = np.arange(rows)[None] < valid
        found[f"{name}_embeds"] = elements.of(numbers)
    return found


def floats(*shape: int) -> Lanes:
    return np.full(shape, np.nan, np.float32)


def fine_grained(shape: Shape, backward: bool, path: str, architecture: str, chip: Chip) -> dict[str, Lanes]:
    elements = Elements(path)
    tensors = inputs(shape, True, elements)
    tensors["logit_scale"] = np.array([10.0], np.float32)
    if not backward:
        return {**tensors, "token_loss": floats(1, shape.tokens), "stats": floats(7, 1, shape.tokens)}
    forward = run("fine_grained", False, shape, architecture, chip, path)
    return {
        **tensors,
        "stats": forward.memory.tensor("stats").copy(),
        "grad_token_loss": np.random.default_rng(1).random((1, shape.tokens), np.float32),
        "grad_patches": elements.unwritten(1, shape.patches, shape.channels),
        "grad_tokens": elements.unwritten(1, shape.tokens, shape.channels),
    }


def grouping(shape: Shape, backward: bool, path: str, architecture: str, chip: Chip) -> dict[str, Lanes]:
    elements = Elements(path)
    tensors = inputs(shape, False, elements)
    like_tokens = (1, shape.tokens, shape.channels)
    if not backward:
        return {**tensors, "output": elements.unwritten(*like_tokens), "stats": floats(3, 1, shape.tokens)}
    return {
        **tensors,
        "grad": elements.of(np.random.default_rng(1).standard_normal(like_tokens)),
        "grad_patches": elements.unwritten(1, shape.patches, shape.channels),
        "grad_tokens": elements.unwritten(*like_tokens),
    }


OPS: dict[str, tuple[str, Callable[[Shape, bool, str, str, Chip], dict[str, Lanes]]]] = {
    "fine_grained": ("20FineGrainedArguments", fine_grained),
    "grouping": ("17GroupingArguments", grouping),
}


@functools.lru_cache(maxsize=8)
def run(
    op: str, backward: bool, shape: Shape, architecture: str, chip: Chip, path: str = "pair", outlined: bool = False
) -> Launch:
    """The kernel of this op for one architecture on one pair, as planned for a chip and a batch; in outline where asked
    to, and where it has instructions that are not interpreted."""
    if (reason := build.missing()) is not None:
        raise RuntimeError(reason)
    arguments, tensors_of = OPS[op]
    words, asked, alignment = PATHS[path]
    tensors = tensors_of(shape, backward, path, architecture, chip)
    emulated = server(build.CHECKOUT / "tests" / "ops" / op / "emulated.cpp")

    def planned(addresses: dict[str, int]) -> dict[str, Any]:
        if "grad_tokens" in addresses:
            addresses["saved_groups"] = addresses["grad_tokens"]  # where C' waits
        found: dict[str, Any] = emulated.call(
            "parameters",
            path=asked,
            backward=backward,
            batch=chip.pairs,
            text_rows=shape.tokens,
            image_rows=shape.patches,
            channels=shape.channels,
            multiprocessors=chip.multiprocessors,
            shared_bytes=chip.shared_bytes,
            addresses=addresses,
        ).unwrap()
        return found

    if asked.startswith("tiled"):
        tensors["scratch"] = np.zeros(planned({})["scratch_bytes"], np.uint8)
    memory = Global(tensors)
    plan = planned(memory.addresses())
    tile = f"Li{plan['strips']}E" if "strips" in plan else ""
    if path.startswith("pair"):
        tile += f"Li{plan['chunk']}E"
    instance = f"{tile}Lb{int(backward)}E"
    if path == "warpgroups" and not plan.get("warpgroups"):
        raise ValueError(f"{op} has no products of warpgroups for this pass")
    found = kernel(architecture + ("a" if path == "warpgroups" else ""), *words, arguments, instance)
    constants = bytearray(BANK)
    struct.pack_into("<III", constants, GRID[architecture], 1, 1, 1)
    struct.pack_into("<I", constants, STACK[architecture], LOCAL)
    place = PARAMETERS[architecture]
    for part, step in zip(plan["parameters"], alignment):
        place = (place + step - 1) // step * step
        constants[place : place + len(part)] = part
        place += len(part)
    outlined = outlined or path == "pair, float16" or any(it.opcode == "HGMMA" for it in found.code)
    trace = (Outline if outlined else Block)(
        found.code, memory, plan["shared_bytes"], bytes(constants) + found.constants
    ).run()
    blocks = -(-plan["grid"] // chip.multiprocessors)  # of a multiprocessor, as the plan wants them
    if chip.blocks(found.registers, trace.threads, plan["shared_bytes"]) < blocks:
        raise ValueError(f"{blocks} blocks of {found.name} do not fit into a multiprocessor of {architecture}")
    return Launch(
        op=op,
        path=path,
        backward=backward,
        shape=shape,
        chunk=plan.get("chunk", 0),
        stages=plan.get("stages", 0),
        blocks=chip.pairs,
        at_once=plan["grid"],
        shared_bytes=plan["shared_bytes"],
        registers=found.registers,
        trace=trace,
        memory=memory,
        kernel=found.name,
    )

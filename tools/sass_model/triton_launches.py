"""What Triton compiles for a pass of an op, run in outline (``outline.py``): the launches of the library's own plans.

Compiled by the ptxas of the Triton wheel, for a batch of as many pairs as the CUDA kernels are looked at with, all rows
valid or the first ones. Not under Triton's interpreter, so not in the process of the tests.
"""

from __future__ import annotations

import functools
import importlib
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.sass_model import disassembly
from tools.sass_model.chips import Chip
from tools.sass_model.disassembly import BANK
from tools.sass_model.launches import GRID, PARAMETERS, STACK, Launch, Shape
from tools.sass_model.memory import Spans
from tools.sass_model.operands import LOCAL
from tools.sass_model.outline import Outline

# The plans of tests/ops/<op>/launches.py that are a forward and a backward pass.
PLANS = {
    "fine_grained": ("forward", "backward"),
    "grouping": ("embeddings_forward", "embeddings_backward"),
}
WIDTHS = {"i32": ("<i", 4), "i64": ("<q", 8), "fp32": ("<f", 4)}


def extent(tensor: Any) -> int:
    """Bytes from a tensor's first element to its last."""
    steps = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return int((steps + 1) * tensor.element_size())


def masks(arguments: dict[str, Any], shape: Shape) -> dict[str, np.ndarray[Any, Any]]:
    tokens, patches = shape.rows
    valid = {"p_token_mask": tokens, "p_patch_mask": patches}
    return {
        name: np.ascontiguousarray(np.broadcast_to(np.arange(mask.shape[1]) < valid[name], mask.shape))
        for name in valid
        if (mask := arguments.get(name)) is not None
    }


def parameters(signature: dict[str, str], arguments: dict[str, Any], addresses: dict[str, int], base: int) -> bytes:
    """Constant bank 0: what is no constexpr, in its order; then two addresses of scratch, one each for kernels and for
    profilers (``triton/backends/nvidia/driver.py``)."""
    bank = bytearray(BANK)
    place = base

    def put(form: str, size: int, value: float) -> None:
        nonlocal place
        place = -(-place // size) * size
        struct.pack_into(form, bank, place, value)
        place += size

    for name, kind in signature.items():
        if kind == "constexpr":
            continue
        if kind.startswith("*"):
            put("<Q", 8, addresses[name])
        else:
            put(*WIDTHS[kind], arguments[name])
    put("<Q", 8, addresses["scratch"])
    put("<Q", 8, addresses["scratch"])
    return bytes(bank)


@functools.cache
def run(op: str, backward: bool, shape: Shape, chip: Chip, dtype: str = "bfloat16") -> tuple[Launch, ...]:
    """The kernels of a pass in the order of its plan, without what a library computes."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from sparc_kernels.ops._triton.launch import interpreted

    if interpreted():
        raise RuntimeError("Triton's interpreter has taken the place of its compiler (TRITON_INTERPRET)")
    capability = int(chip.architecture.removeprefix("sm_"))
    plans = importlib.import_module(f"tests.ops.{op}.launches").plans(
        capability, getattr(torch, dtype), (shape.patches, shape.tokens, shape.channels), "highest"
    )
    from tests.compile_kernels import source

    found: dict[tuple[Any, ...], Launch] = {}
    for step in plans[PLANS[op][backward]]:
        described = source(step)
        options = {"num_warps": step.num_warps, "num_stages": step.num_stages, **step.options}
        key = (step.kernel.__name__, str(sorted((name, str(value)) for name, value in step.arguments.items())))
        if key in found:  # of another part of the batch
            found[key] = found[key].more(int(np.prod(step.grid)))
            continue
        compiled = triton.compile(described, target=GPUTarget("cuda", capability, 32), options=options)
        sizes = {n: extent(x) for n, x in step.arguments.items() if isinstance(x, torch.Tensor)}
        memory = Spans({**sizes, "scratch": 1 << 20}, masks(step.arguments, shape))
        constants = bytearray(
            parameters(described.signature, step.arguments, memory.addresses(), PARAMETERS[chip.library])
        )
        struct.pack_into("<III", constants, GRID[chip.library], *step.grid, *[1] * (3 - len(step.grid)))
        struct.pack_into("<I", constants, STACK[chip.library], LOCAL)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(compiled.asm["cubin"])
            kernel = disassembly.of_file(path, chip.architecture)
        shared = compiled.metadata.shared
        block = Outline(kernel.code, memory, shared, bytes(constants) + kernel.constants, 32 * step.num_warps)
        found[key] = Launch(
            op=op,
            path="triton",
            backward=backward,
            shape=shape,
            chunk=step.arguments.get("BLOCK_D") or 0,
            stages=step.num_stages,
            blocks=int(np.prod(step.grid)),
            at_once=chip.blocks(kernel.registers, 32 * step.num_warps, shared) * chip.multiprocessors,
            shared_bytes=shared,
            registers=kernel.registers,
            trace=block.run(),
            memory=memory,
            kernel=step.kernel.__name__,
        )
    return tuple(found.values())

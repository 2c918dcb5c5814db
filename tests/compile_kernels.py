"""Compiles the Triton kernels as their launchers would launch them, for GPUs that need not be there.

Run as a script in a process of its own, because under test Triton's interpreter has taken the place of its compiler:
``python -m tests.compile_kernels 90 bfloat16 paper`` prints one JSON object per kernel. The launches are those of the
launchers' plans, built on meta tensors; what the launcher passes (constexprs, warps, stages) is what is compiled.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.pipeline_races import races

# kB of shared memory that one block may take, by compute capability (CUDA C++ Programming Guide)
SHARED_MEMORY_KB = {80: 163, 90: 227, 100: 227, 120: 99}
MATRIX_INSTRUCTION = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


def rooms() -> dict[str, Any]:
    """``tests/ops/<room>/launches.py`` of every room with Triton kernels: SHAPES, MAY_SPILL and plans."""
    from sparc_kernels.ops._room import rooms

    return {
        room.name: importlib.import_module(f"tests.ops.{room.name}.launches")
        for room in rooms()
        if "triton" in room.dtypes
    }


def source(launch: Any) -> Any:
    """A launch as Triton's compiler takes it, specialised as its own launcher does.

    1 and None become constants; multiples of 16 are marked, and addresses are such (torch's allocator aligns to more).
    """
    import torch
    from triton.compiler import ASTSource

    names = {
        torch.float16: "*fp16",
        torch.bfloat16: "*bf16",
        torch.float32: "*fp32",
        torch.bool: "*u1",
        torch.uint8: "*u8",
        torch.int16: "*i16",
        torch.int32: "*i32",
        torch.int64: "*i64",
    }
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(index,)] = names[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if special and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    assert set(launch.arguments) == set(signature), launch.kernel
    return ASTSource(launch.kernel, signature, constants, attributes)


def specialization(launch: Any, capability: int) -> list[tuple[str, Any]] | None:
    """What Triton's launcher itself would specialise on, (type, key) per parameter; None in a release that hides it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    try:
        from triton.runtime.jit import create_function_from_signature
    except ImportError:
        return None
    backend = make_backend(GPUTarget("cuda", capability, 32))
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    return list(bind(**launch.arguments)[1])


def agrees(launch: Any, capability: int) -> bool:
    """Whether ``source`` specialises a launch exactly as Triton's launcher does."""
    theirs = specialization(launch, capability)
    if theirs is None:
        return True
    ours = source(launch)
    for index, (name, (kind, key)) in enumerate(zip(ours.signature, theirs, strict=True)):
        if ours.signature[name] != kind:
            return False
        if kind != "constexpr" and ((index,) in ours.attrs) != (key is not None and "D" in str(key)):
            return False
    return True


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread and bytes of stack (spills) of a kernel, read by the cuobjdump in Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "stack": found["STACK"] + found["LOCAL"]}


def compile_launch(launch: Any, capability: int) -> dict[str, Any]:
    """What the compiler made of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, **launch.options}
    kernel = triton.compile(source(launch), target=GPUTarget("cuda", capability, 32), options=options)
    blocks = {name: value for name, value in launch.arguments.items() if name.startswith("BLOCK_")}
    return {
        "kernel": launch.kernel.__name__,
        "warps": launch.num_warps,
        "blocks": "x".join(str(blocks[name]) for name in ("BLOCK_L", "BLOCK_P", "BLOCK_D") if name in blocks),
        "shared_kb": kernel.metadata.shared / 1024,
        "matrix": sorted(set(MATRIX_INSTRUCTION.findall(kernel.asm["ptx"]))),
        "agrees": agrees(launch, capability),
        "has_products": "tt.dot" in kernel.asm["ttir"],
        "races": races(kernel.asm["ttgir"]),
        **resources(kernel.asm["cubin"]),
    }


def compiled_in(launch: Any) -> list[tuple[str, str]]:
    """Arguments that a kernel is compiled for: those in capitals, of which some only have their width compiled in, and
    what is not there."""
    found = []
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        if value is None or (name.isupper() and not parameter.do_not_specialize):
            found.append((name, str(value)))
        elif name.isupper():
            found.append((name, "i32" if abs(value) < 2**31 else "i64"))
    return found


def main() -> None:
    """``python -m tests.compile_kernels <capability> <dtype> <shapes> [float32 precision]``"""
    os.environ.pop("TRITON_INTERPRET", None)
    import torch

    capability, dtype, shapes = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    precision = sys.argv[4] if len(sys.argv) > 4 else "highest"
    for room, of_room in rooms().items():
        for shape in of_room.SHAPES[shapes]:
            done = set()
            for op, launches in of_room.plans(capability, getattr(torch, dtype), shape, precision).items():
                for launch in launches:
                    key = (launch.kernel.__name__, str(sorted(compiled_in(launch))))
                    if key not in done:  # one group of a batch is compiled for all
                        done.add(key)
                        found = compile_launch(launch, capability)
                        spills = of_room.MAY_SPILL  # of a kernel, whatever for, or of one for an op
                        may_spill = spills.get((found["kernel"], op), spills.get(found["kernel"], 0))
                        print(
                            json.dumps({"room": room, "op": op, "shape": shape, **found, "may_spill": may_spill}),
                            flush=True,
                        )


if __name__ == "__main__":
    main()

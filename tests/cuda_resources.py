"""docs/cuda_resources.md: what the compiled CUDA kernels take, and what plan_launch chooses.

``python -m tests.cuda_resources --write`` writes it from the built library; a test compares.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path

import sparc_kernels
from sparc_kernels.ops._room import rooms
from tests.emulation.host.run import server

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "cuda_resources.md"
LIBRARY = Path(sparc_kernels.__file__).with_name("libsparc_cuda.so")
ROOMS = [room.name for room in rooms() if "cuda" in room.dtypes]
COMPILER = "13.0"  # registers are the compiler's choice: the table is that of this release
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
WARPGROUPS = ("sm_90a",)  # what the kernels of warpgroups are compiled for

# Bytes of shared memory that a block can have, and multiprocessors, of one device of each kind.
DEVICES = {
    "sm_80 (A100)": (163, 108),
    "sm_90 (H100)": (227, 132),
    "sm_100": (227, 148),
    "sm_86, sm_89, sm_120": (99, 170),
}
SHAPES = ((55, 49, 512), (55, 196, 512), (55, 256, 512), (64, 256, 768), (77, 196, 512), (55, 1024, 512))

HEAD = """# What the CUDA kernels take

Written by `python -m tests.cuda_resources --write` from the library that nvcc {compiler} built;
`tests/test_cuda_resources.py` compares it with the library that is there. Counts of the compiler, not timings.

## Registers and local memory

Registers of a thread (blocks of 256 threads; 65,536 registers a multiprocessor) on {architectures}. "Local" is
memory per thread beyond them, for spilled registers or what is passed by reference: no kernel has any. Those of
warpgroups, `late_interaction_maxima` and `contrastive_sweep` among them, are compiled for sm_90a alone.

| kernel | registers | local, bytes |
|---|---|---|
"""

PLANS = """
## Paths, and shared memory

What `plan_launch` (csrc/pairs/launch_plan.h, the one table of tile choices) takes for a call in half precision, by the
shared memory that a block can have. "64 x 3": chunks of 64 channels, three buffers. "2 blocks": so many share a
multiprocessor, each with that much, in a batch of 1024 pairs; else one does (of the tiled path two). float32 takes the
tiled path. With masks; where two paths stand, each pair takes the first one that holds its valid tokens and patches.

| op, pass | L | P | D | {devices} |
|---|---|---|---|{rules}
"""


def cuobjdump() -> str | None:
    """The CUDA toolkit's disassembler, or the one that lies in the Triton wheel."""
    bundled = Path(sysconfig.get_paths()["purelib"], "triton/backends/nvidia/bin/cuobjdump")
    return shutil.which("cuobjdump") or (str(bundled) if bundled.exists() else None)


def compiled_with() -> str | None:
    """The release of the nvcc that the library was built with."""
    match = re.search(rb"sparc_cuda_toolkit=(\d+);", LIBRARY.read_bytes())
    return f"{int(match.group(1)) // 1000}.{int(match.group(1)) % 1000 // 10}" if match else None


def short_name(mangled: str) -> str:
    """``fine_grained_pair_forward<bf16, 256 patches>`` for the mangled name of that kernel."""
    if alone := re.search(r"N5sparc\d+(\w+_(?:maxima|sweep))_kernelINS_\w*?(BFloat16|Float16)ELi(\d+)E", mangled):
        what = "patches" if alone.group(1).endswith("maxima") else "columns"
        return f"`{alone.group(1)}<{'bf16' if alone.group(2)[0] == 'B' else 'f16'}, {alone.group(3)} {what}>`"
    name = re.search(r"\d+(pair|tiled|warpgroup)_kernelINS_\d+(\w+?)ArgumentsE", mangled)
    assert name, mangled
    path, op = name.group(1), re.sub(r"(?<!^)(?=[A-Z])", "_", name.group(2)).lower()
    arguments = mangled[name.end() :]
    types = {"8BFloat16": "bf16", "7Float16": "f16", "12Tf32Products": "tf32 x 3", "15Float32Products": "float32"}
    dtype = next(short for long, short in types.items() if long in arguments)
    units = re.search(r"Li(\d+)E(?:Li(\d+)E)?", arguments)
    backward = re.search(r"Lb([01])E", arguments)
    direction = ("_backward" if backward.group(1) == "1" else "_forward") if backward else ""
    tile = f", {32 * int(units.group(1))} patches" if units else ""
    if units and units.group(2):
        tile += f", {units.group(2)} channels"
    return f"`{op}_{path}{direction}<{dtype}{tile}>`"


def of_warpgroups(kernel: str) -> bool:
    """Whether the kernel of that short name multiplies by warpgroups."""
    return any(word in kernel for word in ("_warpgroup_", "_maxima<", "_sweep<"))


def usage() -> dict[str, dict[str, tuple[int, int]]]:
    """Registers and local bytes by kernel and architecture."""
    tool = cuobjdump()
    assert tool is not None
    listed = subprocess.run([tool, "-res-usage", LIBRARY], check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    architecture = kernel = ""
    for line in listed.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match.group(1)
        elif match := re.search(r"Function (\w+):", line):
            kernel = match.group(1)
        elif (match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line)) and re.search(
            r"(pair|tiled|warpgroup|maxima|sweep)\w*_kernel", kernel
        ):
            registers, stack, local = map(int, match.groups())
            found[short_name(kernel)][architecture] = registers, stack + local
    return dict(sorted(found.items()))


def plans() -> list[str]:
    """Rows of the second table."""
    asked = [
        (op, backward, shape, device)
        for op in ROOMS
        for backward in (False, True)
        for shape in SHAPES
        for device in DEVICES
    ]
    cells: dict[str, list[str]] = defaultdict(list)
    for op, backward, shape, device in asked:
        tokens, patches, channels = shape
        kilobytes, multiprocessors = DEVICES[device]
        emulated = server(ROOT / "tests" / "ops" / op / "emulated.cpp")
        plan = emulated.call(
            "plan",
            half_precision=True,
            backward=backward,
            text_rows=tokens,
            image_rows=patches,
            channels=channels,
            pairs=1024,
            multiprocessors=multiprocessors,
            shared_bytes=kilobytes << 10,
            warpgroups=device.startswith("sm_90"),
        ).unwrap()
        head = f"| {op}, {'backward' if backward else 'forward'} | {' | '.join(map(str, shape))} |"
        served = []
        if plan["pair_path"]:
            kilobytes = plan["pair_bytes"] / 1024
            kind = "warpgroups" if plan["warpgroups"] else "pair"
            path = f"{kind} of {32 * plan['units']}, {plan['chunk']} x {plan['stages']}, {kilobytes:.1f} KB"
            blocks = -(-plan["pair_grid"] // multiprocessors)
            served.append(f"{path}, {blocks} blocks" if blocks > 1 else path)
        if plan["tiled_path"]:
            served.append(f"tiled, {plan['tiled_bytes'] / 1024:.1f} KB")
        cells[head].append(" and ".join(served))
    return [f"{head} {' | '.join(row)} |" for head, row in cells.items()]


def document() -> str:
    """The text of docs/cuda_resources.md for the library as it is built."""
    rows = []
    for kernel, by_architecture in usage().items():
        built_for = WARPGROUPS if of_warpgroups(kernel) else ARCHITECTURES
        registers, local = zip(*(by_architecture[name] for name in built_for))
        spilled = "0" if not any(local) else ", ".join(map(str, local))
        rows.append(f"| {kernel} | {', '.join(map(str, registers))} | {spilled} |")
    head = HEAD.format(compiler=COMPILER, architectures=", ".join(ARCHITECTURES))
    devices = " | ".join(f"{name}: {kilobytes} KB" for name, (kilobytes, _) in DEVICES.items())
    tables = PLANS.format(devices=devices, rules="---|" * len(DEVICES))
    return head + "\n".join(rows) + "\n" + tables + "\n".join(plans()) + "\n"


def committed() -> tuple[str, str]:
    """This part of the committed document, and the one of tools/sass_model behind it."""
    own, heading, predicted = DOCUMENT.read_text().partition("\n## What auto takes")
    return own, heading + predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the document instead of printing it")
    if parser.parse_args().write:
        DOCUMENT.write_text(document() + committed()[1])
    else:
        print(document(), end="")


if __name__ == "__main__":
    main()

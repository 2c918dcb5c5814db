"""The cost model of the compiled code: what it runs is right, what it counts is what the emulation counts, what it only
outlines counts as much."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from sparc_kernels import _native
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.grouping.reference import grouped_embeddings_reference
from tests.emulation.host import build
from tests.emulation.host.backend import Device
from tests.emulation.host.run import server
from tools.sass_model import disassembly, launches, model
from tools.sass_model.block import Block
from tools.sass_model.chips import CHIPS, chip_of
from tools.sass_model.launches import Launch, Shape
from tools.sass_model.memory import Costs, Global
from tools.sass_model.operands import State
from tools.sass_model.semantics import action

THREADS = 256


def missing() -> str | None:
    if not disassembly.LIBRARY.exists():
        return "the CUDA half is not built"
    if disassembly.tool() is None:
        return "needs cuobjdump"
    built = set(str(_native.build_info()["cuda_architectures"]).split(","))
    if not {chip.architecture for chip in CHIPS} <= built:
        return "the library was built for some of the architectures only (SPARC_CUDA_ARCHITECTURES)"
    return build.missing()


built = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SMALL = Shape(tokens=20, patches=70, channels=64)
TILED = [path for path in launches.PATHS if path.startswith("tiled")]
RAGGED = Shape(tokens=40, patches=90, channels=200, valid_tokens=18, valid_patches=67)  # the last chunk is not full
LITTLE = Shape(tokens=9, patches=30, channels=96)  # the instance for 64 patches


def run(op: str, backward: bool, shape: Shape, architecture: str, path: str = "pair") -> Launch:
    return launches.run(op, backward, shape, architecture, chip_of(architecture), path)


# What is run is right.


def tensors(launch: Launch) -> dict[str, torch.Tensor]:
    """All tensors of a launch, 16-bit ones widened."""
    found = {}
    for name in launch.memory.offsets.keys() - {"scratch"}:
        array = launch.memory.tensor(name)
        found[name] = torch.from_numpy(launches.widened(array) if array.dtype == np.uint16 else array.copy())
    return found


def reference(launch: Launch, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the launch should have written, in float32 of the same rounded inputs."""
    patches, tokens = given["image_embeds"].requires_grad_(), given["text_embeds"].requires_grad_()
    masks = given.get("text_mask"), given.get("image_mask")
    if launch.op == "fine_grained":
        result = fine_grained_reference(patches, tokens, *masks, given["logit_scale"][0])
        name, upstream = "token_loss", given.get("grad_token_loss")
    else:
        result = grouped_embeddings_reference(patches, tokens, masks[1])
        name, upstream = "output", given.get("grad")
    if not launch.backward:
        return {name: result.detach()}
    result.backward(upstream)
    assert patches.grad is not None
    assert tokens.grad is not None
    return {"grad_patches": patches.grad, "grad_tokens": tokens.grad}


ARCHITECTURES = ["sm_90", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_100", "sm_120"))]


@built
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("op", launches.OPS)
def test_results_are_those_of_the_reference(op: str, backward: bool, architecture: str) -> None:
    """Every instruction that was counted meant what the tool takes it for."""
    check_results(run(op, backward, RAGGED, architecture))


@built
@pytest.mark.slow
@pytest.mark.parametrize(
    "op, path, architecture",
    # docs/cuda_resources.md gives the tiled path on sm_90; of the two ops fine_grained has more to do
    [
        *((op, path, "sm_90") for op in launches.OPS for path in TILED),
        *zip(["fine_grained"] * 3, TILED, ("sm_80", "sm_100", "sm_120")),
    ],
)
def test_results_of_the_tiled_path(op: str, path: str, architecture: str) -> None:
    for backward in (False, True):
        check_results(run(op, backward, SMALL, architecture, path))


def check_results(launch: Launch) -> None:
    given = tensors(launch)
    for name, expected in reference(launch, given).items():
        error = (given[name] - expected).norm() / expected.norm()
        # bfloat16 rounds to 0.4 %, U and the results
        assert error < (1e-4 if "32" in launch.path else 0.02), f"{name}: {error}"


# What is counted is what the emulation counts.


def packed(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    strides = [stride // array.itemsize for stride in array.strides]
    return {"buffer": array.reshape(-1), "shape": list(array.shape), "strides": strides}


def emulated_counts(launch: Launch) -> dict[str, int]:
    """The same pair by the same kernel, compiled by g++ and run in the emulation."""
    arrays = {
        name: np.ascontiguousarray(launch.memory.tensor(name)) for name in launch.memory.offsets if name != "scratch"
    }
    names = {"patch_embeds": "image_embeds", "token_embeds": "text_embeds"}
    names |= {"patch_mask": "image_mask", "token_mask": "text_mask"}
    given: dict[str, Any] = {name: packed(arrays[of]) for name, of in names.items() if of in arrays}
    given |= {name: None for name in names if name not in given}
    given |= {"similarity_threshold": None, "pool_patches": False, "pool_tokens": False}
    given |= {"need_patches": True, "need_tokens": True, "grad_pooled_patches": None, "grad_pooled_tokens": None}
    for name, of in (("logit_scale", "logit_scale"), ("grad_token_loss",) * 2, ("stats",) * 2):
        if of in arrays:
            given[name] = packed(arrays[of])
    if "logit_scale" in given:
        given["logit_scale"] |= {"shape": [], "strides": []}
    if "grad" in arrays:
        given["grad_embeddings"] = packed(arrays["grad"])
    emulated = server(build.CHECKOUT / "tests" / "ops" / launch.op / "emulated.cpp")
    name = {"fine_grained": "fine_grained", "grouping": "grouped_embeddings"}[launch.op]
    emulated.call("take_counts").unwrap()
    products = {"pair": "bf16", "tiled, bf16": "bf16", "tiled, tf32 x 3": "tf32", "tiled, float32": "float32"}
    pair_path, shared_bytes = launch.path == "pair", chip_of("sm_90").shared_bytes
    device = Device(products[launch.path], pair_path=pair_path, shared_bytes=shared_bytes, grid=1)
    emulated.call(f"{name}_{'backward' if launch.backward else 'forward'}", given=given, device=asdict(device)).unwrap()
    counts: dict[str, int] = emulated.call("take_counts").unwrap()
    return counts


@built
@pytest.mark.parametrize("shape", [SMALL, RAGGED, LITTLE], ids=["small", "ragged", "little"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("op", launches.OPS)
def test_counts_are_those_of_the_emulation(op: str, backward: bool, shape: Shape) -> None:
    launch = run(op, backward, shape, "sm_90")
    check_counts(launch)
    model.check(launch)


@built
@pytest.mark.slow
@pytest.mark.parametrize("path", TILED)
@pytest.mark.parametrize("op", launches.OPS)
def test_counts_of_the_tiled_path(op: str, path: str) -> None:
    for backward in (False, True):
        check_counts(run(op, backward, RAGGED, "sm_90", path))


def check_counts(launch: Launch) -> None:
    trace, expected = launch.trace, emulated_counts(launch)
    found = {
        "multiply_adds": trace.count("HMMA"),
        "matrix_loads": trace.count("LDSM"),
        "copies": sum(trace.lanes.values()),
        "shuffles": trace.count("SHFL", but="IDX"),  # same_in_warp: the compiler asks once
        "block_barriers": trace.block_barriers,
    }
    assert found == {name: expected[name] for name in found}


# What has changed is noticed.


@built
def test_a_product_that_is_gone_is_noticed() -> None:
    launch = run("fine_grained", False, SMALL, "sm_90")
    trace = launch.trace
    idle = trace.idle.copy()
    place = next(p for p, it in enumerate(trace.instructions) if it.opcode == "HMMA" and trace.done[p])
    idle[place] = trace.issues[place]
    with pytest.raises(model.ModelError, match="matrix instructions were expected"):
        model.check(replace(launch, trace=replace(trace, idle=idle)))


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


# The table.


def tool_run(*arguments: str) -> str:
    """In a process of its own: under test Triton's interpreter has taken the place of its compiler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=build.CHECKOUT)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout

"""The cost model where it does not interpret: outlines count what the interpreter counts, Triton's kernels what their
tiles need; and the table of what ``auto`` takes is that of the code."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparc_kernels import _dispatch
from sparc_kernels.ops._alignment.choice import kind_of
from sparc_kernels.ops._triton.products import LibraryProduct
from tests import cuda_resources
from tests.tools.test_sass_instructions import ALL, listing
from tests.tools.test_sass_model import LITTLE, RAGGED, built, run, tool_run
from tools.sass_model import choices, disassembly, float32, launches, model
from tools.sass_model.chips import chip_of
from tools.sass_model.launches import Shape
from tools.sass_model.memory import Global
from tools.sass_model.outline import Outline


def outline(*texts: str, memory: Global | None = None) -> tuple[Outline, Any]:
    block = Outline(listing(*texts, "EXIT"), memory or Global({}), 4096, bytes(disassembly.BANK))
    return block, block.run()


def test_an_outline_counts_what_is_unknown_as_work() -> None:
    """A loop by indices runs as often as it does; what only data could skip counts; a way that calls does not."""
    _, trace = outline(
        "S2R R0, SR_TID.X",
        "SHF.R.U32.HI R0, RZ, 0x5, R0",
        "LDS R4, [R0]",  # of memory that nobody wrote: unknown
        "ISETP.NE.AND P1, PT, R4, RZ, PT",
        "IADD3 R1, R1, 0x1, RZ",
        "@P1 MOV R5, R4",
        "ISETP.LT.AND P0, PT, R1, R0, PT",
        "@P0 BRA 0x40",
        "@P1 BRA 0xa0",  # forward: what it skips is done
        "MOV R6, R5",
        "@P1 BRA 0x20",  # back: not
        "@!P1 BRA 0xe0",  # skips the slow way
        "MOV R7, 0xe0",
        "CALL.REL.NOINC 0xf0",
        "MOV R8, R7",
    )
    assert trace.issues[5].tolist() == [1, 1, 2, 3, 4, 5, 6, 7]
    assert not trace.idle[5].any()
    assert trace.issues[9:].tolist() == [[1] * 8] * 3 + [[0] * 8] * 2 + [[1] * 8] * 2
    assert sorted(trace.guessed) == [8, 10, 11]


def test_an_outline_follows_what_was_kept_and_masks() -> None:
    memory = Global({"mask": np.arange(256) < 70})
    at = memory.addresses()["mask"]
    block, trace = outline(
        "S2R R0, SR_TID.X",
        f"MOV R2, {at & ALL:#x}",
        f"MOV R3, {at >> 32:#x}",
        "IADD3 R2, P0, R0, R2, RZ",
        "IADD3.X R3, R3, RZ, RZ, P0, !PT",
        "LDG.E.U8 R4, [R2.64]",
        "REDUX.SUM.S32 UR5, R4",
        "IMAD.U32 R5, RZ, RZ, UR5",
        "IMAD.SHL.U32 R6, R0, 0x4, RZ",
        "STS [R6], R5",
        "LDS R7, [R6]",
        "ISETP.NE.AND P0, PT, R7, 0x6, PT",
        "@P0 EXIT",
        "MUFU.EX2 R7, R7",
        memory=memory,
    )
    assert block.state.registers[5, ::32].tolist() == [32, 32, 6, 0, 0, 0, 0, 0]
    assert trace.issues[13].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert not trace.guessed
    assert not trace.unplaced


def test_costs_of_wgmma() -> None:
    """By operands in shared memory, and with A in registers; a loop of them that data would end is an error."""
    texts = ["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24", "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24"]
    _, trace = outline(*texts)
    assert list(trace.wavefronts.values()) == [2 * (16 + 32), 2 * 16], "A of 2 KB, B of 32 bytes a column, two groups"
    assert model.matrix_columns(trace.instructions[0]) == 128
    _, trace = outline(*texts, "FSETP.GT.AND P0, PT, R24, RZ, PT", "@P0 BRA 0x0")
    with pytest.raises(model.ModelError, match="how often this loop of products runs"):
        model.check_outline(trace)


@built
@pytest.mark.parametrize("op, backward", [("fine_grained", False), ("grouping", True)])
def test_an_outline_counts_what_the_interpreter_counts(op: str, backward: bool) -> None:
    exact = run(op, backward, RAGGED, "sm_90")
    rough = launches.run(op, backward, RAGGED, "sm_90", chip_of("sm_90"), outlined=True)
    assert rough.trace.guessed, "nothing was left out"
    for opcode in ("HMMA", "LDSM", "LDGSTS", "SHFL"):
        assert rough.trace.count(opcode) == exact.trace.count(opcode)
    ours, theirs = (sum(launch.trace.wavefronts.values()) for launch in (rough, exact))
    assert ours == theirs
    assert rough.trace.issues.sum() == pytest.approx(exact.trace.issues.sum(), rel=0.015)
    floor = model.floor_bytes(op, backward, RAGGED, 2)
    assert floor == pytest.approx(sum(exact.memory.compulsory()), rel=0.03)


@built
def test_two_blocks_to_a_multiprocessor() -> None:
    """As the plan wants them, if they fit: twice the warps issue, and one block goes on while the other waits."""
    chip = chip_of("sm_90")
    launch = run("fine_grained", False, LITTLE, "sm_90", "warpgroups")
    two, one = (model.cost(replace(launch, at_once=132 * blocks), chip, 1.0) for blocks in (2, 1))
    assert launch.at_once == 132 * 2
    assert two.blocks == 2
    assert one.forecast * one.tail == pytest.approx(one.issue / 0.3 + one.awaited)
    assert one.expected(1.5) == pytest.approx(1.5 * one.forecast)
    assert one.expected(0.01) * one.tail == pytest.approx(max(one.resources.values()))
    assert two.forecast * two.tail == pytest.approx(two.issue / 0.6 + two.awaited / 2)
    with pytest.raises(ValueError, match="do not fit into a multiprocessor of sm_90"):
        launches.run("fine_grained", False, LITTLE, "sm_90", replace(chip, registers=chip.registers // 2), "warpgroups")


TRITON = """
import json
from tools.sass_model.chips import chip_of
from tools.sass_model.launches import Shape
from tools.sass_model.model import matrix_columns, predict_triton
(found,) = predict_triton("fine_grained", False, Shape(40, 40, 512, valid_tokens=9), chip_of("sm_90"))
trace = found.launch.trace
products = [(place, it) for place, it in enumerate(trace.instructions) if it.opcode == "HGMMA"]
print(json.dumps({
    "products": sum(int(trace.done[place]) * 16 * 16 * matrix_columns(it) for place, it in products),
    "l2": found.l2_bytes, "guessed": len(trace.guessed), "blocks": found.blocks, "share": found.share,
}))
"""


@pytest.mark.skipif(disassembly.tool() is None, reason="needs cuobjdump")
def test_what_triton_compiles() -> None:
    """Multiply-adds are those of the padded tiles [64, 64] that the plan takes, bytes those of two passes over what is
    valid."""
    pytest.importorskip("triton")
    found = json.loads(tool_run("-c", TRITON))
    assert found["products"] == 64 * 64 * (512 + 512 + 2 * 64), "S, C', and Z with H in two halves"
    assert found["l2"] == pytest.approx(2 * (9 + 40) * 512 * 2, rel=0.1)
    assert found["guessed"] == 0
    assert found["blocks"] >= 1
    assert 0 < found["share"] <= 1


def documented() -> list[dict[str, str]]:
    """Rows of the table of what auto takes, by column."""
    text = cuda_resources.committed()[1]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]
    start = rows.index(list(choices.COLUMNS)) + 2
    return [dict(zip(choices.COLUMNS, row, strict=True)) for row in rows[start : start + len(choices.asked())]]


def test_the_table_of_auto_is_that_of_the_code() -> None:
    for row, expected in zip(documented(), choices.asked(), strict=True):
        own = {name: row[name] for name in choices.COLUMNS if name not in choices.FORECASTS}
        assert own == choices.cells(*expected), (
            "docs/cuda_resources.md is out of date: python -m tools.sass_model --write"
        )


def test_auto_follows_the_ranking() -> None:
    """Each row by the rule that stands above the table."""
    for row in documented():
        assert row["auto takes"] == choices.ruled(row), (
            f"measured or forecast says {choices.ruled(row)} of {row}: sparc_kernels/ops/_alignment/choice.py"
        )


@pytest.mark.parametrize(
    "measured, calibrated, ragged, taken",
    [
        ("0.99", "1.20 to 1.40", "", "triton"),
        ("1.01", "0.20 to 0.40", "0.20 to 0.40", "cuda"),
        ("", "0.80 to 1.00", "", "triton"),
        ("", "0.81 to 1.01", "", "cuda"),
        ("", "0.50 to 0.70", "0.90 to 1.10", "triton"),
        ("", "0.50 to 0.70", "0.91 to 1.11", "cuda"),
    ],
)
def test_the_rule_of_the_ranking(measured: str, calibrated: str, ragged: str, taken: str) -> None:
    assert choices.ruled({"measured": measured, "calibrated": calibrated, "ragged": ragged}) == taken


def test_auto_takes_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rooms ask the one table."""
    monkeypatch.setattr(_dispatch, "_REASONS", {name: lambda *_: None for name in _dispatch.BACKENDS})
    monkeypatch.setattr(_dispatch, "_c_compiles", lambda: True)
    for chip, op, dtype, shape in choices.asked():
        capability = divmod(int(chip.architecture.removeprefix("sm_")), 10)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        kind = kind_of(getattr(torch, dtype), shape.tokens, shape.patches)
        chosen = _dispatch.resolve(op, "auto", torch.device("cuda"), getattr(torch, dtype), kind)
        assert chosen == choices.taken(chip.architecture, op, dtype, shape)


@pytest.mark.parametrize("op", launches.OPS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_products_in_float32_are_those_of_the_plan(op: str, backward: bool) -> None:
    shape = Shape(5, 7, 16)
    planned = importlib.import_module(f"sparc_kernels.ops.{op}.triton")
    b, (l, p, d) = 3, (shape.tokens, shape.patches, shape.channels)
    patches, tokens, scale = (torch.empty(size, device="meta") for size in ((b, p, d), (b, l, d), ()))
    if op == "grouping":
        pairs: tuple[Any, ...] = (patches, tokens, None, None)
        (_, stats), steps = planned.forward_plan(*pairs, "highest", weights=False)
        if backward:
            _, steps = planned.backward_plan(tokens, *pairs, stats, True, True, "highest", weights=False)
    else:
        pairs = (patches, tokens, None, None, scale, None)
        (_, stats, *_), steps = planned.forward_plan(*pairs, False, False, "highest")
        if backward:
            loss = torch.empty((b, l), device="meta")
            _, steps = planned.backward_plan(loss, None, None, *pairs, stats, True, True, "highest")
    found = [(*step.result.shape[1:], step.left.shape[2]) for step in steps if isinstance(step, LibraryProduct)]
    assert found == float32.products(op, backward, shape)


@pytest.mark.parametrize(
    "registers, threads, shared, blocks",
    [
        (198, 256, 167712, 1),
        (128, 256, 113 << 10, 2),
        (128, 256, (113 << 10) + 16, 1),
        (65, 128, 1 << 10, 7),
        (32, 1024, 0, 2),
        (255, 256, 0, 1),
    ],
)
def test_blocks_of_a_multiprocessor(registers: int, threads: int, shared: int, blocks: int) -> None:
    """The first as Nsight Compute says (benchmarks/results/nvidia-h200/counters.csv); 65 registers are 72."""
    assert chip_of("sm_90").blocks(registers, threads, shared) == blocks

"""What only the emulated kernels of the fine-grained loss can be asked: edges of their tiles, schedules, streaming.

The cases of every backend run on them in ``test_fine_grained.py``. What this shows: indices, bounds, barriers,
asynchronous copies, fragment layouts and the algebra. What it cannot show: the rounding of the real matrix units'
partial sums, and any speed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import EMULATED, EMULATED_WARPGROUPS, dtypes_of, emulated
from tests.emulation.host.backend import DEVICES, H100_BLOCK, RTX_BLOCK, Emulated, played
from tests.emulation.host.run import server
from tests.ops.alignment import cases
from tests.ops.fine_grained.test_fine_grained import apply, check, run, token_loss_of

EDGES = (
    cases.Case("two-chunks", D=80, P=20, L=18, lengths=(18, 17)),  # more than one chunk of channels, two row warps
    cases.Case("four-chunks", D=200, P=33, L=5),  # every stage of the stream is used again
    cases.Case("full-tile", B=1, P=64, L=64, D=32),
    cases.Case("odd-channels", D=33, P=9, L=5),  # rows that cannot be copied 16 bytes at a time
    cases.Case("pairs-beyond-the-grid", B=5, lengths=(5, 0, 2, 3, 1)),
)


def planned(case: cases.Case, **device: Any) -> dict[str, Any]:
    """What ``plan_launch`` takes for a case in half precision, with masks."""
    sizes = {"text_rows": case.L, "image_rows": case.P, "channels": case.D, "pairs": case.B, "half_precision": True}
    emulated_op = server(Path(__file__).with_name("emulated.cpp"))
    found: dict[str, Any] = emulated_op.call("plan", **sizes, **device).unwrap()
    return found


@pytest.mark.parametrize("backend", [emulated(replace(device, seed=seed)) for seed, device in enumerate(DEVICES)])
@pytest.mark.parametrize("case", EDGES, ids=str)
def test_edges(case: cases.Case, backend: Emulated) -> None:
    check(case, backend.device.dtype, backend)


@pytest.mark.parametrize("backend", EMULATED[:1])
@pytest.mark.parametrize("case", EDGES, ids=str)
def test_edges_in_little_shared_memory(case: cases.Case, backend: Emulated) -> None:
    small = Emulated(replace(backend.device, shared_bytes=RTX_BLOCK // 4 if case.P < 30 else RTX_BLOCK))
    with played(small):
        check(case, small.device.dtype, small)


@pytest.mark.parametrize("backend", EMULATED[:1])
def test_no_other_kernel_takes_over(backend: Emulated) -> None:
    """What the emulator refuses reaches no kernel of the CPU, forward or backward."""
    nothing = Emulated(replace(backend.device, products="none"))
    leaves = cases.draw(cases.CASES[0], torch.bfloat16).to(torch.bfloat16).require_grad()
    loss = token_loss_of(leaves, backend)
    with played(nothing):
        for call in (lambda: token_loss_of(leaves, nothing), loss.sum().backward):
            with pytest.raises(AssertionError, match="products: none"):
                call()


@pytest.mark.parametrize("backend", [backend for backend in EMULATED if backend.values[0].device.products == "f16"])
def test_float16_keeps_large_numbers_in_range(backend: Emulated) -> None:
    """Similarities, sums over patches and gradients leave the range of float16 here; results do not."""
    check(cases.Case("huge", D=64, P=40, L=6, lengths=(6, 4), magnitude=400.0), torch.float16, backend)


@pytest.mark.parametrize("backend", EMULATED)
def test_results_do_not_depend_on_the_schedule(backend: Emulated) -> None:
    """No atomics, no sum whose order is left to the threads: the same bits in any order of threads and blocks."""
    case = cases.Case("ragged", B=3, P=40, L=20, D=40, lengths=(20, 3, 17))
    (dtype,) = dtypes_of(backend)
    inputs = cases.draw(case, dtype).to(dtype)
    results = []
    for seed, grid in ((1, 1), (7, 3)):
        device = Emulated(replace(backend.device, seed=seed, grid=grid))
        with played(device):
            results.append({"stats": apply(inputs, device)[1], **dict(run(inputs, device).named())})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize("backend", EMULATED[:1])
def test_every_way_to_stream(backend: Emulated) -> None:
    """Each row of the table of streamings, forward and backward, with chunks that use every buffer again."""
    case = cases.Case("four-chunks", D=200, P=33, L=20, lengths=(20, 11))
    first: dict[tuple[int, int], int] = {}
    for kilobytes in range(8, 228):
        plan = planned(case, backward=True, multiprocessors=2, shared_bytes=kilobytes << 10)
        if plan["pair_path"]:
            first.setdefault((plan["chunk"], plan["stages"]), kilobytes)
    assert set(first) == {(32, 1), (32, 2), (64, 2), (64, 3)}
    for kilobytes in first.values():
        device = Emulated(replace(backend.device, shared_bytes=kilobytes << 10))
        with played(device):
            check(case, torch.bfloat16, device)


@pytest.mark.parametrize("backend", EMULATED_WARPGROUPS[:1])
def test_every_number_of_stages(backend: Emulated) -> None:
    """Passes that turn round in fewer stages than there are chunks, and in more; two pairs of other lengths, the second
    of which begins where the first one's way back has ended."""
    case = cases.Case("six-chunks", B=3, D=328, P=13, L=20, lengths=(20, 0, 7), patches=(13, 13, 5))
    first: dict[int, int] = {}
    for kilobytes in range(60, 228, 4):
        plan = planned(case, backward=True, multiprocessors=1, warpgroups=True, shared_bytes=kilobytes << 10)
        if plan["warpgroups"]:
            first.setdefault(plan["stages"], kilobytes)
    assert set(first) == {3, 4, 5, 7}  # the forward pass, which needs less for each, takes 8 for 7
    for kilobytes in first.values():
        device = Emulated(replace(backend.device, shared_bytes=kilobytes << 10, grid=1))
        with played(device):
            check(case, torch.bfloat16, device)


@pytest.mark.parametrize("backend", EMULATED_WARPGROUPS[:1])
def test_blocks_that_share_a_multiprocessor(backend: Emulated) -> None:
    """On an H100. Two of up to 64 patches; one where lists of valid tokens leave no room for three stages twice, where
    each pair of the batch has a multiprocessor, and of more patches. How many changes no bit of a result."""
    h100 = {"multiprocessors": 132, "shared_bytes": H100_BLOCK, "warpgroups": True}
    paper = cases.Case("b-32", B=1024, P=49, L=55, D=512)
    for case, backward, blocks, stages in (
        (paper, False, 2, 5),
        (paper, True, 2, 3),
        (replace(paper, B=133, P=64, L=64), True, 2, 3),
        (replace(paper, B=132), False, 1, 8),
        (replace(paper, B=132), True, 1, 7),
        (replace(paper, L=900), True, 1, 7),
        (replace(paper, P=65), False, 1, 5),
    ):
        plan = planned(case, backward=backward, **h100)
        found = (plan["warpgroups"], -(-plan["pair_grid"] // 132), plan["stages"])
        assert found == (True, blocks, stages), (case, backward)
        assert blocks * (plan["pair_bytes"] + 1024) <= 233_472

    case = cases.Case("three-chunks", B=3, D=136, lengths=(5, 0, 3))
    results = []
    for grid, stages in ((3, 5), (1, 3)):
        assert planned(case, backward=True, **{**h100, "multiprocessors": grid})["stages"] == stages
        device = Emulated(replace(backend.device, grid=grid))
        with played(device):
            results.append(dict(run(cases.draw(case, torch.bfloat16).to(torch.bfloat16), device).named()))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name

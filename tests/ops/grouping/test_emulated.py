"""What only the emulated kernels of grouping can be asked: how they stream, and which path a gradient takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import EMULATED_WARPGROUPS
from tests.emulation.host.backend import Emulated, played
from tests.emulation.host.run import server
from tests.ops.alignment import cases
from tests.ops.grouping.test_grouping import OPS, check, results


@pytest.mark.parametrize("backend", EMULATED_WARPGROUPS[:1])
@pytest.mark.parametrize("op", OPS)
def test_every_number_of_stages(op: str, backend: Emulated) -> None:
    """A stream that turns round in fewer stages than there are chunks, and in more, and goes on with pairs of other
    lengths: the same bits, in any order of threads."""
    case = cases.Case("six-chunks", B=3, D=328, P=13, L=20, patches=(13, 5, 9))
    sizes = {"text_rows": case.L, "image_rows": case.P, "channels": case.D, "pairs": case.B}
    rest = {"half_precision": True, "backward": True, "warpgroups": True}
    first: dict[int, tuple[int, int]] = {}
    # one multiprocessor for all pairs, which two blocks share where they can; then one for each, with all of its memory
    for grid in (1, case.B):
        for kilobytes in range(60, 228, 4):
            device = {"multiprocessors": grid, "shared_bytes": kilobytes << 10}
            plan = server(Path(__file__).with_name("emulated.cpp")).call("plan", **sizes, **rest, **device).unwrap()
            if plan["warpgroups"]:
                first.setdefault(plan["stages"], (grid, kilobytes))
    assert set(first) == {3, 4, 5, 7, 8}
    check(op, case, torch.bfloat16, backend)
    inputs = cases.draw(case, torch.bfloat16).to(torch.bfloat16)
    expected = results(OPS[op][0], inputs, backend=backend)
    for seed, (grid, kilobytes) in enumerate(first.values(), 1):
        small = Emulated(replace(backend.device, shared_bytes=kilobytes << 10, grid=grid, seed=seed))
        with played(small):
            found = results(OPS[op][0], inputs, backend=small)
        assert all(map(torch.equal, found, expected)), f"{kilobytes} KB"


@pytest.mark.parametrize("backend", EMULATED_WARPGROUPS)
@pytest.mark.parametrize("op", OPS)
def test_gradient_that_does_not_lie_in_whole_rows(op: str, backend: Emulated) -> None:
    """That of a sum has one number for all: the path by warpgroups, which copies rows of it, leaves the pass alone."""
    inputs = cases.draw(cases.Case("two-chunks", D=80, P=20, L=18), backend.device.dtype).to(backend.device.dtype)
    found = []
    for whole in (False, True):
        leaves = inputs.require_grad()
        output = OPS[op][0](leaves.patch_embeds, leaves.token_embeds, backend=backend)
        ones = output.new_ones(()).expand_as(output)
        upstream = ones.contiguous() if whole else ones
        found.append(torch.autograd.grad(output, (leaves.patch_embeds, leaves.token_embeds), upstream))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=2e-2 * float(other.abs().max()), rtol=0)

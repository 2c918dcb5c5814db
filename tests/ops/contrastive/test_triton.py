"""What the Triton kernels do between tiles: runs of rows and columns, chunks, pairs at borders, float16's range."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparc_kernels.ops._triton import replay
from sparc_kernels.ops.contrastive import triton, triton_plans
from sparc_kernels.ops.contrastive.config import Blocks, TileConfig
from tests.conftest import device_of
from tests.ops.contrastive.cases import Case, Inputs, make
from tests.ops.contrastive.test_similarity import OPS, check, logsumexp

# A program has two by two tiles; the same with a library's products, 32 rows at a time.
SMALL = TileConfig(32, 32, 16, parts=2, most_tiles=2, most_programs=0)
LIBRARY = replace(SMALL, library=True, library_bytes=32 * 4 * 80, most_tiles=1)
# Of 70 by 80 both cut rows and columns; the first keep the sums of all rows meanwhile, the second those of all columns.
BLOCKS = {SMALL: Blocks(64, 64, (2, 2)), LIBRARY: Blocks(32, 64, (1, 1))}
CASES = (
    Case("ids", M=70, N=80, D=24),
    Case("sharp", M=40, N=80, D=24, scale=100.0, cosine=0.9, ids=0),  # running maxima
    Case("sharp-columns", M=40, N=80, D=24, scale=5.0, col_scale=90.0),
    Case("per-item", M=70, N=80, D=24, per_item=True, padded=40),
    Case("labels", M=40, N=80, D=24, ids=20, ids_exclude=False, padded=1),
    Case("per-item-labels", M=40, N=80, D=24, per_item=True, ids=20, ids_exclude=False),
    Case("dense-pairs", M=37, N=80, D=8, pairs=60, ids=0),
    Case("teacher", M=37, N=75, D=20, guide=40, soft=True, threshold=0.2, pairs=9),
    Case("cols-only", M=40, N=40, D=24, direction=(False, True)),
    # tiles without a missing row, where a column is missing or all ids are one
    Case("ragged-columns", M=64, N=70, D=8, ids=0),
    Case("ragged-rows", M=70, N=64, D=8, ids=0),
    Case("one-id-to-a-tile", M=64, N=64, D=8, ids=32),
    Case("clamped-norms", M=12, N=12, magnitude=1e-14),
    Case("far-below", M=20, N=70, D=24, bias=-25.0),  # log1p of tiny arguments
)
OF_SOFTPLUS = ("ids", "labels", "dense-pairs", "far-below")

# Supertiles in which every pair takes part, beside others; with a reference that is not 0; and one that is too high.
WHOLE = (
    Case("whole", M=130, N=128, D=24, one_scale=True),
    Case("whole-sharp", M=64, N=64, D=8, one_scale=True, ids=0, scale=90.0),
    Case("whole-opposite", M=64, N=64, D=8, one_scale=True, ids=0, scale=100.0, opposite=True),
)


@contextlib.contextmanager
def tiles(config: TileConfig, blocks: Blocks | None = None) -> Iterator[None]:
    """Plans in these tiles and blocks, none of them kept from or for other tests."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(replay, "_tapes", {}))
        stack.enter_context(mock.patch.object(triton_plans, "choose", return_value=config))
        if blocks is not None:
            stack.enter_context(mock.patch.object(TileConfig, "blocks", return_value=blocks))
        yield


@pytest.fixture(params=[SMALL, LIBRARY], ids=["fused", "library"])
def small_tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    with tiles(request.param, BLOCKS[request.param]):
        yield


def test_small_tiles_are_small() -> None:
    """Several tiles to a program, several programs, several blocks: else the tests below test less than they say."""
    assert SMALL.supertile(70, 80, 2) == (2, 2)
    assert SMALL.cut(70, 80, 24) == SMALL
    assert LIBRARY.library_chunk(70, 4 * 80, 32) == 32


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "case, op, keep",
    [
        *(pytest.param(case, "logsumexp", False, id=f"{case}-logsumexp") for case in CASES),
        *(
            pytest.param(case, op, False, id=f"{case}-{op}")
            for op in ("softplus", "softplus_total")
            for case in CASES
            if case.name in OF_SOFTPLUS
        ),
        *(pytest.param(CASES[0], op, True, id=f"kept-{op}") for op in ("logsumexp", "softplus")),
    ],
)
def test_between_tiles(case: Case, op: str, keep: bool) -> None:
    check(case, "triton", torch.float32, keep, op)


@pytest.mark.parametrize(
    "case, op, dtype",
    [
        *(pytest.param(case, "logsumexp", torch.float32, id=str(case)) for case in WHOLE),
        pytest.param(WHOLE[0], "softplus", torch.float32, id="softplus"),
        pytest.param(WHOLE[0], "softplus_total", torch.bfloat16, id="softplus_total"),
        pytest.param(WHOLE[1], "logsumexp", torch.float16, id="float16"),
    ],
)
def test_whole_supertiles(case: Case, op: str, dtype: torch.dtype) -> None:
    g_bytes = dtype.itemsize * 64 * case.N  # of a supertile's rows, which come at a time
    config = replace(SMALL, described=True, workspace_bytes=g_bytes)
    with tiles(config):
        check(case, "triton", dtype, False, op)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_between_tiles(dtype: torch.dtype) -> None:
    check(CASES[1], "triton", dtype, False, "logsumexp")
    check(CASES[0], "triton", dtype, False, "softplus_total")


def backward_arguments(x: Inputs, stats: Tensor, upstream: list[Tensor]) -> tuple[Any, ...]:
    leaves = [leaf.detach() for leaf in x.logsumexp_leaves().values()]
    return (*upstream, *(None,) * 4, *leaves, *x.scope.values(), stats, True, False, True, True, True, True, "highest")


def test_float16_takes_gradients_of_any_size() -> None:
    """The power of two in front of G follows them; without it, G would be 0 or infinite here."""
    x = make(Case("range", M=9, N=12, D=16)).to(torch.float16, device_of("triton"))
    forward = [leaf.detach() for leaf in x.logsumexp_leaves().values()]
    results = triton.logsumexp_forward(*forward, *x.scope.values(), True, True, True, False, "highest")
    upstream = [x.upstream[0][:9].contiguous(), x.upstream[1][:12].contiguous()]
    whole = triton.logsumexp_backward(*backward_arguments(x, results[1], upstream))
    assert whole[0].abs().max() > 0.1
    for factor in (2.0**-9, 2.0**9):
        scaled = triton.logsumexp_backward(*backward_arguments(x, results[1], [factor * g for g in upstream]))
        for one, other in zip(scaled, whole):
            torch.testing.assert_close(one.double() / factor, other.double(), rtol=1e-3, atol=1e-4)


def test_zero_vectors_do_not_spoil_float16() -> None:
    """A gradient beyond float16 is clamped, and leaves those of the other items alone."""
    x = make(Case("zeros", M=9, N=12, D=16, zeros=True)).to(torch.float16, device_of("triton"))
    whole = x.gradients(logsumexp(x, "triton"), x.logsumexp_leaves())
    truth = x.to(torch.float64, device_of("triton"))
    expected = truth.gradients(truth.logsumexp_reference(), truth.logsumexp_leaves())
    for name, zero in (("rows", 1), ("cols", 2)):
        others = torch.arange(len(whole[name])) != zero
        torch.testing.assert_close(whole[name][others].double(), expected[name][others], rtol=0.02, atol=0.02)


def test_a_broken_pattern_touches_nothing() -> None:
    """Excluded columns that are not there exclude nothing; ends beyond the list are cut off."""
    x = make(Case("pairs", M=4, N=20, ids=0, pairs=2)).to(torch.float32, device_of("triton"))
    indices = torch.tensor([-3, 2, 5, 25, 2**32 + 17, 7, 19], device=x.rows.device)
    broken = torch.tensor([0, 3, 5, 7, 2**50], device=x.rows.device)
    sound = (torch.tensor([0, 2, 2, 4, 4]), torch.tensor([2, 5, 7, 19]))
    found = []
    for indptr, of in ((broken, indices), sound):
        x.scope["excluded_indptr"], x.scope["excluded_indices"] = indptr.to(x.rows.device), of.to(x.rows.device)
        found.append(logsumexp(x, "triton"))
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_capture_in_a_graph(op: str) -> None:
    """Nothing is read back from the device, so both passes can be captured, and replayed on other numbers."""
    x = make(Case("graph", M=300, N=400, D=64)).to(torch.bfloat16, "cuda")
    other = make(Case("other-graph", M=300, N=400, D=64)).to(torch.bfloat16, "cuda")

    def leaves(of: Inputs) -> dict[str, Tensor]:
        return of.logsumexp_leaves() if op == "logsumexp" else of.softplus_leaves()

    def run(of: Inputs) -> list[Tensor]:
        found = OPS[op](of, "triton")
        return [*found.values(), *of.gradients(found, leaves(of)).values()]

    expected = run(other)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x)
    with torch.no_grad():
        for leaf, source in zip(leaves(x).values(), leaves(other).values()):
            leaf.copy_(source)
        for upstream, source in zip(x.upstream, other.upstream):
            upstream.copy_(source)
    graph.replay()
    assert all(torch.equal(one, two) for one, two in zip(captured, expected, strict=True))

"""The C++ ops: every instruction set, any number of threads, sizes around the tiles, and their own checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparc_kernels import _native
from sparc_kernels.functional.similarity import similarity_logsumexp, similarity_softplus
from tests.conftest import DTYPES
from tests.ops.contrastive.cases import CASES, LARGE, Case, make
from tests.ops.contrastive.test_similarity import OPS, check, logsumexp, softplus, softplus_total

needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))

BY_NAME = {case.name: case for case in (*CASES, *LARGE)}
FOR_EVERY_SET = (
    "tall", "labels-padded", "pairs-and-ids", "above-per-row", "teacher-and-above", "scales", "scale-per-item",
    "matched-sharp", "zero-vectors", "strided", "uneven", "uneven-labels", "no-rows", "no-cols", "wide",
)  # fmt: skip
# One item more than a tile of rows, several tiles of columns; more rows than the forward pass has parts.
TILES = (
    Case("tiles", M=49, N=1025, D=65, ids=2, pairs=3, padded=1),
    Case("no-rows-of-labels", M=0, N=4, ids=2, ids_exclude=False),
    Case("no-cols-of-labels", M=4, N=0, ids=2, ids_exclude=False),
    Case("tiles-sharp", M=97, N=513, D=20, cosine=0.9, scale=100.0),
    Case("tiles-per-item", M=400, N=20, D=9, per_item=True),
    Case("parts", M=64 * 48 + 60, N=30, D=8, cosine=0.5),
    Case("parts-sharp", M=64 * 48 + 60, N=30, D=8, cosine=0.9, scale=100.0),
)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", FOR_EVERY_SET)
def test_every_instruction_set(name: str, op: str, capability: str) -> None:
    case = BY_NAME[name]
    if op != "logsumexp" and case.soft:
        pytest.skip("of the other op")
    for dtype in DTYPES["cpu"]:
        check(case, "cpu", dtype, False, op)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", TILES, ids=str)
def test_sizes_around_the_tiles(case: Case, op: str, keep: bool, capability: str) -> None:
    for dtype in (torch.float32, torch.bfloat16) if case.M < 1000 else (torch.float64,):
        check(case, "cpu", dtype, keep, op)


@needs_cpu_half
@pytest.mark.parametrize("dtype", DTYPES["cpu"])
@pytest.mark.parametrize("op", OPS)
def test_bits_do_not_depend_on_threads_or_chunks(op: str, dtype: torch.dtype) -> None:
    """Many threads make larger chunks of G: 400 rows of 20,000 columns are one chunk or two."""
    x = make(Case("chunks", M=400, N=20_000, D=8, cosine=0.5, per_item=True)).to(dtype)
    upstream = [up.to(x.scale.dtype) for up in x.upstream]

    def run() -> list[Tensor]:
        if op == "logsumexp":
            leaves = x.logsumexp_leaves()
            statistics = similarity_logsumexp(x.rows, x.cols, row_scale=x.row_scale, col_scale=x.col_scale)
            found = [y for y in statistics[:2] if y is not None]
        else:
            leaves = x.softplus_leaves()
            row_sum = similarity_softplus(x.rows, x.cols, scale=x.scale, bias=x.bias)
            found = [row_sum] if op == "softplus" else [softplus_total(x, "cpu")["total"]]
        total = sum(
            (y * (up[: y.shape[0]] if y.dim() else up[0])).sum() for y, up in zip(found, upstream, strict=False)
        )
        assert isinstance(total, Tensor)
        return [*found, *torch.autograd.grad(total, list(leaves.values()))]

    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            seen.append(run())
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@needs_cpu_half
def test_nan_reaches_the_results() -> None:
    """Of its row and of every column, but not of other rows."""
    for scale in (14.0, 100.0):
        x = make(BY_NAME["square"]).to(torch.float32)
        with torch.no_grad():
            x.rows[2, 3] = torch.nan
            x.row_scale.fill_(scale)
            x.col_scale.fill_(scale)
        found = logsumexp(x, "cpu")
        rows = torch.arange(7) == 2
        assert torch.equal(found["row_lse"].isnan(), rows)
        assert torch.equal(found["col_lse"].isnan(), ~rows)  # the pair (2, 2) takes no part
        assert torch.equal(softplus(x, "cpu")["row_sum"].isnan(), rows)


@needs_cpu_half
def test_ids_are_compared_as_a_whole() -> None:
    """Ids that agree in their low words are different ids; -1 is padding, 2**32 - 1 is not."""
    x = make(BY_NAME["square"]).to(torch.float32)
    x.scope["row_ids"] = torch.arange(7) + torch.tensor([0, 0, 0, 2**32, 2**32, 2**40, 2**32])
    x.scope["col_ids"] = torch.tensor([0, 1, 2, 3, 4, 5, 2**32 - 1])
    found, truth = logsumexp(x, "cpu"), x.logsumexp_reference()
    for name in ("row_lse", "col_lse"):
        torch.testing.assert_close(found[name], truth[name], rtol=1e-5, atol=1e-5)


@needs_cpu_half
def test_softplus_of_logits_far_below_zero(capability: str) -> None:
    """Relative to the sum, which is e^-25 here: log(1 + e^z) in float32 would be 0."""
    x = make(Case("far", scale=2.0, bias=-25.0)).to(torch.float32)
    truth = x.to(torch.float64).softplus_reference()["row_sum"]
    torch.testing.assert_close(softplus(x, "cpu")["row_sum"].double(), truth, rtol=1e-5, atol=0.0)


def forward_arguments(op: str) -> dict[str, Any]:
    numbers = ("row_scale", "col_scale") if op == "logsumexp" else ("scale", "bias")
    return {
        "rows": torch.randn(4, 8),
        "cols": torch.randn(3, 8),
        **{name: torch.tensor(2.0) for name in numbers},
        **dict.fromkeys(("row_ids", "col_ids", "excluded_indptr", "excluded_indices", "guide_rows", "guide_cols")),
        **({"guide_scale": None} if op == "logsumexp" else {}),
        "guide_threshold": None,
        **({"by_rows": True, "by_cols": True} if op == "logsumexp" else {}),
        "ids_exclude": True,
        "keep_similarities": False,
        "float32_precision": "highest",
    }


def forward(op: str, **change: Any) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = getattr(torch.ops.sparc_kernels, f"similarity_{op}_forward")(
        **{**forward_arguments(op), **change}
    )
    return found


IDS = {"row_ids": torch.arange(4), "col_ids": torch.arange(3)}
PAIRS = {"excluded_indptr": torch.tensor([0, 1, 1, 1, 1]), "excluded_indices": torch.tensor([1])}
GUIDE = {"guide_rows": torch.randn(4, 5), "guide_cols": torch.randn(3, 5)}


@needs_cpu_half
@pytest.mark.parametrize("op", ["logsumexp", "softplus"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(4)}, r"rows: expected 2 dimensions \[M, D\], got 1"),
        ({"cols": torch.zeros(3, 7)}, r"cols: expected shape \[3, 8\], got \[3, 7\]"),
        ({"cols": torch.zeros(3, 8).double()}, "cols: expected dtype Float, got Double"),
        ({"rows": torch.zeros(4, 8).half()}, "rows: the CPU kernels take Float, Double and BFloat16, got Half"),
        ({"row_ids": torch.arange(4)}, "col_ids: expected a tensor, as row_ids is one, got None"),
        ({**IDS, "row_ids": torch.arange(5)}, r"row_ids: expected shape \[4\], got \[5\]"),
        ({**IDS, "col_ids": torch.arange(3).int()}, "col_ids: expected dtype Long, got Int"),
        ({"excluded_indices": torch.tensor([1])}, "excluded_indptr: expected a tensor, as excluded_indices is one"),
        ({**PAIRS, "excluded_indptr": torch.zeros(4).long()}, r"excluded_indptr: expected shape \[5\], got \[4\]"),
        ({**PAIRS, "excluded_indices": torch.zeros(1)}, "excluded_indices: expected dtype Long, got Float"),
        ({**PAIRS, "excluded_indices": torch.zeros(1, 1).long()}, "excluded_indices: expected 1 dimension, got 2"),
        ({"guide_cols": torch.zeros(3, 5)}, "guide_rows: expected a tensor, as guide_cols is one, got None"),
        ({**GUIDE, "guide_cols": torch.zeros(3, 4)}, r"guide_cols: expected shape \[3, 5\], got \[3, 4\]"),
        ({**GUIDE, "guide_rows": torch.zeros(4, 5).double()}, "guide_rows: expected dtype Float, got Double"),
        ({"guide_threshold": torch.tensor(0.5)}, "guide_threshold: expected guide_rows with it, got None"),
        ({**GUIDE, "guide_threshold": torch.zeros(3)}, r"guide_threshold: expected shape \[4\], got \[3\]"),
    ],
)
def test_op_checks(op: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        forward(op, **change)


@needs_cpu_half
@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("logsumexp", {"row_scale": torch.ones(3)}, r"row_scale: expected shape \[4\], got \[3\]"),
        ("logsumexp", {"col_scale": torch.ones(()).double()}, "col_scale: expected dtype Float, got Double"),
        ("logsumexp", {"guide_scale": torch.ones(())}, "guide_scale: expected guide_rows with it, got None"),
        ("logsumexp", {**GUIDE, "guide_scale": torch.ones(2)}, r"guide_scale: expected shape \[\], got \[2\]"),
        ("softplus", {"scale": torch.ones(4)}, r"scale: expected shape \[\], got \[4\]"),
        ("softplus", {"bias": torch.ones(1)}, r"bias: expected shape \[\], got \[1\]"),
    ],
)
def test_op_checks_of_numbers(op: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        forward(op, **change)


@needs_cpu_half
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad_row_sum": torch.ones(3)}, r"grad_row_sum: expected shape \[4\], got \[3\]"),
        ({"stats": torch.ones(28).double()}, "stats: expected dtype Float, got Double"),
        ({"keep_similarities": True}, r"stats: expected shape \[40\], got \[28\]"),
        ({"stats": torch.ones(56)[::2]}, "stats: expected a contiguous tensor"),
    ],
)
def test_backward_checks(change: dict[str, Any], message: str) -> None:
    inputs = forward_arguments("softplus")
    given = {
        "grad_row_sum": torch.ones(4), **inputs, "stats": forward("softplus")[1],
        **dict.fromkeys(("need_rows", "need_cols", "need_scale", "need_bias"), True),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparc_kernels.similarity_softplus_backward(**{**given, **change})


@needs_cpu_half
@pytest.mark.parametrize("op", ["logsumexp", "softplus"])
def test_pairs_out_of_range_touch_nothing(op: str) -> None:
    """Neither columns that do not exist nor an indptr beyond the indices; what is in range holds."""
    x = {"rows": torch.randn(4, 8), "cols": torch.randn(3, 8)}
    wanted = forward(op, **x, excluded_indptr=torch.tensor([0, 0, 1, 1, 1]), excluded_indices=torch.tensor([2]))
    least, most = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    wild = {
        "excluded_indptr": torch.tensor([least, 2, 4, 4, most]),
        "excluded_indices": torch.tensor([least, -1, 2, 3, 4, 512, most]),
    }
    for found, expected in zip(forward(op, **x, **wild), wanted, strict=True):
        assert torch.equal(found, expected)

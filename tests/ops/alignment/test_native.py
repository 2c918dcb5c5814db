"""The native ops: every instruction set on every case, any number of threads, and their own checks."""

from __future__ import annotations

import pytest
import torch

from sparc_kernels import _native
from tests.conftest import DTYPES
from tests.ops.alignment import cases
from tests.ops.fine_grained import test_fine_grained
from tests.ops.grouping import test_grouping

needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))


@pytest.mark.parametrize("case", (*cases.CASES, cases.LARGE[0]), ids=str)
def test_fine_grained_on_every_instruction_set(case: cases.Case, capability: str) -> None:
    for dtype in DTYPES["cpu"]:
        test_fine_grained.check(case, dtype, "cpu")


@pytest.mark.parametrize("op", test_grouping.OPS)
@pytest.mark.parametrize("case", (*cases.CASES, cases.LARGE[0]), ids=str)
def test_grouping_on_every_instruction_set(op: str, case: cases.Case, capability: str) -> None:
    for dtype in DTYPES["cpu"]:
        test_grouping.check(op, case, dtype, "cpu")


# Few tokens of few channels: buffers so short that a step beyond the end of one reaches what another one still needs.
SHORT = (cases.Case("two tokens", B=2, P=6, L=2, D=8), cases.Case("one token", B=2, P=6, L=1, D=8))


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_few_tokens_of_few_channels(case: cases.Case, capability: str) -> None:
    test_fine_grained.check(case, torch.bfloat16, "cpu")
    for op in test_grouping.OPS:
        test_grouping.check(op, case, torch.bfloat16, "cpu")


def test_bits_do_not_depend_on_the_threads(capability: str) -> None:
    case = cases.Case("ragged", B=7, P=49, L=12, D=40, lengths=(12, 3, 0, 7, 1, 12, 5))
    before = torch.get_num_threads()
    try:
        for dtype in DTYPES["cpu"]:
            inputs = cases.draw(case, dtype).to(dtype)
            results = []
            for threads in (1, 2, 2, 3):
                torch.set_num_threads(threads)
                results.append(test_fine_grained.run(inputs, "cpu"))
            for other in results[1:]:
                for (name, first), (_, second) in zip(results[0].named(), other.named()):
                    assert torch.equal(first, second), name
    finally:
        torch.set_num_threads(before)


# What reaches memory is checked where it is touched.


@needs_cpu_half
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_embeds": torch.zeros(2, 6)}, r"patch_embeds: expected 3 dimensions \[B, P, D\], got 2"),
        ({"token_embeds": torch.zeros(2, 5, 4)}, r"token_embeds: expected shape \[2, 5, 8\], got \[2, 5, 4\]"),
        ({"token_embeds": torch.zeros(2, 5, 8).double()}, "token_embeds: expected dtype Float, got Double"),
        ({"token_mask": torch.ones(2, 5)}, "token_mask: expected dtype Bool, got Float"),
        ({"token_mask": torch.ones(2, 6).bool()}, r"token_mask: expected shape \[2, 5\], got \[2, 6\]"),
        ({"patch_mask": torch.ones(1, 6).bool()}, r"patch_mask: expected shape \[2, 6\], got \[1, 6\]"),
        ({"logit_scale": torch.ones(2)}, r"logit_scale: expected shape \[\], got \[2\]"),
        ({"logit_scale": torch.ones(()).double()}, "logit_scale: expected dtype Float, got Double"),
        ({"similarity_threshold": torch.ones(1)}, r"similarity_threshold: expected shape \[\], got \[1\]"),
        ({"similarity_threshold": torch.ones(()).half()}, "similarity_threshold: expected dtype Float, got Half"),
    ],
)
def test_op_checks(change: dict[str, torch.Tensor], message: str) -> None:
    arguments: dict[str, object] = {
        "patch_embeds": torch.zeros(2, 6, 8),
        "token_embeds": torch.zeros(2, 5, 8),
        "token_mask": None,
        "patch_mask": None,
        "logit_scale": torch.ones(()),
        "similarity_threshold": None,
        "pool_patches": True,
        "pool_tokens": True,
        "float32_precision": "highest",
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparc_kernels.fine_grained_forward(**{**arguments, **change})


@needs_cpu_half
def test_op_refuses_half_precision() -> None:
    with pytest.raises(RuntimeError, match="the CPU kernels take Float, Double and BFloat16, got Half"):
        torch.ops.sparc_kernels.grouped_embeddings_forward(
            torch.zeros(2, 6, 8).half(), torch.zeros(2, 5, 8).half(), None, None, "highest"
        )

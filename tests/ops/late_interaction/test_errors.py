"""Every misuse gets an error that names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sparc_kernels as sk
from tests.ops.captions.misuse import META, OFFSETS, PACKED, SHARED, T, V

OF_BOTH: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("too many patches", ValueError, r"image_tokens must have at most 32767 tokens per item, got 32768", {"image_tokens": torch.zeros(1, 32768, 8)}),
    ("no kernel", NotImplementedError, r"late_interaction has no CUDA kernel", {"backend": "cuda"}),
]  # fmt: skip
OF_SCORES: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("pooling", ValueError, r"pooling must be 'mean' or 'sum', got 'max'", {"pooling": "max"}),
    ("direction", ValueError, r"direction must be one of 'both', .* got 'rows'", {"direction": "rows"}),
    ("normalize", TypeError, r"normalize must be True or False, got 1", {"normalize": 1}),
]  # fmt: skip
OF_LOSS: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("rectangular", ValueError, r"text_tokens must hold as many captions as there are images, got 2 captions and 3 images", {"text_tokens": T[:2]}),
    ("scale", ValueError, r"logit_scale must be positive, got 0", {"logit_scale": 0}),
    ("gradients", ValueError, r"gradients must be 'mean' or 'sum', got 'max'", {"gradients": "max"}),
    ("scale, a parameter", ValueError, r"logit_scale must be positive and finite, got -1", {"logit_scale": torch.nn.Parameter(torch.tensor(-1.0))}),
]  # fmt: skip


@pytest.mark.parametrize(
    "function, case",
    [
        pytest.param(function, case, id=f"{function.__name__}-{case[0]}")
        for function, cases in (
            (sk.late_interaction_scores, SHARED + OF_BOTH + OF_SCORES),
            (sk.filip_loss, SHARED + OF_BOTH + OF_LOSS),
        )
        for case in cases
    ],
)
def test_misuse(function: Any, case: tuple[str, type[Exception], str, dict[str, Any]]) -> None:
    _, kind, message, arguments = case
    with pytest.raises(kind, match=message):
        function(**{"image_tokens": V, "text_tokens": T} | arguments)


def test_traced_without_the_longest() -> None:
    compiled = torch.compile(sk.late_interaction_scores, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="max_seqlen must be given with cu_seqlens where the call is traced"):
        compiled(V, PACKED, cu_seqlens=OFFSETS)


def test_the_longest_of_offsets_that_cannot_be_read() -> None:
    def call(*tensors: torch.Tensor) -> torch.Tensor:
        with pytest.raises(ValueError, match="max_seqlen must be given with cu_seqlens where the call is traced"):
            sk.filip_loss(*tensors[:2], cu_seqlens=tensors[2])
        return tensors[0].sum()

    batch = (V, PACKED, OFFSETS)
    torch.func.grad(call)(*batch)
    call(*(x.to(META) for x in batch))
    with FakeTensorMode() as mode:
        call(*map(mode.from_tensor, batch))


def test_module_refuses() -> None:
    with pytest.raises(ValueError, match="logit_scale must be positive, got -1"):
        sk.FilipLoss(logit_scale=-1)
    with pytest.raises(ValueError, match="backend must be one of"):
        sk.FilipLoss(backend="gpu")
    with pytest.raises(ValueError, match="group must be 'world', a ProcessGroup or None, got 'all'"):
        sk.FilipLoss(group="all")
    with pytest.raises(ValueError, match="gradients must be 'mean' or 'sum', got 'max'"):
        sk.FilipLoss(gradients="max")

"""Every misuse gets an error that names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparc_kernels as sk
from tests.ops.captions.misuse import OFFSETS, PACKED, SHARED, T, V

# One embedding per caption is a layout of its own here.
OTHERWISE = ("texts of rank 2",)
CASES: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    *(case for case in SHARED if case[0] not in OTHERWISE),
    ("texts of rank 1", ValueError, r"text_tokens must have shape \[B, L, D\], got 1 dimensions", {"text_tokens": PACKED[0]}),
    ("mask of single embeddings", ValueError, r"text_mask must be None where text_tokens has shape \[J, D\]", {"text_tokens": PACKED, "text_mask": torch.ones(9, 1, dtype=torch.bool)}),
    ("weights", ValueError, r"weights must be one of 'softmax', .* got 'max'", {"weights": "max"}),
    ("pooling", ValueError, r"pooling must be one of 'mean', 'logsumexp', got 'sum'", {"pooling": "sum"}),
    ("attention scale 0", ValueError, r"attention_scale must be positive, got 0", {"attention_scale": 0}),
    ("attention scale infinite", ValueError, r"attention_scale must be finite, got inf", {"attention_scale": float("inf")}),
    ("attention scale a tensor", TypeError, r"attention_scale must be a number, got Tensor", {"attention_scale": torch.tensor(1.0)}),
    ("pooling scale", ValueError, r"pooling_scale must be positive, got -1", {"pooling_scale": -1.0}),
    ("pooling scale NaN", ValueError, r"pooling_scale must be finite, got nan", {"pooling_scale": float("nan")}),
    ("normalize", TypeError, r"normalize must be True or False, got 1", {"normalize": 1}),
    ("no kernel", NotImplementedError, r"attention_pooling has no CUDA kernel", {"backend": "cuda"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_misuse(case: tuple[str, type[Exception], str, dict[str, Any]]) -> None:
    _, kind, message, arguments = case
    with pytest.raises(kind, match=message):
        sk.attention_pooled_scores(**{"image_tokens": V, "text_tokens": T} | arguments)


def test_traced_without_the_longest() -> None:
    compiled = torch.compile(sk.attention_pooled_scores, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="max_seqlen must be given with cu_seqlens where the call is traced"):
        compiled(V, PACKED, cu_seqlens=OFFSETS)

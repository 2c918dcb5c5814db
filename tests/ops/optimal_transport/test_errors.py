"""Every misuse gets an error that names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparc_kernels as sk

V, T = torch.randn(3, 4, 8), torch.randn(3, 5, 8)

SHARED: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("a list", TypeError, r"image_tokens must be a torch.Tensor of shape \[B, P, D\], got list", {"image_tokens": [1.0]}),
    ("rank 2", ValueError, r"text_tokens must have shape \[B, L, D\], got 2 dimensions: \[5, 8\]", {"text_tokens": T[0]}),
    ("integers", TypeError, r"image_tokens must be a floating tensor", {"image_tokens": V.long()}),
    ("no patch", ValueError, r"image_tokens of shape \[B, P, D\] may be empty in B only, got \[3, 0, 8\]", {"image_tokens": V[:, :0]}),
    ("other batch", ValueError, r"text_tokens and image_tokens must have the same B, got B=2", {"text_tokens": T[:2]}),
    ("other width", ValueError, r"text_tokens and image_tokens must have the same D, got D=7", {"text_tokens": T[..., :7]}),
    ("other dtype", TypeError, r"text_tokens and image_tokens must have the same dtype", {"text_tokens": T.double()}),
    ("elsewhere", ValueError, r"text_tokens must be on the device of image_tokens, got meta and cpu", {"text_tokens": T.to("meta")}),
    ("float mask", TypeError, r"image_mask must have dtype torch.bool", {"image_mask": torch.ones(3, 4)}),
    ("mask's shape", ValueError, r"text_mask must have shape \[3, 5\], the first two dimensions of text_tokens, got \[3, 4\]", {"text_mask": torch.ones(3, 4, dtype=torch.bool)}),
    ("beta, a word", TypeError, r"beta must be a number, got str", {"beta": "small"}),
    ("beta 0", ValueError, r"beta must be positive, got 0", {"beta": 0}),
    ("beta without end", ValueError, r"beta must be finite, got inf", {"beta": float("inf")}),
    ("half a step", TypeError, r"iterations must be an integer, got float", {"iterations": 2.5}),
    ("no step", ValueError, r"iterations must be at least 1, got 0", {"iterations": 0}),
    ("a backend", ValueError, r"backend must be one of", {"backend": "cuda13"}),
    ("no kernel", NotImplementedError, r"optimal_transport has no CUDA kernel", {"backend": "cuda"}),
]  # fmt: skip
OF_PLAN: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("proximal", TypeError, r"proximal must be True or False, got 1", {"proximal": 1}),
]
OF_LOSS: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("matched, a list", TypeError, r"matched must be a bool torch.Tensor or None, got list", {"matched": [True]}),
    ("matched, a number", TypeError, r"matched must have dtype torch.bool", {"matched": torch.ones(3)}),
    ("matched of few", ValueError, r"matched must have shape \[3\], got \[2\]", {"matched": torch.ones(2).bool()}),
    ("matched elsewhere", ValueError, r"matched must be on the device of image_tokens, got meta and cpu", {"matched": torch.ones(3, dtype=torch.bool, device="meta")}),
]  # fmt: skip


@pytest.mark.parametrize(
    "function, case",
    [
        pytest.param(function, case, id=f"{function.__name__}-{case[0]}")
        for function, cases in (
            (sk.optimal_transport_distance, SHARED + OF_PLAN),
            (sk.transport_plan, OF_PLAN),
            (sk.word_region_alignment_loss, OF_LOSS),
        )
        for case in cases
    ],
)
def test_misuse(function: Any, case: tuple[str, type[Exception], str, dict[str, Any]]) -> None:
    _, kind, message, arguments = case
    with pytest.raises(kind, match=message):
        function(**{"image_tokens": V, "text_tokens": T} | arguments)

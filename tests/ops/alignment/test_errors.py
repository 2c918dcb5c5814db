"""Every misuse gets an error that names the argument, what came and what was expected."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import sparc_kernels as sk

V, T = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
MASK = torch.ones(2, 3, dtype=torch.bool)
PATCH_MASK = torch.ones(2, 5, dtype=torch.bool)
META = "meta"  # a second device that every machine has

CASES: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("rank of patches", ValueError, r"patch_embeds must have shape \[B, P, D\], got 2 dimensions: \[5, 8\]", {"patch_embeds": V[0]}),
    ("rank of tokens", ValueError, r"token_embeds must have shape \[B, L, D\], got 4 dimensions", {"token_embeds": T[None]}),
    ("not a tensor", TypeError, r"patch_embeds must be a torch.Tensor.* of shape \[B, P, D\], got list", {"patch_embeds": [1.0]}),
    ("integers", TypeError, r"patch_embeds must be a floating tensor .* got torch.int64", {"patch_embeds": V.long(), "token_embeds": T.long()}),
    ("complex", TypeError, r"token_embeds must be a floating tensor .* got torch.complex64", {"token_embeds": T.to(torch.complex64)}),
    ("nested", TypeError, r"token_embeds must be a dense tensor of shape \[B, L, D\], got a nested one: pad it, and pass a mask", {"token_embeds": torch.nested.nested_tensor(list(T), layout=torch.jagged)}),
    ("sparse", TypeError, r"patch_embeds must be a dense tensor of shape \[B, P, D\], got a sparse_coo one: pass patch_embeds.to_dense\(\)", {"patch_embeds": V.to_sparse()}),
    ("batch", ValueError, r"token_embeds and patch_embeds must have the same B, got B=1 in \[1, 3, 8\] and 2 in \[2, 5, 8\]", {"token_embeds": T[:1]}),
    ("width", ValueError, r"token_embeds and patch_embeds must have the same D, got D=7 in \[2, 3, 7\] and 8", {"token_embeds": T[..., :7]}),
    ("dtypes", TypeError, r"token_embeds and patch_embeds must have the same dtype, got torch.float64 and torch.float32", {"token_embeds": T.double()}),
    ("devices", ValueError, r"token_embeds must be on the device of patch_embeds, got meta and cpu", {"token_embeds": T.to(META)}),
    ("no patches", ValueError, r"patch_embeds of shape \[B, P, D\] may be empty in B only, got \[2, 0, 8\]", {"patch_embeds": V[:, :0]}),
    ("no channels", ValueError, r"may be empty in B only", {"patch_embeds": V[..., :0], "token_embeds": T[..., :0]}),
    ("patch mask dtype", TypeError, r"patch_mask must have dtype torch.bool \(True = valid\), got torch.float32", {"patch_mask": PATCH_MASK.float()}),
    ("patch mask shape", ValueError, r"patch_mask must have shape \[2, 5\], .* got \[2, 4\]", {"patch_mask": PATCH_MASK[:, :4]}),
    ("patch mask type", TypeError, r"patch_mask must be a bool torch.Tensor.* or None, got list", {"patch_mask": [True]}),
    ("patch mask device", ValueError, r"patch_mask must be on the device of patch_embeds, got meta and cpu", {"patch_mask": PATCH_MASK.to(META)}),
    ("masked-out image", ValueError, r"patch_mask must leave at least one patch to every image, got none for image 1", {"patch_mask": torch.tensor([[True] * 5, [False] * 5])}),
    ("sigma too large", ValueError, r"similarity_threshold must lie in \[0, 1\], got 1.5", {"similarity_threshold": 1.5}),
    ("sigma negative", ValueError, r"similarity_threshold must lie in \[0, 1\], got -0.1", {"similarity_threshold": -0.1}),
    ("sigma NaN", ValueError, r"similarity_threshold must lie in \[0, 1\], got nan", {"similarity_threshold": float("nan")}),
    ("sigma type", TypeError, r"similarity_threshold must be a number in \[0, 1\] or None, got str", {"similarity_threshold": "1/P"}),
    ("unknown backend", ValueError, r"backend must be one of 'auto', 'cuda', 'triton', 'cpu', 'eager', got 'tpu'", {"backend": "tpu"}),
]  # fmt: skip
LOSS_CASES: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("token mask dtype", TypeError, r"token_mask must have dtype torch.bool \(True = valid\), got torch.int64: pass token_mask.bool\(\)", {"token_mask": MASK.long()}),
    ("additive mask", TypeError, r"got torch.float32: pass token_mask == 1, or == 0 of one to be added to logits", {"token_mask": torch.where(MASK, 0.0, -torch.inf)}),
    ("token mask shape", ValueError, r"token_mask must have shape \[2, 3\], .* got \[3, 2\]", {"token_mask": MASK.T}),
    ("token mask device", ValueError, r"token_mask must be on the device of token_embeds", {"token_mask": MASK.to(META)}),
    ("scale shape", ValueError, r"logit_scale must be a number or a one-element tensor, got shape \[2\]", {"logit_scale": torch.ones(2)}),
    ("scale dtype", TypeError, r"logit_scale must be a floating tensor, got torch.int64", {"logit_scale": torch.tensor(3)}),
    ("scale type", TypeError, r"logit_scale must be a number or a one-element tensor, got str", {"logit_scale": "14"}),
    ("scale infinite", ValueError, r"logit_scale must be finite, got inf", {"logit_scale": float("inf")}),
    ("scale device", ValueError, r"logit_scale must be on the device of patch_embeds", {"logit_scale": torch.tensor(1.0, device=META)}),
    ("reduction", ValueError, r"reduction must be one of 'token', 'caption', 'none', got 'mean'", {"reduction": "mean"}),
    ("group", TypeError, r"group must be 'world', a ProcessGroup or None, got object", {"group": object()}),
]  # fmt: skip
SPARC_CASES: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("global weight", TypeError, r"global_weight must be a number, got str", {"global_weight": "0.5"}),
    ("local weight", ValueError, r"local_weight must be finite, got inf", {"local_weight": float("inf")}),
    ("none without components", ValueError, r"pass return_components=True", {"reduction": "none"}),
    ("image rank", ValueError, r"image_embeds must have shape \[B, G\]", {"image_embeds": V}),
    ("image batch", ValueError, r"image_embeds and patch_embeds must have the same B, got B=3 .*those of other processes take part by group='world'", {"image_embeds": torch.randn(3, 8)}),
    ("text width", ValueError, r"text_embeds and image_embeds must have the same D", {"image_embeds": torch.randn(2, 8), "text_embeds": torch.randn(2, 4)}),
]  # fmt: skip


def _ids(cases: list[tuple[str, type[Exception], str, dict[str, Any]]]) -> list[str]:
    return [case[0] for case in cases]


@pytest.mark.parametrize(
    "function", [sk.sparc_loss, sk.fine_grained_loss, sk.language_grouped_embeddings, sk.alignment_weights]
)
@pytest.mark.parametrize("_, error, message, change", CASES, ids=_ids(CASES))
def test_embeddings_and_masks(
    function: Any, _: str, error: type[Exception], message: str, change: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        function(**{"patch_embeds": V, "token_embeds": T} | change)


@pytest.mark.parametrize("function", [sk.sparc_loss, sk.fine_grained_loss])
@pytest.mark.parametrize("_, error, message, change", LOSS_CASES, ids=_ids(LOSS_CASES))
def test_losses(function: Any, _: str, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        function(V, T, **change)


@pytest.mark.parametrize("_, error, message, change", SPARC_CASES, ids=_ids(SPARC_CASES))
def test_sparc_loss(_: str, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sk.sparc_loss(V, T, **change)


@pytest.mark.parametrize(
    "error, message, change",
    [
        (ValueError, r"image_embeds must have shape \[B, D\], got 3", {"image_embeds": V}),
        (TypeError, r"text_embeds must be a floating tensor", {"text_embeds": torch.ones(4, 8).int()}),
        (ValueError, r"text_embeds and image_embeds must have the same B", {"text_embeds": torch.ones(3, 8)}),
        (TypeError, r"group must be 'world', a ProcessGroup or None, got object", {"group": object()}),
        (ValueError, r"backend must be one of", {"backend": "fast"}),
    ],
)
def test_contrastive_loss(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sk.contrastive_loss(**{"image_embeds": torch.ones(4, 8), "text_embeds": torch.ones(4, 8)} | change)


@pytest.mark.parametrize(
    "backend, dtype, message",
    [
        (
            "cpu",
            torch.float16,
            "backend='cpu' cannot serve fine_grained for float16 on cpu: it serves float32",
        ),
        ("triton", torch.float64, "backend='triton' cannot serve fine_grained for float64 on cpu: .*float64"),
        ("cuda", torch.float32, "backend='cuda' cannot serve fine_grained for float32 on cpu: "),
    ],
)
def test_explicit_backend_never_falls_back(backend: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        sk.fine_grained_loss(V.to(dtype), T.to(dtype), backend=backend)


@pytest.mark.parametrize(
    "error, message, options",
    [
        (ValueError, "logit_scale must be positive, got 0", {"logit_scale": 0}),
        (TypeError, "local_logit_scale must be a number, got str", {"local_logit_scale": "1"}),
        (ValueError, r"similarity_threshold must lie in \[0, 1\], got 2", {"similarity_threshold": 2}),
        (ValueError, "reduction must be one of", {"reduction": "sum"}),
        (TypeError, r"group must be 'world', a ProcessGroup or None, got object", {"group": object()}),
        (ValueError, "max_logit_scale must be positive", {"max_logit_scale": -1}),
        (ValueError, "backend must be one of", {"backend": "gpu"}),
    ],
)
def test_module_options(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sk.SparcLoss(**options)


def test_every_message_says_what_came() -> None:
    """A message that only says "invalid" would pass a careless match; these name argument, found and expected."""
    for name, _, message, change in CASES + LOSS_CASES:
        argument = next(iter(change))
        assert re.search(rf"{argument}|may be empty|token_embeds", message), name

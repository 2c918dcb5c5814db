"""Losses of tokens against their attention, and MGCA's loss made of them: every backend against float64 truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.ops.softmax_alignment.autograd import SoftmaxAlignmentFunction
from sparc_kernels.ops.softmax_alignment.reference import softmax_alignment_reference
from tests import tolerance
from tests.conftest import DTYPES, device_of
from tests.modes import GradientsWritten, graphs
from tests.ops.alignment import cases, papers

BACKENDS = ["eager", "cpu"]
ATTENTION = 0.7  # of raw similarities, of size sqrt(D)
NAMES = ("small", "ragged", "holes", "patch-mask", "one-patch", "one-of-each", "odd-width", "sharp", "strided", "b-16")
CASES = [case for case in cases.CASES if case.name in NAMES] + [
    cases.Case("peaked", magnitude=30.0, D=64, lengths=(5, 4)),
    cases.Case("swapped", P=20, L=196, D=40, lengths=(196, 150), patches=(20, 11)),
]


def apply(x: cases.Inputs, backend: str) -> Tensor:
    attention = x.logit_scale.detach().new_tensor(ATTENTION)
    inputs = (x.patch_embeds, x.token_embeds, x.token_mask, x.patch_mask, x.logit_scale, attention)
    if backend == "eager":
        return softmax_alignment_reference(*inputs)
    return SoftmaxAlignmentFunction.apply(*inputs, backend)[0]


def run(x: cases.Inputs, backend: str) -> cases.Result:
    leaves = x.require_grad()
    return cases.differentiate(apply(leaves, backend), leaves)


def low_precision(x: cases.Inputs, dtype: torch.dtype) -> cases.Result:
    """What eager PyTorch makes of the dtype."""
    leaves = x.require_grad()
    inputs = (leaves.patch_embeds, leaves.token_embeds, leaves.token_mask, leaves.patch_mask, leaves.logit_scale)
    return cases.differentiate(softmax_alignment_reference(*inputs, ATTENTION, compute_dtype=dtype), leaves)


# The interpreter is slow: holes and a masked patch in one tile, and more tokens and patches than one tile holds.
INTERPRETED = (
    cases.Case("interpreted", B=2, L=5, lengths=(4, 3), holes=True, patches=(9, 6)),
    cases.Case("many-tiles", B=1, P=70, L=66, D=16, lengths=(65,), patches=(67,)),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_on_every_instruction_set(case: cases.Case, capability: str) -> None:
    check(case, "cpu")


@pytest.mark.parametrize("case", INTERPRETED, ids=str)
def test_triton_against_truth(case: cases.Case) -> None:
    check(case, "triton")


def check(case: cases.Case, backend: str) -> None:
    device = device_of(backend)
    for dtype in DTYPES[backend]:
        exact = cases.draw(case, dtype)
        truth, low = run(exact, "eager"), low_precision(exact.to(dtype), dtype)
        found = run(exact.to(dtype, device), backend)
        for (name, expected), (_, eager), (_, result) in zip(truth.named(), low.named(), found.named()):
            tolerance.assert_close(name, result, expected, eager, dtype, cases.least_of(name, exact))
        for mask, results in (
            (exact.token_mask, (found.token_loss, found.grad_token_embeds)),
            (exact.patch_mask, (found.grad_patch_embeds,)),
        ):
            for result in results if mask is not None else ():
                assert (result.cpu()[~mask] == 0).all(), "masked rows get exact zeros"


def problem(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Pairs with holes, one without a word, one without a patch, one of one word; NaN stands in the padding."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(6, n, 12, generator=generator, dtype=torch.float64) for n in (9, 7))
    texts += 0.7 * images[:, :7]
    image_mask, text_mask = (torch.rand(6, n, generator=generator) < 0.7 for n in (9, 7))
    text_mask[1], image_mask[2] = False, False
    text_mask[3] = torch.arange(7) == 4
    weights = [torch.rand(6, n, generator=generator).to(dtype) for n in (9, 7)]
    for x, mask, weight in ((images, image_mask, weights[0]), (texts, text_mask, weights[1])):
        x[~mask] = torch.nan
        weight[~mask] = torch.nan
    return {
        "image_tokens": images.to(dtype).requires_grad_(),
        "text_tokens": texts.to(dtype).requires_grad_(),
        "image_mask": image_mask,
        "text_mask": text_mask,
        "image_weights": weights[0],
        "text_weights": weights[1],
        "logit_scale": torch.tensor(6.0, dtype=dtype if dtype == torch.float64 else torch.float32, requires_grad=True),
        "attention_scale": 4.0,
    }


def values_of(x: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    loss = sk.mgca_local_loss(**x | options)
    leaves = [x[name] for name in ("image_tokens", "text_tokens", "logit_scale")]
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "alike"])
@pytest.mark.parametrize("direction", ["both", "image_to_text", "text_to_image"])
def test_loss_is_that_of_the_paper(direction: str, weighted: bool, backend: str) -> None:
    x = problem()
    unweighted = {} if weighted else {"image_weights": None, "text_weights": None}
    loss = papers.mgca_of(**x | unweighted, direction=direction)
    truth = loss.detach(), *torch.autograd.grad(loss, [x[n] for n in ("image_tokens", "text_tokens", "logit_scale")])
    for found, expected in zip(values_of(x | unweighted, direction=direction, backend=backend), truth):
        torch.testing.assert_close(found, expected.nan_to_num(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges(backend: str) -> None:
    x = problem()
    one_word = {name: value[3:4] if isinstance(value, Tensor) and value.dim() else value for name, value in x.items()}
    assert sk.mgca_local_loss(**one_word, direction="text_to_image", backend=backend) == 0
    nobody = x | {"text_mask": torch.zeros_like(x["text_mask"])}
    for found in values_of(nobody, backend=backend):
        assert (found == 0).all()
    nothing = {name: x[name][:0].detach().nan_to_num().requires_grad_() for name in ("image_tokens", "text_tokens")}
    loss = sk.mgca_local_loss(**nothing, backend=backend)
    assert loss == 0
    loss.backward()
    spoiled = x["text_tokens"].detach().clone()
    spoiled[0, int(x["text_mask"][0].nonzero()[0]), 3] = torch.nan
    assert sk.mgca_local_loss(**x | {"text_tokens": spoiled}, backend=backend).isnan()


def test_a_frozen_side_costs_nothing() -> None:
    x = problem(torch.float32)
    for frozen, written in (("image_tokens", (False, True)), ("text_tokens", (True, False))):
        fixed = x | {frozen: x[frozen].detach()}
        with GradientsWritten("softmax_alignment_backward") as seen:
            sk.mgca_local_loss(**fixed, direction="text_to_image", backend="cpu").backward()
        assert seen.calls == [written]


def test_autocast_and_dynamic_shapes() -> None:
    x = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = sk.mgca_local_loss(**x, backend="cpu")
    low = x | {name: x[name].detach().bfloat16() for name in ("image_tokens", "text_tokens")}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sk.mgca_local_loss(**low, backend="cpu"), rtol=0, atol=0)

    def loss(images: Tensor, texts: Tensor, mask: Tensor, attention: float) -> Tensor:
        return sk.mgca_local_loss(images, texts, None, mask, attention_scale=attention, backend="cpu")

    batches = [
        (torch.randn(b, p, 8), torch.randn(b, l, 8), torch.rand(b, l) < 0.8) for b, p, l in ((3, 5, 4), (6, 9, 7))
    ]
    first, second = graphs(loss, [(*batch, 10.0 + i) for i, batch in enumerate(batches)], dynamic=True)
    assert first == second


V, T = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
ONES = torch.ones(2, 3)
ERRORS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"image_tokens must have shape \[B, P, D\], got 2 dimensions", {"image_tokens": V[0]}),
    (ValueError, r"text_tokens and image_tokens must have the same B, got B=1", {"text_tokens": T[:1]}),
    (TypeError, r"text_mask must have dtype torch.bool", {"text_mask": ONES}),
    (TypeError, r"image_weights must be a floating torch.Tensor or None, got list", {"image_weights": [1.0]}),
    (TypeError, r"text_weights must be a floating tensor, got torch.int64", {"text_weights": ONES.long()}),
    (ValueError, r"image_weights must have shape \[2, 5\], .* of image_tokens, got \[2, 3\]", {"image_weights": ONES}),
    (ValueError, r"text_weights must not be negative or NaN at a valid token, got -1", {"text_weights": -ONES}),
    (ValueError, r"attention_scale must be positive, got 0", {"attention_scale": 0}),
    (ValueError, r"logit_scale must be positive, got -1", {"logit_scale": -1.0}),
    (ValueError, r"direction must be one of 'both', .* got 'rows'", {"direction": "rows"}),
    (NotImplementedError, r"softmax_alignment has no CUDA kernel", {"backend": "cuda"}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "change"), ERRORS, ids=[message[:20] for _, message, _ in ERRORS])
def test_misuse(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sk.mgca_local_loss(**{"image_tokens": V, "text_tokens": T} | change)

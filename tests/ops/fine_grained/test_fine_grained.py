"""The fine-grained loss of every backend against float64 truth: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from tests import tolerance
from tests.conftest import BACKENDS, DTYPES, FUSED, device_of
from tests.ops.alignment import cases


def token_loss_of(inputs: cases.Inputs, backend: str) -> Tensor:
    """Per-token loss [B, L] through the public API."""
    return sk.fine_grained_loss(
        inputs.patch_embeds,
        inputs.token_embeds,
        inputs.token_mask,
        logit_scale=inputs.logit_scale,
        patch_mask=inputs.patch_mask,
        similarity_threshold=inputs.threshold,
        reduction="none",
        backend=backend,
    )


def run(inputs: cases.Inputs, backend: str) -> cases.Result:
    leaves = inputs.require_grad()
    return cases.differentiate(token_loss_of(leaves, backend), leaves)


def check(case: cases.Case, dtype: torch.dtype, backend: str) -> None:
    exact = cases.draw(case, dtype)
    inputs = exact.to(dtype)
    truth = cases.reference(exact)
    eager = cases.reference(inputs, compute_dtype=dtype)
    found = run(exact.to(dtype, device_of(backend)), backend)
    for (name, expected), (_, low), (_, result) in zip(truth.named(), eager.named(), found.named()):
        tolerance.assert_close(name, result, expected, low, dtype, cases.least_of(name, exact))
    assert found.token_loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.grad_patch_embeds.dtype == found.grad_token_embeds.dtype == dtype
    for mask, results in (
        (exact.token_mask, (found.token_loss, found.grad_token_embeds)),
        (exact.patch_mask, (found.grad_patch_embeds,)),
    ):
        for result in results if mask is not None else ():
            assert (result.cpu()[~mask] == 0).all(), "masked rows get exact zeros"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_against_truth(case: cases.Case, backend: str) -> None:
    for dtype in DTYPES[backend]:
        check(case, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases.LARGE, ids=str)
def test_model_shapes(case: cases.Case, backend: str) -> None:
    check(case, torch.bfloat16, backend)
    if backend != "triton" or device_of("triton") == "cuda":
        check(case, torch.float32, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    for dtype in DTYPES[backend]:
        inputs = cases.draw(cases.EMPTY_BATCH, dtype).to(dtype, device_of(backend))
        found = run(inputs, backend)
        assert found.token_loss.shape == (0, 5)
        assert found.grad_patch_embeds.shape == inputs.patch_embeds.shape
        assert found.grad_logit_scale == 0
        loss = sk.fine_grained_loss(inputs.patch_embeds, inputs.token_embeds, backend=backend)
        assert loss == 0


# Rows that the written formula cannot serve (MATH.md, conventions).


def _plain(backend: str, patches: Tensor, tokens: Tensor, **options: object) -> cases.Inputs:
    values = {"token_mask": None, "patch_mask": None, "threshold": None} | options
    return cases.Inputs(
        patches.double(),
        tokens.double(),
        logit_scale=torch.tensor(5.0, dtype=torch.float64),
        upstream=torch.ones(tokens.shape[:2], dtype=torch.float64),
        **values,
    ).to(torch.float32, device_of(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_image_weighs_patches_evenly(backend: str) -> None:
    """All patches alike: all similarities of a row are equal, and none of them gets a gradient."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 4, 24, generator=generator)
    one = torch.randn(2, 1, 24, generator=generator)
    inputs = _plain(backend, one.expand(2, 11, 24).contiguous(), tokens)
    found = run(inputs, backend)
    single = run(_plain(backend, one, tokens), backend)  # P = 1: the same, by definition
    torch.testing.assert_close(found.token_loss, single.token_loss)
    torch.testing.assert_close(found.grad_token_embeds, single.grad_token_embeds, rtol=1e-4, atol=1e-6)
    expected = single.grad_patch_embeds.expand(2, 11, 24) / 11
    torch.testing.assert_close(found.grad_patch_embeds, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_at_the_minimum_share_the_gradient(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    patches = torch.randint(-3, 4, (2, 6, 8), generator=generator).double()  # small integers: ties are exact
    tokens = torch.randint(-3, 4, (2, 3, 8), generator=generator).double()
    lowest = (tokens @ patches.transpose(1, 2)).mean(1).argmin(-1)  # [B]
    twin = (lowest + 1) % 6
    patches[torch.arange(2), twin] = patches[torch.arange(2), lowest]
    inputs = _plain(backend, patches, tokens, threshold=0.25)
    truth = cases.reference(inputs.to(torch.float64, "cpu"))
    found = run(inputs, backend)
    for (name, expected), (_, result) in zip(truth.named(), found.named()):
        torch.testing.assert_close(result.double().cpu(), expected, rtol=1e-4, atol=1e-5, msg=name)
    same = found.grad_patch_embeds[torch.arange(2), lowest] - found.grad_patch_embeds[torch.arange(2), twin]
    assert same.abs().max() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_token_has_cosine_zero(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    patches, tokens = torch.randn(1, 7, 16, generator=generator), torch.randn(1, 3, 16, generator=generator)
    tokens[0, 1] = 0
    inputs = _plain(backend, patches, tokens)
    truth = fine_grained_reference(patches.double(), tokens.double(), None, None, torch.tensor(5.0).double())
    loss = token_loss_of(inputs, backend)
    torch.testing.assert_close(loss.double().cpu(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_image_has_cosine_zero(backend: str) -> None:
    tokens = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(4))
    inputs = _plain(backend, torch.zeros(1, 7, 16), tokens)
    loss = token_loss_of(inputs, backend)
    torch.testing.assert_close(loss.cpu(), torch.full((1, 3), torch.tensor(3.0).log().item()))
    found = run(inputs, backend)
    assert found.grad_token_embeds.abs().max() == 0
    assert found.grad_logit_scale == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_channel(backend: str) -> None:
    """D = 1: every cosine is 1 or -1, so no gradient is left but rounding."""
    case = cases.Case("one-channel", D=1, P=4, L=3)
    exact = cases.draw(case, torch.float32)
    found = run(exact.to(torch.float32, device_of(backend)), backend)
    truth = cases.reference(exact)
    torch.testing.assert_close(found.token_loss.double().cpu(), truth.token_loss, rtol=1e-4, atol=1e-5)
    assert found.grad_patch_embeds.abs().max() < 1e-2
    assert found.grad_token_embeds.abs().max() < 1e-2


@pytest.mark.parametrize("backend", FUSED)
def test_image_without_a_patch_is_nan(backend: str) -> None:
    """The public API refuses it where it can look; the kernel itself answers NaN for that image, and only for it."""
    inputs = cases.draw(cases.Case("masked-out", lengths=(5, 3)), torch.float32).to(torch.float32, device_of(backend))
    patch_mask = torch.ones(2, 9, dtype=torch.bool, device=inputs.patch_embeds.device)
    patch_mask[1] = False
    leaves = inputs.require_grad()
    loss, _, pooled_patches, pooled_tokens = sk.FineGrainedLossFunction.apply(
        leaves.patch_embeds,
        leaves.token_embeds,
        inputs.token_mask,
        patch_mask,
        leaves.logit_scale,
        None,
        True,
        True,
        backend,
    )
    assert loss[0].isfinite().all()
    assert loss[1, :3].isnan().all()
    assert (pooled_patches[1] == 0).all()
    assert pooled_tokens.isfinite().all()
    total = loss.sum() + pooled_patches.sum() + pooled_tokens.sum()
    grads = torch.autograd.grad(total, (leaves.patch_embeds, leaves.token_embeds, leaves.logit_scale))
    assert grads[0][0].isfinite().all()
    assert (grads[0][1] == 0).all()
    assert grads[1][0].isfinite().all()
    assert grads[1][1, :3].isnan().all()
    assert (grads[1][1, 3:] == 0).all()
    assert grads[2].isnan()


@pytest.mark.parametrize("backend", FUSED)
def test_nan_inside_a_valid_row_is_not_hidden(backend: str) -> None:
    inputs = cases.draw(cases.Case("nan"), torch.float32).to(torch.float32, device_of(backend))
    inputs.patch_embeds[0, 3, 2] = torch.nan
    loss = token_loss_of(inputs, backend)
    assert loss[0].isnan().all()
    assert loss[1].isfinite().all()


# Reductions (formed from the per-token loss, the same for every backend).


def test_reductions() -> None:
    inputs = cases.draw(cases.Case("reductions", B=4, lengths=(5, 1, 0, 3)), torch.float64)
    loss = lambda reduction, mask=inputs.token_mask: sk.fine_grained_loss(  # noqa: E731
        inputs.patch_embeds, inputs.token_embeds, mask, reduction=reduction, backend="eager"
    )
    per_token = loss("none")
    torch.testing.assert_close(loss("token"), per_token.sum() / 9)
    torch.testing.assert_close(loss("caption"), (per_token.sum(1) / torch.tensor([5, 1, 1, 3])).sum() / 3)
    torch.testing.assert_close(loss("caption", None), loss("token", None))
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    assert loss("token", nothing) == 0
    assert loss("caption", nothing) == 0

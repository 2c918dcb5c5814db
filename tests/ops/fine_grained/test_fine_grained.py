"""The fine-grained loss of every backend against float64 truth: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from tests import conftest, tolerance
from tests.conftest import BACKENDS, EMULATED_FLOAT32, EMULATED_WARPGROUPS, FUSED, device_of, dtypes_of, with_cases
from tests.emulation.host.backend import Emulated
from tests.ops.alignment import cases

EMULATED = [*conftest.EMULATED, *EMULATED_WARPGROUPS]


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


def apply(leaves: cases.Inputs, backend: str, pool: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, statistics, and the means of valid patches and tokens, by the Function itself."""
    threshold = None if leaves.threshold is None else leaves.logit_scale.new_tensor(leaves.threshold)
    return sk.FineGrainedLossFunction.apply(
        leaves.patch_embeds,
        leaves.token_embeds,
        leaves.token_mask,
        leaves.patch_mask,
        leaves.logit_scale,
        threshold,
        pool,
        pool,
        backend,
    )


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


@pytest.mark.parametrize(("case", "backend"), with_cases(cases.CASES, [*BACKENDS, *EMULATED]))
def test_against_truth(case: cases.Case, backend: str) -> None:
    for dtype in dtypes_of(backend):
        check(case, dtype, backend)


@pytest.mark.parametrize(("case", "backend"), with_cases(cases.LARGE, [*BACKENDS, *EMULATED]))
def test_model_shapes(case: cases.Case, backend: str) -> None:
    in_the_interpreter = backend == "triton" and device_of("triton") == "cpu"
    for dtype in dtypes_of(backend, (torch.bfloat16,) if in_the_interpreter else (torch.bfloat16, torch.float32)):
        check(case, dtype, backend)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED])
def test_empty_batch(backend: str) -> None:
    for dtype in dtypes_of(backend):
        inputs = cases.draw(cases.EMPTY_BATCH, dtype).to(dtype, device_of(backend))
        found = run(inputs, backend)
        assert found.token_loss.shape == (0, 5)
        assert found.grad_patch_embeds.shape == inputs.patch_embeds.shape
        assert found.grad_logit_scale == 0
        loss = sk.fine_grained_loss(inputs.patch_embeds, inputs.token_embeds, backend=backend)
        assert loss == 0


# What is asked for: means, and one gradient without the other.


def _mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean(1)
    return rows.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
@pytest.mark.parametrize("name", ["ragged", "empty-caption", "patch-mask", "odd-width", "sigma-half"])
def test_means(name: str, backend: str) -> None:
    """The means of the valid rows, and their gradients added to those of the loss before rounding."""
    case = next(case for case in cases.CASES if case.name == name)
    if name == "empty-caption":
        case = cases.replace(case, patches=(9, 4, 7))
    check_means(case, backend)


@pytest.mark.parametrize("backend", EMULATED_WARPGROUPS)
def test_means_of_more_patches_than_tokens(backend: str) -> None:
    """Each warpgroup makes both, where it makes one of up to 64 patches."""
    case = next(case for case in cases.CASES if case.name == "b-16")
    check_means(cases.replace(case, B=3, lengths=(20, 11, 1), patches=(196, 70, 65)), backend)


def check_means(case: cases.Case, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(case.B, case.D, generator=generator).to(torch.float16) for _ in range(2)]
    for dtype in dtypes_of(backend):
        exact = cases.draw(case, dtype)
        leaves = exact.require_grad()
        embeds = (leaves.patch_embeds, leaves.token_embeds)
        means = [_mean(rows, mask) for rows, mask in zip(embeds, (exact.patch_mask, exact.token_mask))]
        added = torch.autograd.grad(means, embeds, [grad.to(dtype).double() for grad in grads])
        truth, low = cases.reference(exact), cases.reference(exact.to(dtype), compute_dtype=dtype)

        leaves = exact.to(dtype, device_of(backend)).require_grad()
        loss, _, *pooled = apply(leaves, backend, pool=True)
        upstream = [leaves.upstream, *(grad.to(loss.device, dtype) for grad in grads)]
        found = torch.autograd.grad([loss, *pooled], (leaves.patch_embeds, leaves.token_embeds), upstream)
        for side, mean, more, pool, grad in zip(("patch", "token"), means, added, pooled, found):
            tolerance.assert_close(f"{side} mean", pool, mean, mean.to(dtype), dtype)
            field = f"grad_{side}_embeds"
            expected, eager = (getattr(x, field).double() + more for x in (truth, low))
            tolerance.assert_close(field, grad, expected, eager, dtype, cases.least_of(field, exact))


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
def test_only_the_gradient_that_is_asked_for(backend: str) -> None:
    """The same bits as with both."""
    case = cases.Case("ragged", B=5, P=40, L=20, D=80, lengths=(20, 3, 0, 17, 1), patches=(40, 7, 9, 33, 40))
    for dtype in dtypes_of(backend):
        inputs = cases.draw(case, dtype).to(dtype, device_of(backend))
        both = run(inputs, backend)
        for field in ("patch_embeds", "token_embeds"):
            leaf = getattr(inputs, field).detach().requires_grad_()
            loss = token_loss_of(cases.replace(inputs, **{field: leaf}), backend)
            (found,) = torch.autograd.grad(loss, leaf, inputs.upstream)
            assert torch.equal(found, getattr(both, f"grad_{field}")), f"{dtype} {field}"


# Rows that the written formula cannot serve (MATH.md, conventions).


def _plain(backend: str, patches: Tensor, tokens: Tensor, **options: object) -> cases.Inputs:
    """Inputs in float32; in half precision, rounded, on the emulated devices that compute in it."""
    (dtype,) = dtypes_of(backend, (torch.float32,))
    values = {"token_mask": None, "patch_mask": None, "threshold": None} | options
    return cases.Inputs(
        patches.double(),
        tokens.double(),
        logit_scale=torch.tensor(5.0, dtype=torch.float64),
        upstream=torch.ones(tokens.shape[:2], dtype=torch.float64),
        **values,
    ).to(dtype, device_of(backend))


def close(result: Tensor, expected: Tensor, rtol: float, atol: float, half: tuple[float, float], backend: str) -> None:
    """Within ``rtol`` and ``atol``, or within ``half`` where the embeddings are in half precision."""
    if dtypes_of(backend, (torch.float32,)) != (torch.float32,):
        rtol, atol = half
    torch.testing.assert_close(result.double().cpu(), expected.double().cpu(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED])
def test_constant_image_weighs_patches_evenly(backend: str) -> None:
    """All patches alike: all similarities of a row are equal, and none of them gets a gradient."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 4, 24, generator=generator)
    one = torch.randn(2, 1, 24, generator=generator)
    inputs = _plain(backend, one.expand(2, 11, 24).contiguous(), tokens)
    found = run(inputs, backend)
    single = run(_plain(backend, one, tokens), backend)  # P = 1: the same, by definition
    close(found.token_loss, single.token_loss, 1.3e-6, 1e-5, half=(1e-4, 1e-5), backend=backend)
    close(found.grad_token_embeds, single.grad_token_embeds, 1e-4, 1e-6, half=(2e-2, 2e-3), backend=backend)
    expected = single.grad_patch_embeds.expand(2, 11, 24) / 11
    close(found.grad_patch_embeds, expected, 1e-4, 1e-6, half=(5e-2, 2e-3), backend=backend)
    if isinstance(backend, Emulated):
        assert (found.grad_patch_embeds == found.grad_patch_embeds[:, :1]).all()


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED])
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
    for (_, expected), (_, result) in zip(truth.named(), found.named()):
        close(result, expected, 1e-4, 1e-5, half=(5e-2, 1e-2), backend=backend)
    same = found.grad_patch_embeds[torch.arange(2), lowest] - found.grad_patch_embeds[torch.arange(2), twin]
    assert same.abs().max() <= (0 if isinstance(backend, Emulated) else 1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED])
def test_zero_token_has_cosine_zero(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    patches, tokens = torch.randn(1, 7, 16, generator=generator), torch.randn(1, 3, 16, generator=generator)
    tokens[0, 1] = 0
    inputs = _plain(backend, patches, tokens)
    truth, found = cases.reference(inputs.to(torch.float64, "cpu")), run(inputs, backend)
    close(found.token_loss, truth.token_loss, 1e-5, 1e-6, half=(3e-2, 3e-2), backend=backend)
    close(found.grad_patch_embeds, truth.grad_patch_embeds, 1e-3, 1e-4, half=(3e-1, 3e-2), backend=backend)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED])
def test_zero_image_has_cosine_zero(backend: str) -> None:
    tokens = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(4))
    inputs = _plain(backend, torch.zeros(1, 7, 16), tokens)
    loss = token_loss_of(inputs, backend)
    torch.testing.assert_close(loss.cpu(), torch.full((1, 3), torch.tensor(3.0).log().item()))
    found = run(inputs, backend)
    assert found.grad_token_embeds.abs().max() == 0
    assert found.grad_logit_scale == 0


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_one_channel(backend: str) -> None:
    """D = 1: every cosine is 1 or -1, so no gradient is left but rounding."""
    case = cases.Case("one-channel", D=1, P=4, L=3)
    exact = cases.draw(case, torch.float32)
    found = run(exact.to(torch.float32, device_of(backend)), backend)
    truth = cases.reference(exact)
    torch.testing.assert_close(found.token_loss.double().cpu(), truth.token_loss, rtol=1e-4, atol=1e-5)
    assert found.grad_patch_embeds.abs().max() < 1e-2
    assert found.grad_token_embeds.abs().max() < 1e-2


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
def test_image_without_a_patch_is_nan(backend: str) -> None:
    """The public API refuses it where it can look; the kernel itself answers NaN for that image, and only for it."""
    (dtype,) = dtypes_of(backend, (torch.float32,))
    inputs = cases.draw(cases.Case("masked-out", lengths=(5, 3)), dtype).to(dtype, device_of(backend))
    patch_mask = torch.ones(2, 9, dtype=torch.bool, device=inputs.patch_embeds.device)
    patch_mask[1] = False
    leaves = cases.replace(inputs.require_grad(), patch_mask=patch_mask)
    loss, _, pooled_patches, pooled_tokens = apply(leaves, backend, pool=True)
    assert loss[0].isfinite().all()
    assert loss[1, :3].isnan().all()
    assert (loss[1, 3:] == 0).all()
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


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
def test_nan_inside_a_valid_row_is_not_hidden(backend: str) -> None:
    (dtype,) = dtypes_of(backend, (torch.float32,))
    inputs = cases.draw(cases.Case("nan"), dtype).to(dtype, device_of(backend))
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

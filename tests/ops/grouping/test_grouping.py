"""Language-grouped embeddings and alignment weights of every backend against float64 truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference
from tests import conftest, tolerance
from tests.conftest import BACKENDS, EMULATED_FLOAT32, EMULATED_WARPGROUPS, FUSED, device_of, dtypes_of, with_cases
from tests.ops.alignment import cases

EMULATED = [*conftest.EMULATED, *EMULATED_WARPGROUPS]
OPS = {
    "embeddings": (sk.language_grouped_embeddings, grouped_embeddings_reference),
    "weights": (sk.alignment_weights, alignment_weights_reference),
}
CASES = [cases.replace(case, lengths=None, holes=False) for case in cases.CASES]  # there is no token mask
LARGE = [cases.replace(case, lengths=None, holes=False) for case in cases.LARGE]


def results(function: Callable[..., Tensor], inputs: cases.Inputs, **options: object) -> tuple[Tensor, ...]:
    leaves = inputs.require_grad()
    output = function(
        leaves.patch_embeds,
        leaves.token_embeds,
        patch_mask=leaves.patch_mask,
        similarity_threshold=leaves.threshold,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(torch.float16)
    grads = torch.autograd.grad(
        output, (leaves.patch_embeds, leaves.token_embeds), upstream.to(output.device, output.dtype)
    )
    return output.detach(), *grads


def check(op: str, case: cases.Case, dtype: torch.dtype, backend: str) -> None:
    function, definition = OPS[op]
    exact = cases.draw(case, dtype)
    inputs = exact.to(dtype)
    truth = results(definition, exact)
    eager = results(definition, inputs, compute_dtype=dtype)
    found = results(function, exact.to(dtype, device_of(backend)), backend=backend)
    for name, expected, low, result in zip(("output", "grad_patch_embeds", "grad_token_embeds"), truth, eager, found):
        assert result.dtype == dtype
        tolerance.assert_close(f"{op} {name}", result, expected, low, dtype)
    if exact.patch_mask is not None:
        assert (found[1].cpu()[~exact.patch_mask] == 0).all()
        if op == "weights":
            hidden = ~exact.patch_mask[:, None].expand_as(found[0])
            assert (found[0].cpu()[hidden] == 0).all()


@pytest.mark.parametrize(("case", "backend"), with_cases(CASES, [*BACKENDS, *EMULATED]))
@pytest.mark.parametrize("op", OPS)
def test_against_truth(op: str, case: cases.Case, backend: str) -> None:
    for dtype in dtypes_of(backend):
        check(op, case, dtype, backend)


@pytest.mark.parametrize(("case", "backend"), with_cases(LARGE, [*BACKENDS, *EMULATED]))
@pytest.mark.parametrize("op", OPS)
def test_model_shapes(op: str, case: cases.Case, backend: str) -> None:
    for dtype in dtypes_of(backend, (torch.bfloat16,)):
        check(op, case, dtype, backend)


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
@pytest.mark.parametrize("op", OPS)
def test_only_the_gradient_that_is_asked_for(op: str, backend: str) -> None:
    """The same bits as with both."""
    case = cases.Case("ragged", B=5, P=40, L=20, D=80, patches=(40, 7, 9, 33, 40))
    for dtype in dtypes_of(backend):
        inputs = cases.draw(case, dtype).to(dtype, device_of(backend))
        _, *both = results(OPS[op][0], inputs, backend=backend)
        generator = torch.Generator().manual_seed(0)
        upstream = torch.randn(5, 20, 80 if op == "embeddings" else 40, generator=generator, dtype=torch.float64)
        for i in range(2):
            embeds = [inputs.patch_embeds.detach(), inputs.token_embeds.detach()]
            embeds[i].requires_grad_()
            output = OPS[op][0](*embeds, patch_mask=inputs.patch_mask, backend=backend)
            (found,) = torch.autograd.grad(output, embeds[i], upstream.to(torch.float16).to(output.device, dtype))
            assert torch.equal(found, both[i]), f"{dtype} {i}"


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED])
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op: str, backend: str) -> None:
    (dtype,) = dtypes_of(backend, (torch.float32,))
    inputs = cases.draw(cases.EMPTY_BATCH, dtype).to(dtype, device_of(backend))
    output, grad_patches, grad_tokens = results(OPS[op][0], inputs, backend=backend)
    assert output.shape == (0, 5, 16 if op == "embeddings" else 9)
    assert grad_patches.shape == inputs.patch_embeds.shape
    assert grad_tokens.shape == inputs.token_embeds.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weights_sum_to_one(backend: str) -> None:
    for case in cases.CASES:
        inputs = cases.draw(case, torch.float32).to(torch.float32, device_of(backend))
        weights = sk.alignment_weights(
            inputs.patch_embeds,
            inputs.token_embeds,
            patch_mask=inputs.patch_mask,
            similarity_threshold=inputs.threshold,
            backend=backend,
        )
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), msg=str(case))


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
@pytest.mark.parametrize("op", OPS)
def test_constant_image(op: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(2, 1, 24, generator=generator).to(device_of(backend))
    tokens = torch.randn(2, 4, 24, generator=generator).to(device_of(backend)).requires_grad_()
    patches = one.expand(2, 11, 24).contiguous().requires_grad_()
    output = OPS[op][0](patches, tokens, backend=backend)
    expected = one.expand_as(output) if op == "embeddings" else torch.full_like(output, 1 / 11)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn(output.shape, generator=generator).to(device_of(backend))
    grad_patches, grad_tokens = torch.autograd.grad(output, (patches, tokens), upstream)
    assert grad_tokens.abs().max() == 0, "no gradient into the similarities of a constant row"
    if op == "embeddings":
        torch.testing.assert_close(grad_patches, upstream.sum(1, keepdim=True).expand(2, 11, 24) / 11)
    else:
        assert grad_patches.abs().max() == 0


@pytest.mark.parametrize("backend", ["eager", *FUSED, *EMULATED])
@pytest.mark.parametrize("op", OPS)
def test_nan_in_a_valid_patch_is_seen(op: str, backend: str) -> None:
    """By all tokens of its image and by no other image's, in results and gradients."""
    (dtype,) = dtypes_of(backend, (torch.float32,))
    generator = torch.Generator().manual_seed(2)
    patches, tokens = (torch.randn(2, n, 8, generator=generator).to(dtype).to(device_of(backend)) for n in (6, 3))
    patches[1, 3, 2] = torch.nan
    leaves = patches.requires_grad_(), tokens.requires_grad_()
    output = OPS[op][0](*leaves, backend=backend)
    grads = torch.autograd.grad(output.square().sum(), leaves)
    assert output[0].isfinite().all()
    assert output[1].isnan().any(-1).all()
    for grad in grads:
        assert grad[0].isfinite().all()
        assert grad[1].isnan().any(-1).all()


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
@pytest.mark.parametrize("op", OPS)
def test_image_without_a_patch_is_nan(op: str, backend: str) -> None:
    """Its patches, all masked, have gradient 0; its tokens' is 0 or NaN, by the backend; other images have theirs."""
    (dtype,) = dtypes_of(backend, (torch.float32,))
    inputs = cases.draw(cases.Case("masked-out"), dtype).to(dtype, device_of(backend))
    patches, tokens = (x.detach().clone().requires_grad_() for x in (inputs.patch_embeds, inputs.token_embeds))
    patch_mask = torch.ones(2, 9, dtype=torch.bool, device=patches.device)
    patch_mask[1] = False
    function = {"embeddings": sk.LanguageGroupedEmbeddingsFunction, "weights": sk.AlignmentWeightsFunction}[op]
    output, _ = function.apply(patches, tokens, patch_mask, None, backend)
    assert output[0].isfinite().all()
    assert output[1].isnan().all()
    upstream = torch.arange(output.numel(), device=output.device).view_as(output).to(dtype)
    grad_patches, grad_tokens = torch.autograd.grad(output, (patches, tokens), upstream)
    assert (grad_patches[1] == 0).all()
    assert grad_tokens[1].nan_to_num().eq(0).all()
    for grad in (grad_patches, grad_tokens):
        assert grad[0].isfinite().all()
        assert grad[0].any()

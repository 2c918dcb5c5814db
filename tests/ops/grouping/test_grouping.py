"""Language-grouped embeddings and alignment weights of every backend against float64 truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference
from tests import tolerance
from tests.conftest import BACKENDS, DTYPES, FUSED, device_of
from tests.ops.alignment import cases

OPS = {
    "embeddings": (sk.language_grouped_embeddings, grouped_embeddings_reference),
    "weights": (sk.alignment_weights, alignment_weights_reference),
}


def _without_token_mask(inputs: cases.Inputs) -> cases.Inputs:
    return cases.replace(inputs, token_mask=None)


def _grads(function: Callable[..., Tensor], inputs: cases.Inputs, **options: object) -> tuple[Tensor, ...]:
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
    exact = _without_token_mask(cases.draw(cases.replace(case, lengths=None, holes=False), dtype))
    inputs = exact.to(dtype)
    truth = _grads(definition, exact)
    eager = _grads(definition, inputs, compute_dtype=dtype)
    found = _grads(function, exact.to(dtype, device_of(backend)), backend=backend)
    for name, expected, low, result in zip(("output", "grad_patch_embeds", "grad_token_embeds"), truth, eager, found):
        assert result.dtype == dtype
        tolerance.assert_close(f"{op} {name}", result, expected, low, dtype)
    if exact.patch_mask is not None:
        assert (found[1].cpu()[~exact.patch_mask] == 0).all()
        if op == "weights":
            hidden = ~exact.patch_mask[:, None].expand_as(found[0])
            assert (found[0].cpu()[hidden] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases.CASES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_against_truth(op: str, case: cases.Case, backend: str) -> None:
    for dtype in DTYPES[backend]:
        check(op, case, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases.LARGE, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_model_shapes(op: str, case: cases.Case, backend: str) -> None:
    check(op, case, torch.bfloat16, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op: str, backend: str) -> None:
    inputs = cases.draw(cases.EMPTY_BATCH, torch.float32).to(torch.float32, device_of(backend))
    output, grad_patches, grad_tokens = _grads(OPS[op][0], inputs, backend=backend)
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


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("op", OPS)
def test_image_without_a_patch_is_nan(op: str, backend: str) -> None:
    inputs = cases.draw(cases.Case("masked-out"), torch.float32).to(torch.float32, device_of(backend))
    patch_mask = torch.ones(2, 9, dtype=torch.bool, device=inputs.patch_embeds.device)
    patch_mask[1] = False
    function = {"embeddings": sk.LanguageGroupedEmbeddingsFunction, "weights": sk.AlignmentWeightsFunction}[op]
    output, _ = function.apply(inputs.patch_embeds, inputs.token_embeds, patch_mask, None, backend)
    assert output[0].isfinite().all()
    assert output[1].isnan().all()

"""Laws that the mathematics obeys, on every backend: no reference is involved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparc_kernels as sk
from tests import tolerance
from tests.conftest import BACKENDS, EMULATED, EMULATED_FLOAT32, FUSED, device_of, dtypes_of
from tests.emulation.host.backend import Emulated
from tests.ops.alignment import cases
from tests.ops.fine_grained.test_fine_grained import check, run, token_loss_of

CASE = cases.Case("law", B=3, P=10, L=6, D=16, lengths=(6, 2, 4))
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-6}


def draw(backend: str, case: cases.Case = CASE) -> cases.Inputs:
    return cases.draw(case, torch.float32).to(torch.float32, device_of(backend))


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_order_of_patches_does_not_matter(backend: str) -> None:
    inputs = draw(backend)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    permuted = cases.replace(inputs, patch_embeds=inputs.patch_embeds[:, order])
    one, other = run(inputs, backend), run(permuted, backend)
    torch.testing.assert_close(one.token_loss, other.token_loss, **CLOSE)
    torch.testing.assert_close(one.grad_patch_embeds[:, order], other.grad_patch_embeds, **CLOSE)
    torch.testing.assert_close(one.grad_token_embeds, other.grad_token_embeds, **CLOSE)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_captions_are_independent(backend: str) -> None:
    """Permuting the pairs permutes the results; a batch is the concatenation of its parts."""
    inputs = draw(backend)
    order = torch.tensor([2, 0, 1])
    pick = lambda tensor: None if tensor is None else tensor[order.to(tensor.device)]  # noqa: E731
    fields = ("patch_embeds", "token_embeds", "token_mask", "upstream")
    permuted = cases.replace(inputs, **{name: pick(getattr(inputs, name)) for name in fields})
    one, other = run(inputs, backend), run(permuted, backend)
    for name in ("token_loss", "grad_patch_embeds", "grad_token_embeds"):
        torch.testing.assert_close(pick(getattr(one, name)), getattr(other, name), **CLOSE)
    parts = [
        run(cases.replace(inputs, **{name: getattr(inputs, name)[part] for name in fields}), backend)
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(torch.cat([part.token_loss for part in parts]), one.token_loss, **CLOSE)
    torch.testing.assert_close(sum(part.grad_logit_scale for part in parts), one.grad_logit_scale, **CLOSE)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_padding_does_not_matter(backend: str) -> None:
    """NaN in padding, more padding, padding in between: the same loss and gradients at the valid tokens and patches."""
    inputs = draw(backend, cases.replace(CASE, patches=(10, 7, 3)))
    expected = run(inputs, backend)

    tokens = inputs.token_embeds.masked_fill(~inputs.token_mask[..., None], torch.nan)
    patches = inputs.patch_embeds.masked_fill(~inputs.patch_mask[..., None], torch.nan)
    poisoned = run(cases.replace(inputs, token_embeds=tokens, patch_embeds=patches), backend)
    for (name, one), (_, other) in zip(expected.named(), poisoned.named()):
        assert torch.equal(one, other), name

    # spread the captions over twice the length, two dead tokens before each live one
    wide = cases.replace(
        inputs,
        token_embeds=torch.full((3, 18, 16), torch.inf, device=tokens.device).index_copy(1, _live(tokens), tokens),
        token_mask=torch.zeros(3, 18, dtype=torch.bool, device=tokens.device).index_copy(
            1, _live(tokens), inputs.token_mask
        ),
        upstream=torch.ones(3, 18, device=tokens.device).index_copy(1, _live(tokens), inputs.upstream),
    )
    found = run(wide, backend)
    torch.testing.assert_close(found.token_loss[:, 2::3], expected.token_loss, **CLOSE)
    torch.testing.assert_close(found.grad_token_embeds[:, 2::3], expected.grad_token_embeds, **CLOSE)
    torch.testing.assert_close(found.grad_patch_embeds, expected.grad_patch_embeds, **CLOSE)


def _live(tokens: Tensor) -> Tensor:
    return torch.arange(2, 18, 3, device=tokens.device)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_no_mask_is_all_valid(backend: str) -> None:
    inputs = draw(backend, cases.replace(CASE, lengths=None))
    ones = cases.replace(
        inputs,
        token_mask=torch.ones(3, 6, dtype=torch.bool, device=inputs.token_embeds.device),
        patch_mask=torch.ones(3, 10, dtype=torch.bool, device=inputs.token_embeds.device),
    )
    for (name, one), (_, other) in zip(run(inputs, backend).named(), run(ones, backend).named()):
        torch.testing.assert_close(one, other, **CLOSE, msg=name)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_shift_and_positive_scale_of_similarities(backend: str) -> None:
    """Weights see similarities up to a positive factor (on tokens) and a shift (a part that all patches share)."""
    inputs = draw(backend)
    weights = sk.alignment_weights(inputs.patch_embeds, inputs.token_embeds, backend=backend)
    shift = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(5)).to(weights.device)
    moved = sk.alignment_weights(inputs.patch_embeds + shift, 3.0 * inputs.token_embeds, backend=backend)
    torch.testing.assert_close(moved, weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_masked_patches_equal_absent_patches(backend: str) -> None:
    inputs = draw(backend)
    mask = torch.ones(3, 10, dtype=torch.bool, device=inputs.patch_embeds.device)
    mask[:, [1, 4, 9]] = False
    keep = mask[0].nonzero().flatten()
    masked = run(cases.replace(inputs, patch_mask=mask), backend)
    absent = run(cases.replace(inputs, patch_embeds=inputs.patch_embeds[:, keep]), backend)
    torch.testing.assert_close(masked.token_loss, absent.token_loss, **CLOSE)
    torch.testing.assert_close(masked.grad_patch_embeds[:, keep], absent.grad_patch_embeds, **CLOSE)


@pytest.mark.parametrize("backend", [*BACKENDS, *EMULATED_FLOAT32])
def test_gradient_is_orthogonal_to_the_image(backend: str) -> None:
    """One factor on all patches of an image does not change the loss, so the gradient is orthogonal to them."""
    inputs = draw(backend)
    found = run(inputs, backend)
    along = (found.grad_patch_embeds * inputs.patch_embeds).sum((1, 2))
    size = (found.grad_patch_embeds * inputs.patch_embeds).abs().sum((1, 2))
    assert (along.abs() <= 1e-4 * size).all()


@pytest.mark.parametrize("backend", FUSED)
def test_bitwise_reproducible(backend: str) -> None:
    inputs = draw(backend, cases.Case("again", B=5, P=49, L=12, D=64, lengths=(12, 3, 7, 9, 1)))
    first = run(inputs, backend)
    for _ in range(3):
        for (name, one), (_, other) in zip(first.named(), run(inputs, backend).named()):
            assert torch.equal(one, other), name


@st.composite
def _cases(draw_: st.DrawFn) -> cases.Case:
    B, P, L = draw_(st.integers(1, 3)), draw_(st.integers(1, 40)), draw_(st.integers(1, 20))
    return cases.Case(
        "hypothesis",
        B=B,
        P=P,
        L=L,
        D=draw_(st.integers(2, 48)),
        lengths=draw_(st.none() | st.tuples(*[st.integers(0, L)] * B)),
        holes=draw_(st.booleans()),
        patches=draw_(st.none() | st.tuples(*[st.integers(1, P)] * B)),
        threshold=draw_(st.none() | st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        scale=draw_(st.sampled_from([0.1, 1.0, 14.0, 60.0])),
        strided=draw_(st.booleans()),
    )


@pytest.mark.parametrize("backend", [*FUSED, *EMULATED])
def test_any_shape_and_mask(backend: str) -> None:
    # the interpreter takes a second per example, the emulator half of one
    in_the_interpreter = backend == "triton" and device_of(backend) == "cpu"
    examples = 12 if in_the_interpreter or isinstance(backend, Emulated) else 80
    (dtype,) = dtypes_of(backend, (torch.float32,))

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=_cases())
    def against_truth(case: cases.Case) -> None:
        check(case, dtype, backend)

    against_truth()


def test_law_tolerance_is_not_loose() -> None:
    """A result that forgot one token of six is far outside of what the laws accept."""
    inputs = draw("eager", cases.replace(CASE, scale=1.0))
    fewer = inputs.token_mask.clone()
    fewer[0, 5] = False
    one = token_loss_of(inputs, "eager")
    other = token_loss_of(cases.replace(inputs, token_mask=fewer), "eager")
    assert tolerance.errors(other[0, :5], one[0, :5]).l2 > 100 * CLOSE["rtol"]

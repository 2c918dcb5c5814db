"""What PyTorch asks of an op: gradcheck, opcheck, saved memory, torch.compile, autocast, second derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from tests.conftest import BACKENDS, FUSED, device_of
from tests.ops.alignment import cases

CASE = cases.Case("autograd", B=2, P=7, L=4, D=8, lengths=(4, 2), patches=(7, 5), scale=3.0)


def _inputs(backend: str, dtype: torch.dtype = torch.float32, case: cases.Case = CASE) -> cases.Inputs:
    return cases.draw(case, dtype).to(dtype, device_of(backend)).require_grad()


def _op(name: str, backend: str) -> Any:
    return getattr(torch.ops.sparc_kernels, name + ("_triton" if backend == "triton" else "")).default


@pytest.mark.parametrize("backend", FUSED)
def test_saved_memory_is_linear_in_tokens(backend: str) -> None:
    """Beyond the inputs themselves, autograd keeps a handful of numbers per token."""
    inputs = _inputs(backend, case=cases.Case("saved", B=3, P=64, L=16, D=32, lengths=(16, 9, 4)))
    own = {t.untyped_storage().data_ptr() for t in (inputs.patch_embeds, inputs.token_embeds, inputs.token_mask)}

    def extra_bytes(function: Any) -> int:
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = function()
        del output
        return sum(saved.values())

    numbers = 4 * 3 * 16  # bytes of one float32 per token
    loss = extra_bytes(
        lambda: sk.fine_grained_loss(
            inputs.patch_embeds,
            inputs.token_embeds,
            inputs.token_mask,
            logit_scale=inputs.logit_scale,
            backend=backend,
        )
    )
    assert 0 < loss <= 8 * numbers
    for function in (sk.language_grouped_embeddings, sk.alignment_weights):
        kept = extra_bytes(lambda f=function: f(inputs.patch_embeds, inputs.token_embeds, backend=backend))
        assert 0 < kept <= 4 * numbers
    eager = extra_bytes(
        lambda: sk.fine_grained_loss(inputs.patch_embeds, inputs.token_embeds, inputs.token_mask, backend="eager")
    )
    assert eager > 20 * loss, "the measurement sees what eager keeps"


@pytest.mark.parametrize("backend", FUSED)
def test_gradient_penalty_raises(backend: str) -> None:
    """The loss is linear in what flows in from above, so PyTorch alone would take the second derivative for zero."""
    inputs = _inputs(backend)
    loss = sk.fine_grained_loss(inputs.patch_embeds, inputs.token_embeds, backend=backend)
    (grad,) = torch.autograd.grad(loss, inputs.patch_embeds, create_graph=True)
    with pytest.raises(RuntimeError, match="is not differentiable"):
        (loss + grad.square().sum()).backward()


@pytest.mark.parametrize("backend", FUSED)
def test_ops_called_directly_differentiate(backend: str) -> None:
    """As in graphs of ``torch.export``: the derivative stands on the op, not only in the Function around it."""
    inputs = _inputs(backend)
    leaves = (inputs.patch_embeds, inputs.token_embeds)
    output, _ = _op("grouped_embeddings_forward", backend)(*leaves, inputs.patch_mask, None, "highest")
    expected = sk.language_grouped_embeddings(*leaves, patch_mask=inputs.patch_mask, backend=backend)
    upstream = torch.rand_like(output)
    found, wanted = (torch.autograd.grad(x, leaves, upstream) for x in (output, expected))
    assert all(map(torch.equal, found, wanted))


def test_eager_second_derivative() -> None:
    """The eager backend is plain autograd, and says so: twice is right there."""
    inputs = _inputs("eager", torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda p, t: sk.fine_grained_loss(p, t, inputs.token_mask, logit_scale=2.0, backend="eager"),
        (inputs.patch_embeds, inputs.token_embeds),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_only_where_asked(backend: str) -> None:
    inputs = _inputs(backend)
    frozen = inputs.patch_embeds.detach()
    loss = sk.fine_grained_loss(frozen, inputs.token_embeds, logit_scale=2.0, backend=backend)
    loss.backward()
    assert frozen.grad is None
    assert inputs.token_embeds.grad is not None


@pytest.mark.parametrize("backend", ["eager", "cpu", "triton"])
def test_autocast_policy(backend: str) -> None:
    """Embeddings go to the autocast dtype; losses stay float32; gradients come back in the parameters' dtype."""
    device = device_of(backend)
    inputs = _inputs(backend, case=cases.replace(CASE, B=3, lengths=(4, 2, 1), patches=None))
    patches, tokens = inputs.patch_embeds, inputs.token_embeds
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = sk.sparc_loss(patches, tokens, inputs.token_mask, backend=backend)
        groups = sk.language_grouped_embeddings(patches, tokens, backend=backend)
        double = sk.fine_grained_loss(patches.double(), tokens.double(), backend="eager")
    assert loss.dtype == torch.float32
    assert groups.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    loss.backward()
    assert patches.grad.dtype == torch.float32
    by_hand = sk.sparc_loss(patches.bfloat16(), tokens.bfloat16(), inputs.token_mask, backend=backend)
    assert torch.equal(loss, by_hand)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=False):
        full = sk.sparc_loss(patches, tokens, inputs.token_mask, backend=backend)
    assert not torch.equal(full, loss)


@pytest.mark.parametrize("backend", FUSED)
def test_functions_can_be_applied_directly(backend: str) -> None:
    inputs = _inputs(backend)
    leaves = (inputs.patch_embeds, inputs.token_embeds, inputs.logit_scale)
    patches, tokens, scale = leaves
    masks = (inputs.token_mask, inputs.patch_mask)
    token_loss, stats, pooled_patches, pooled_tokens = sk.FineGrainedLossFunction.apply(
        patches, tokens, *masks, scale, None, True, False, backend
    )
    assert stats.shape == (7, 2, 4)
    assert not stats.requires_grad
    assert pooled_patches.shape == (2, 8)
    assert pooled_tokens.shape == (0,)
    expected = sk.fine_grained_loss(
        patches, tokens, masks[0], patch_mask=masks[1], logit_scale=scale, reduction="none", backend=backend
    )
    found, wanted = (torch.autograd.grad(x.sum(), leaves) for x in (token_loss, expected))
    assert all(map(torch.equal, found, wanted))


def test_functions_refuse_a_backend_without_kernels() -> None:
    tensor = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="backend must be 'cuda', 'triton' or 'cpu', got 'eager'"):
        sk.AlignmentWeightsFunction.apply(tensor, tensor, None, None, "eager")
    with pytest.raises(ValueError, match="backend must be 'cuda', 'triton' or 'cpu', got 'eager'"):
        sk.FineGrainedLossFunction.apply(tensor, tensor, None, None, torch.tensor(1.0), None, True, True, "eager")

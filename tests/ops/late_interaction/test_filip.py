"""FILIP's loss and its module; `tests/ops/contrastive/test_losses.py` holds the loss to the paper's definition."""

from __future__ import annotations

import pytest
import torch

import sparc_kernels as sk
from tests.conftest import device_of
from tests.ops.captions.problems import Shape, leaves_of, make
from tests.ops.late_interaction.test_late_interaction import BACKENDS


def test_module_learns_its_scale() -> None:
    problem = make(Shape(3, 4, 3, 5, 8, "packed"))
    leaves = leaves_of(problem, torch.float32, "cpu")
    module = sk.FilipLoss(logit_scale=5.0)
    loss = module(*leaves, **problem.options)
    expected = sk.filip_loss(*leaves, **problem.options, logit_scale=module.log_logit_scale.detach().exp())
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.backward()
    assert module.log_logit_scale.grad is not None
    assert bool(module.log_logit_scale.grad.isfinite().all())
    assert "logit_scale=5, backend='auto'" in repr(module)
    module.log_logit_scale.data.fill_(9.0)
    module(*leaves, **problem.options)
    assert float(module.logit_scale) == pytest.approx(100.0)
    assert not list(sk.FilipLoss(learn_scale=False).parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_made_in_inference_mode(backend: str) -> None:
    """Also a scale and offsets, which autograd has to keep, in eager's definition as in the kernels."""
    device = device_of(backend)
    problem = make(Shape(3, 4, 3, 5, 8, "packed"))
    images, texts = leaves_of(problem, torch.float32, device)
    options, scale = problem.masks(device), torch.tensor(5.0, device=device)
    expected = torch.autograd.grad(sk.filip_loss(images, texts, **options, logit_scale=scale, backend=backend), images)
    with torch.inference_mode():
        texts, scale = texts.clone(), scale.clone()
        options = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    found = torch.autograd.grad(sk.filip_loss(images, texts, **options, logit_scale=scale, backend=backend), images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_exported_graphs_train() -> None:
    """With other sizes than it was exported with, and gradients that nobody wanted then."""

    class Loss(torch.nn.Module):
        def forward(self, images: torch.Tensor, texts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return sk.filip_loss(images, texts, None, mask, logit_scale=5.0)

    def batch(size: int, tokens: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(size)
        images, texts = (torch.randn(size, n, 8, generator=generator) for n in (4, tokens))
        return images, texts, torch.rand(size, tokens, generator=generator) > 0.3

    b, n = torch.export.Dim("b", min=2, max=64), torch.export.Dim("n", min=2, max=64)
    sizes = {"images": {0: b}, "texts": {0: b, 1: n}, "mask": {0: b, 1: n}}
    exported = torch.export.export(Loss(), batch(3, 5), dynamic_shapes=sizes).module()
    images, texts, mask = batch(6, 9)
    leaves = images.requires_grad_(), texts.requires_grad_()
    found, expected = (torch.autograd.grad(loss(images, texts, mask), leaves) for loss in (exported, Loss()))
    torch.testing.assert_close(found, expected)


def test_an_empty_batch_loses_nothing() -> None:
    images = torch.zeros(0, 3, 4, requires_grad=True)
    loss = sk.filip_loss(images, torch.zeros(0, 2, 4))
    assert loss.item() == 0
    loss.backward()
    assert images.grad is not None

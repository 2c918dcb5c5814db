"""FILIP's loss and its module; `tests/ops/contrastive/test_losses.py` holds the loss to the paper's definition."""

from __future__ import annotations

import pytest
import torch

import sparc_kernels as sk
from tests.ops.late_interaction.test_late_interaction import Shape, leaves_of, make


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


def test_an_empty_batch_loses_nothing() -> None:
    images = torch.zeros(0, 3, 4, requires_grad=True)
    loss = sk.filip_loss(images, torch.zeros(0, 2, 4))
    assert loss.item() == 0
    loss.backward()
    assert images.grad is not None

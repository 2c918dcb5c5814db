"""The global contrastive loss against an independent formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import sparc_kernels as sk
from tests import tolerance


def _independent(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's own way: cross-entropy of both directions against the diagonal."""
    logits = scale * F.cosine_similarity(images[:, None], texts[None], dim=-1, eps=1e-12)
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@pytest.mark.parametrize("batch,width,scale", [(1, 4, 1.0), (5, 16, 1 / 0.07), (33, 100, 100.0)])
def test_against_cross_entropy(batch: int, width: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, width, generator=generator, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(batch, width, generator=generator, dtype=torch.float64, requires_grad=True)
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    expected = _independent(images, texts, logit_scale)
    found = sk.contrastive_loss(images, texts, logit_scale=logit_scale)
    torch.testing.assert_close(found, expected)
    leaves = (images, texts, logit_scale)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(9, 64, generator=generator).to(dtype) for _ in range(2))
    found = sk.contrastive_loss(images, texts)
    assert found.dtype == torch.float32
    truth = sk.contrastive_loss(images.double(), texts.double())
    tolerance.assert_close("loss", found, truth, found, torch.float32)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(2)
    images, texts = (torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t, s: sk.contrastive_loss(i, t, logit_scale=s), (images, texts, scale))


def test_edge_batches() -> None:
    assert sk.contrastive_loss(torch.randn(1, 8), torch.randn(1, 8)) == 0
    assert sk.contrastive_loss(torch.randn(0, 8), torch.randn(0, 8)) == 0
    same = sk.contrastive_loss(torch.zeros(4, 8), torch.randn(4, 8))
    torch.testing.assert_close(same, torch.tensor(4.0).log())

"""SparcLoss: a shell over sparc_loss with a learnable, clamped temperature."""

from __future__ import annotations

import copy
import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _dispatch
from sparc_kernels.functional.alignment import token_losses
from sparc_kernels.ops._room import rooms

V = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0))
T = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()


def test_equals_the_function() -> None:
    module = sk.SparcLoss(local_weight=2.0, global_weight=0.25, similarity_threshold=0.3, reduction="caption")
    expected = sk.sparc_loss(
        V, T, MASK, local_weight=2.0, global_weight=0.25, similarity_threshold=0.3, reduction="caption"
    )
    torch.testing.assert_close(module(V, T, MASK), expected)


def test_sparc_loss_is_the_weighted_sum() -> None:
    out = sk.sparc_loss(V, T, MASK, global_weight=0.5, local_weight=3.0, logit_scale=5.0, return_components=True)
    torch.testing.assert_close(out.loss, 0.5 * out.global_loss + 3.0 * out.local_loss)
    torch.testing.assert_close(out.local_loss, sk.fine_grained_loss(V, T, MASK, logit_scale=5.0))
    tokens = torch.stack([row[mask].mean(0) for row, mask in zip(T, MASK)])
    torch.testing.assert_close(out.global_loss, sk.contrastive_loss(V.mean(1), tokens, logit_scale=5.0))
    assert sk.sparc_loss(V, T, MASK, global_weight=0.5, local_weight=3.0, logit_scale=5.0) == out.loss


def test_own_local_scale_and_global_embeddings() -> None:
    images, texts = torch.randn(3, 5), torch.randn(3, 5)
    out = sk.sparc_loss(
        V, T, MASK, local_logit_scale=2.0, image_embeds=images, text_embeds=texts, return_components=True
    )
    torch.testing.assert_close(out.local_loss, sk.fine_grained_loss(V, T, MASK, logit_scale=2.0))
    torch.testing.assert_close(out.global_loss, sk.contrastive_loss(images, texts))


def test_no_reduction_keeps_tokens() -> None:
    out = sk.sparc_loss(V, T, MASK, reduction="none", return_components=True)
    assert out.local_loss.shape == (3, 4)
    assert (out.local_loss[~MASK] == 0).all()
    torch.testing.assert_close(out.loss, sk.sparc_loss(V, T, MASK))


def test_pooling_ignores_what_is_masked() -> None:
    patch_mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    dirty = V.masked_fill(~patch_mask[..., None], torch.nan)
    dirty_tokens = T.masked_fill(~MASK[..., None], torch.nan)
    clean = sk.sparc_loss(V, T, MASK, patch_mask=patch_mask)
    torch.testing.assert_close(sk.sparc_loss(dirty, dirty_tokens, MASK, patch_mask=patch_mask), clean)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_pooled_embeddings_reach_the_global_loss_as_they_were_made(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very tensors that come out of the pooling, in their own dtype."""
    made: list[Tensor] = []
    received: list[Tensor] = []

    def pooling(*args: Any, **options: Any) -> tuple[Tensor, ...]:
        found = token_losses(*args, **options)
        made.extend(found[1:])
        return found

    def global_loss(*args: Any, **options: Any) -> Tensor:
        received.extend(args)
        return sk.contrastive_loss(*args, **options)

    module = importlib.import_module("sparc_kernels.functional.sparc")
    monkeypatch.setattr(module, "token_losses", pooling)
    monkeypatch.setattr(module, "contrastive_loss", global_loss)
    patches, tokens = torch.randn(4, 6, 8, dtype=torch.bfloat16), torch.randn(4, 5, 8, dtype=torch.bfloat16)
    sk.sparc_loss(patches, tokens, backend=backend)
    assert [x.shape for x in made] == [(4, 8), (4, 8)]
    assert [x.dtype for x in made] == [torch.bfloat16] * 2
    assert [id(x) for x in received] == [id(x) for x in made]


@pytest.mark.parametrize(
    "asked, kernels, given",
    [
        ("cpu", ("cpu",), "cpu"),
        ("cpu", (), "auto"),
        ("eager", ("cpu",), "eager"),
        ("auto", ("cpu",), "auto"),
    ],
)
def test_the_backend_is_that_of_the_global_loss_too(
    asked: str, kernels: tuple[str, ...], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has kernels of that kind, else what ``auto`` gives it; what does not serve there is refused there."""
    seen: list[str] = []

    def global_loss(images: Tensor, texts: Tensor, *, backend: str, **options: Any) -> Tensor:
        seen.append(backend)
        return sk.contrastive_loss(images, texts, **options)

    module = importlib.import_module("sparc_kernels.functional.sparc")
    monkeypatch.setattr(module, "contrastive_loss", global_loss)
    monkeypatch.setattr(
        _dispatch,
        "rooms",
        lambda: tuple(
            replace(room, dtypes={name: room.dtypes.get(name, ()) for name in kernels})
            if room.name == "contrastive"
            else room
            for room in rooms()
        ),
    )
    sk.sparc_loss(torch.randn(2, 3, 8), torch.randn(2, 3, 8), backend=asked)
    assert seen == [given]


def test_scale_learns_and_is_clamped() -> None:
    module = sk.SparcLoss(logit_scale=50.0)
    assert [name for name, _ in module.named_parameters()] == ["log_logit_scale"]
    module(V, T, MASK).backward()
    assert module.log_logit_scale.grad.abs() > 0
    with torch.no_grad():
        module.log_logit_scale.fill_(math.log(1e4))
    module(V, T, MASK)
    torch.testing.assert_close(module.logit_scale, torch.tensor(100.0))
    torch.testing.assert_close(module.log_logit_scale.detach(), torch.tensor([math.log(100.0)]))
    module(V, T, MASK).backward()  # at the bound the gradient still flows, so that the scale can come back
    assert module.log_logit_scale.grad.isfinite()


def test_own_local_scale_is_a_second_parameter() -> None:
    module = sk.SparcLoss(local_logit_scale=3.0)
    module(V, T, MASK).backward()
    assert module.log_local_logit_scale.grad.abs() > 0
    assert module.log_logit_scale.grad.abs() > 0


def test_fixed_scale_has_no_parameters() -> None:
    module = sk.SparcLoss(learn_scale=False)
    assert not list(module.parameters())
    assert "log_logit_scale" in module.state_dict()


def test_state_and_copies() -> None:
    module = sk.SparcLoss(logit_scale=7.0)
    twin = sk.SparcLoss()
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin(V, T, MASK), module(V, T, MASK))
    torch.testing.assert_close(copy.deepcopy(module)(V, T, MASK), module(V, T, MASK))
    assert "logit_scale=7" in repr(module)


@pytest.mark.parametrize("learn", [True, False])
def test_compiles(learn: bool) -> None:
    module = sk.SparcLoss(learn_scale=learn)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(V, T, MASK), module(V, T, MASK))

"""GLoRIA's, PACL's and FLAIR's losses and modules; ``tests/ops/contrastive/test_losses.py`` holds the losses to their
definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from tests.ops.attention_pooling import papers
from tests.ops.contrastive.papers import draw

B, P, L, D, K = 4, 5, 3, 6, 2


class Call(NamedTuple):
    function: Callable[..., Tensor]
    module: Callable[..., Any]
    texts: tuple[int, ...]
    options: dict[str, Any]


CALLS = {
    "gloria": Call(sk.gloria_loss, sk.GloriaLoss, (B, L, D), {}),
    "pacl": Call(sk.pacl_loss, sk.PaclLoss, (B, D), {}),
    "flair": Call(sk.flair_loss, sk.FlairLoss, (B * K, D), {"captions_per_image": K}),
}  # fmt: skip
every = pytest.mark.parametrize("name", CALLS)


def batch(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, captions and a mask of patches, with an image of which none is valid."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(shape, generator=generator).to(dtype) for shape in ((B, P, D), CALLS[name].texts))
    mask = torch.rand(B, P, generator=generator) > 0.3
    mask[0], mask[1] = False, True
    return images.masked_fill(~mask[..., None], torch.nan), texts, mask


def leaves(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    images, texts, mask = batch(name, dtype)
    return images.requires_grad_(), texts.requires_grad_(), mask


def test_options() -> None:
    x = draw(torch.float64, "cpu")
    patches, tokens, captions = x["patches"], x["tokens"], x["captions"]
    scale = {"logit_scale": x["scale"], "backend": "eager"}
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    found = sk.gloria_loss(patches, tokens, None, x["token_mask"], attention_scale=2.0, pooling_scale=3.0, **scale)
    close(found, papers.gloria(x, 2.0, 3.0))
    found = sk.pacl_loss(patches, x["texts"], weights="softmax", attention_scale=3.0, **scale)
    close(found, papers.pacl(x, 3.0, to_one=True))
    options = {"captions_per_image": x["k"], "logit_bias": x["bias"]}
    close(sk.flair_loss(patches, captions, attention_scale=0.7, **options, **scale), papers.flair(x, 0.7))


def test_flair_of_one_patch_is_the_sigmoid_loss() -> None:
    """Beyond logits of 20, where PyTorch's softplus is cut off, too."""
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(6, D, dtype=torch.float64, generator=generator) for _ in range(2))
    options = {"logit_scale": 40.0, "logit_bias": -1.0, "backend": "eager"}
    expected = sk.sigmoid_loss(images, texts, **options)
    torch.testing.assert_close(sk.flair_loss(images[:, None], texts, **options), expected, rtol=1e-14, atol=0.0)


def test_flair_is_a_layer_of_attention() -> None:
    """With one head and tied projections; the loss that of ExplainableML/flair for one caption per image."""
    torch.manual_seed(0)
    patches, texts, m = (torch.randn(*shape, dtype=torch.float64) for shape in ((B, P, D), (B, D), (D, D)))
    layer = torch.nn.MultiheadAttention(D, 1, bias=False, add_zero_attn=True, batch_first=True, dtype=torch.float64)
    layer.in_proj_weight.data = torch.cat([torch.eye(D, dtype=torch.float64), m.T, m.T])
    layer.out_proj.weight.data = torch.eye(D, dtype=torch.float64)
    pooled = layer(texts.expand(B, B, D), patches, patches)[0]  # [images, captions, D]
    logits = 9.0 * torch.cosine_similarity(pooled, texts[None], dim=2) - 4.0
    signs = 2 * torch.eye(B) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / B
    found = sk.flair_loss(patches @ m, texts, logit_scale=9.0, logit_bias=-4.0, backend="eager")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@every
def test_modes(name: str) -> None:
    """Compiled in one graph, transformed, in autocast, of meta tensors; a scale of any shape; one side frozen, or made
    in inference mode."""
    call, (images, texts, mask) = CALLS[name], leaves(name)
    scale = torch.full((1, 1), 7.0, requires_grad=True)
    wanted = (images, texts, scale)

    def loss(images: Tensor, texts: Tensor, scale: Tensor, mask: Tensor = mask) -> Tensor:
        return call.function(images, texts, mask, logit_scale=scale, **call.options)

    value = loss(*wanted)
    expected = torch.autograd.grad(value, wanted)
    assert expected[2].shape == scale.shape
    assert all(bool(grad.isfinite().all()) and float(grad.norm()) > 0 for grad in expected)
    assert bool((expected[0][~mask] == 0).all())
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(*wanted)
    torch.testing.assert_close((compiled, *torch.autograd.grad(compiled, wanted)), (value, *expected))
    fixed = [x.detach() for x in wanted]
    torch.testing.assert_close(torch.func.grad(loss, (0, 1, 2))(*fixed), expected)
    for place, other in ((0, 1), (1, 0)):
        sides = list(fixed)
        sides[place] = wanted[place]
        torch.testing.assert_close(torch.autograd.grad(loss(*sides), wanted[place])[0], expected[place])
        assert not fixed[other].requires_grad
    with torch.inference_mode():
        made = [x.clone() for x in fixed]
    torch.testing.assert_close(torch.autograd.grad(loss(images, *made[1:]), images)[0], expected[0])
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(*wanted)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value, rtol=0.05, atol=0.05)
    assert loss(*(x.to("meta") for x in (*fixed, mask))).shape == ()


@every
def test_module(name: str) -> None:
    call, (images, texts, mask) = CALLS[name], leaves(name)
    module = call.module(**call.options, logit_scale=3.0, learn_scale=True, backend="eager")
    learned = {"log_logit_scale", *(["logit_bias"] if name == "flair" else [])}
    assert {n for n, _ in module.named_parameters()} == learned
    loss = module(images, texts, mask)
    torch.testing.assert_close(loss, call.function(images, texts, mask, logit_scale=3.0, **call.options))
    loss.backward()
    assert all(parameter.grad is not None and float(parameter.grad.abs()) > 0 for parameter in module.parameters())
    assert "logit_scale=3, backend='eager'" in repr(module)
    for parameter in module.parameters():
        parameter.data.fill_(9.0)
    module(images, texts, mask)
    assert module.log_logit_scale.item() == pytest.approx(math.log(100.0))
    module.reset_parameters()
    torch.testing.assert_close(module(images, texts, mask), loss)
    assert not list(call.module(learn_scale=False).parameters())


@every
def test_an_empty_batch_loses_nothing(name: str) -> None:
    images, texts, mask = (x[:0].detach().requires_grad_(x.is_floating_point()) for x in batch(name))
    loss = CALLS[name].function(images, texts, mask, **CALLS[name].options)
    assert loss.item() == 0
    loss.backward()
    assert images.grad is not None


def test_packed_words_are_masked_words() -> None:
    images, texts, mask = leaves("gloria")
    lengths = torch.tensor([2, 0, 3, 1])
    there = torch.arange(L) < lengths[:, None]
    whole = sk.gloria_loss(images, texts, mask, there)
    assert bool(whole.isfinite())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    torch.testing.assert_close(sk.gloria_loss(images, texts[there], mask, cu_seqlens=offsets), whole)


def test_captions_of_an_image_stand_in_a_row() -> None:
    """Each image twice with one caption is not each image with two; a sure model loses nothing."""
    images = torch.eye(B)[:, None]
    texts = torch.eye(B).repeat_interleave(K, 0)
    sure = sk.flair_loss(images, texts, captions_per_image=K, logit_scale=40.0, logit_bias=-20.0)
    assert float(sure) < 1e-6
    turned = sk.flair_loss(images, texts.roll(1, 0), captions_per_image=K, logit_scale=40.0, logit_bias=-20.0)
    assert float(turned) == pytest.approx(2 * 20, rel=1e-3)  # one caption of each image is wrong, twice


V, T, W = torch.randn(B, P, D), torch.randn(B, D), torch.randn(B, L, D)
MISUSE: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("gloria", ValueError, r"text_tokens must have shape \[B, L, D\], got 2 dimensions", {"text_tokens": T}),
    ("gloria", ValueError, r"as many captions as there are images, got 3 captions and 4", {"text_tokens": W[:3]}),
    ("gloria", ValueError, r"attention_scale must be positive, got 0", {"attention_scale": 0}),
    ("gloria", TypeError, r"pooling_scale must be a number, got Tensor", {"pooling_scale": torch.ones(())}),
    ("gloria", ValueError, r"text_mask must have shape \[4, 3\]", {"text_mask": torch.ones(4, 2, dtype=torch.bool)}),
    ("gloria", ValueError, r"gradients must be 'mean' or 'sum', got 'max'", {"gradients": "max"}),
    ("pacl", ValueError, r"text_tokens must have shape \[B, D\], got 3 dimensions", {"text_tokens": W}),
    ("pacl", TypeError, r"text_tokens must be a torch.Tensor of shape \[B, D\], got list", {"text_tokens": [1.0]}),
    ("pacl", ValueError, r"weights must be 'sigmoid' or 'softmax', got 'words_softmax'", {"weights": "words_softmax"}),
    ("pacl", ValueError, r"logit_scale must be positive, got -1", {"logit_scale": -1}),
    ("pacl", ValueError, r"text_tokens and image_tokens must have the same D, got D=5", {"text_tokens": T[:, :5]}),
    ("pacl", ValueError, r"group must be 'world', a ProcessGroup or None, got 'all'", {"group": "all"}),
    ("flair", ValueError, r"hold 2 captions for each image, got 4 captions and 4 images", {"captions_per_image": 2}),
    ("flair", ValueError, r"captions_per_image must be at least 1, got 0", {"captions_per_image": 0}),
    ("flair", TypeError, r"captions_per_image must be an integer, got float", {"captions_per_image": 1.0}),
    ("flair", ValueError, r"logit_bias must be a number or a one-element tensor", {"logit_bias": torch.ones(2)}),
    ("flair", ValueError, r"backend must be one of", {"backend": "gpu"}),
]  # fmt: skip


@pytest.mark.parametrize("name, kind, message, arguments", MISUSE)
def test_misuse(name: str, kind: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(kind, match=message):
        CALLS[name].function(**{"image_tokens": V, "text_tokens": W if name == "gloria" else T} | arguments)


def test_modules_refuse() -> None:
    with pytest.raises(ValueError, match="pooling_scale must be positive, got -1"):
        sk.GloriaLoss(pooling_scale=-1)
    with pytest.raises(ValueError, match="weights must be 'sigmoid' or 'softmax', got 'max'"):
        sk.PaclLoss(weights="max")
    with pytest.raises(TypeError, match="captions_per_image must be an integer, got float"):
        sk.FlairLoss(captions_per_image=2.0)
    with pytest.raises(ValueError, match="logit_bias must be finite, got inf"):
        sk.FlairLoss(logit_bias=float("inf"))
    with pytest.raises(ValueError, match="gradients must be 'mean' or 'sum', got 'max'"):
        sk.FlairLoss(gradients="max")

"""Token reduction and selection against their definitions, token by token in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparc_kernels as sk

B, P, D, K, GROUPS = 4, 7, 6, 3, 2


def patches(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """With NaN in padding: an image with fewer valid patches than K, and one with none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, P, D, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, P, generator=generator) > 0.3
    mask[1], mask[2] = False, torch.arange(P) == 4
    return x.masked_fill(~mask[..., None], torch.nan).to(dtype), mask


def made(name: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    options = {"groups": GROUPS} if name == "TokenReduction" else {}
    module = getattr(sk, name)(D, K, **options).to(dtype)
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module


def grouped(weight: Tensor, x: Tensor) -> Tensor:
    """[D]: each group of outputs sees its group of inputs."""
    blocks = weight.flatten(1).chunk(GROUPS)
    return torch.cat([block @ part for block, part in zip(blocks, x.chunk(GROUPS))])


def reduced(module: Any, x: Tensor, mask: Tensor) -> Tensor:
    """[B, K, D], patch by patch."""
    images = []
    for image, there in zip(x, mask):
        if not there.any():
            images.append(x.new_zeros(K, D))
            continue
        logits, values = [], []
        for patch in image[there]:
            spread = ((patch - patch.mean()).square().mean() + 1e-5).sqrt()
            normal = (patch - patch.mean()) / spread * module.norm.weight + module.norm.bias
            logits.append(module.attention_maps[1].weight.flatten(1) @ grouped(module.attention_maps[0].weight, normal))
            values.append(grouped(module.feat_conv.weight, patch))
        weights = torch.stack(logits).exp()  # [patches, K]
        images.append((weights / weights.sum(0)).T @ torch.stack(values))
    return torch.stack(images)


def selected(module: Any, x: Tensor, mask: Tensor) -> list[list[tuple[int, Tensor]]]:
    """Per image its best patches with their gated tokens, best first."""
    found = []
    for image, there in zip(x, mask):
        rated = [(float((image[p] @ module.weight / module.weight.norm()).detach()), p) for p in range(P) if there[p]]
        best = sorted(rated, key=lambda rate: (-rate[0], rate[1]))[:K]
        gates = [1 / (1 + (-(image[p] @ module.weight) / module.weight.norm()).exp()) for _, p in best]
        found.append([(p, image[p] * gate) for (_, p), gate in zip(best, gates)])
    return found


def grads(total: Tensor, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, [x, *module.parameters()])


def test_reduction() -> None:
    module, (x, mask) = made("TokenReduction"), patches()
    x.requires_grad_()
    found, truth = module(x, mask), reduced(module, x, mask)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(truth)
    torch.testing.assert_close(grads((found * upstream).sum(), module, x), grads((truth * upstream).sum(), module, x))
    assert bool((found[1] == 0).all())
    shares = module.attention(x, mask)
    torch.testing.assert_close(shares.sum(2), mask.any(1)[:, None].double().expand(-1, K))
    assert bool((shares.masked_select(~mask[:, None]) == 0).all())
    whole = torch.ones_like(mask)
    clean = x.detach().nan_to_num()
    assert torch.equal(module(clean), module(clean, whole))


def test_selection() -> None:
    module, (x, mask) = made("TokenSelection"), patches()
    x.requires_grad_()
    found, truth = module(x, mask), selected(module, x, mask)
    upstream, expected = torch.randn_like(found.tokens), x.new_zeros(())
    for i, best in enumerate(truth):
        assert found.mask[i].tolist() == [k < len(best) for k in range(K)]
        for k, (patch, token) in enumerate(best):
            assert int(found.indices[i, k]) == patch
            torch.testing.assert_close(found.tokens[i, k], token)
            expected = expected + (token * upstream[i, k]).sum()
    assert bool((found.tokens[~found.mask] == 0).all())
    gradients = grads((found.tokens * upstream).sum(), module, x)
    torch.testing.assert_close(gradients, grads(expected, module, x))
    assert float(gradients[1].norm()) > 0
    equal = torch.ones(1, P, D, dtype=torch.float64)
    assert module(equal).indices.tolist() == [list(range(K))]


def test_a_loss_of_cosines_does_not_see_the_gate() -> None:
    """As its docstring says, and the way around that docs/losses.md shows."""
    module, (x, mask), texts = made("TokenSelection"), patches(), torch.randn(B, 5, D, dtype=torch.float64)
    chosen = module(x, mask)
    (blind,) = torch.autograd.grad(sk.filip_loss(chosen.tokens, texts, chosen.mask), module.weight)
    assert float(blind.norm()) < 1e-12
    chosen = module(F.normalize(x, dim=-1), mask)
    scores = sk.late_interaction_scores(
        chosen.tokens, F.normalize(texts, dim=-1), chosen.mask, normalize=False, direction="text_to_image"
    )
    (seen,) = torch.autograd.grad(scores.text_scores.diagonal().sum(), module.weight)
    assert float(seen.norm()) > 1e-3


@pytest.mark.parametrize("name", ["TokenReduction", "TokenSelection"])
def test_modes(name: str) -> None:
    """Compiled in one graph, transformed, in autocast and bfloat16, on meta tensors, copied through a checkpoint."""
    module, (x, mask) = made(name, torch.float32), patches(torch.float32)
    tokens = lambda found: found if name == "TokenReduction" else found.tokens  # noqa: E731
    expected = tokens(module(x, mask))
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(tokens(compiled(x, mask)), expected)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(tokens(module(leaf, mask)).square().sum(), leaf)
    parameters = dict(module.named_parameters())

    def loss(y: Tensor) -> Tensor:
        return tokens(torch.func.functional_call(module, parameters, (y, mask))).square().sum()

    torch.testing.assert_close(torch.func.grad(loss)(x), grad)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(tokens(module(x.bfloat16(), mask)).float(), expected, rtol=0.05, atol=0.05)
    assert bool(tokens(module.bfloat16()(x.bfloat16(), mask)).isfinite().all())
    module = made(name, torch.float32)
    assert tokens(module.to("meta")(x.to("meta"), mask.to("meta"))).shape == expected.shape
    again = getattr(sk, name)(D, K, **({"groups": GROUPS} if name == "TokenReduction" else {}))
    again.load_state_dict(made(name, torch.float32).state_dict())
    assert torch.equal(tokens(again(x, mask)), expected)
    assert tokens(again(x[:0], mask[:0])).shape == (0, K, D)


def test_parameters_have_the_names_and_shapes_of_the_public_code() -> None:
    shapes = {name: tuple(x.shape) for name, x in sk.TokenReduction(16, 3).state_dict().items()}
    assert shapes == {
        "norm.weight": (16,),
        "norm.bias": (16,),
        "attention_maps.0.weight": (16, 2, 1, 1),
        "attention_maps.1.weight": (3, 16, 1, 1),
        "feat_conv.weight": (16, 2, 1, 1),
    }


X, MASK = torch.randn(B, P, D), torch.ones(B, P, dtype=torch.bool)


@pytest.mark.parametrize("name", ["TokenReduction", "TokenSelection"])
@pytest.mark.parametrize(
    "kind, message, arguments",
    [
        (TypeError, r"image_tokens must be a torch.Tensor of shape \[B, P, D\], got list", ([1.0],)),
        (ValueError, r"image_tokens must have shape \[B, P, D\], got 2 dimensions", (X[0],)),
        (ValueError, r"image_tokens must have width 6, got \[4, 7, 5\]", (X[..., :5],)),
        (TypeError, r"must have the dtype of the module's parameters, torch.float32, got torch.float64", (X.double(),)),
        (ValueError, r"must be on the device of the module's parameters, got meta and cpu", (X.to("meta"),)),
        (ValueError, r"image_mask must have shape \[4, 7\]", (X, MASK[:, :6])),
        (TypeError, r"image_mask must have dtype torch.bool", (X, MASK.float())),
    ],
)  # fmt: skip
def test_misuse(name: str, kind: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(kind, match=message):
        made(name, torch.float32)(*arguments)


def test_modules_refuse() -> None:
    with pytest.raises(ValueError, match="groups must divide width 12, got 8"):
        sk.TokenReduction(12, 3)
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        sk.TokenSelection(12, 0)
    with pytest.raises(TypeError, match="width must be an integer, got float"):
        sk.TokenSelection(12.0, 3)
    with pytest.raises(ValueError, match=r"image_tokens must have at least 3 tokens, got \[4, 2, 6\]"):
        made("TokenSelection", torch.float32)(X[:, :2])

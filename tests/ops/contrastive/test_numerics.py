"""Half precision on matched pairs, where a target inside a rounded gradient or rounded features are seen.

With random pairs every route looks alike: the rounding of the result hides the rest. The criterion is tried on planted
faults, which it has to reject.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import Ids, Labels, Pairs
from tests.conftest import device_of
from tests.ops.contrastive.test_similarity import FUSED

BATCH, WIDTH = 128, 64
SETTINGS = [(0.5, 1 / 0.07), (0.9, 1 / 0.07), (0.5, 100.0), (0.9, 100.0)]  # cosine of the pairs, scale
BIAS = -10.0
# Relative errors (L2). bfloat16 rounds the sum of two gradients, each rounded before: 1.7e-3 thrice at most.
GRADIENT, LOSS, NUMBER = 4e-3, 1e-3, 1e-3


def matched(cosine: float, batch: int) -> tuple[Tensor, Tensor]:
    """Pairs of that cosine and of norms from 0.5 to 2, in bfloat16."""
    generator = torch.Generator().manual_seed(int(100 * cosine) + batch)
    images, noise = (torch.randn(batch, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    noise = noise - images * (noise * images).sum(1, keepdim=True) / images.square().sum(1, keepdim=True)
    texts = cosine * F.normalize(images, dim=-1) + (1 - cosine**2) ** 0.5 * F.normalize(noise, dim=-1)
    norms = 0.5 + 1.5 * torch.rand(2, batch, 1, generator=generator, dtype=torch.float64)
    images, texts = F.normalize(images, dim=-1) * norms[0], texts * norms[1]
    return images.to(torch.bfloat16), texts.to(torch.bfloat16)


def judge(found: dict[str, Tensor | None], truth: dict[str, Tensor]) -> None:
    """The criterion."""
    for name, expected in truth.items():
        value = found[name]
        assert value is not None, f"{name} has no gradient"
        error = float((value.detach().cpu().double() - expected).norm() / expected.norm())
        bound = LOSS if name == "loss" else NUMBER if expected.dim() == 0 else GRADIENT
        assert error <= bound, f"{name}: error {error:.2g} exceeds {bound:.2g}"


def results(loss: Callable[..., Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    value = loss(**leaves)
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {"loss": value.detach(), **dict(zip(leaves, grads))}


def softmax_truth(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Of one positive per row, from float64 logits: exact where its probability is 1 but for a rounding."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    negatives = logits.masked_fill(torch.eye(len(logits)) == 1, -torch.inf)
    rows, cols = (negatives.logsumexp(dim) - logits.diagonal() for dim in (1, 0))
    return (rows.logaddexp(torch.zeros_like(rows)) + cols.logaddexp(torch.zeros_like(cols))).mean() / 2


def sigmoid_truth(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T + bias
    signed = torch.where(torch.eye(len(logits)) == 1, -logits, logits)
    return signed.logaddexp(torch.zeros_like(signed)).sum() / len(logits)


def truths(
    sigmoid: bool, cosine: float, scale: float, batch: int = BATCH
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs, and what they give in float64."""
    images, texts = matched(cosine, batch)
    numbers = {"scale": torch.tensor(scale)} | ({"bias": torch.tensor(BIAS)} if sigmoid else {})
    inputs = {"images": images, "texts": texts, **numbers}
    found = results(sigmoid_truth if sigmoid else softmax_truth, {name: x.double() for name, x in inputs.items()})
    return inputs, {name: x for name, x in found.items() if x is not None}


# The backends


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("targets", ["diagonal", "pairs", "labels"])
@pytest.mark.parametrize("cosine, scale", SETTINGS)
def test_contrastive_loss(cosine: float, scale: float, targets: str, backend: str) -> None:
    if targets == "labels" and scale == 100:
        pytest.skip("a loss of 1e-12: one minus a probability inside a tile; Pairs are for that (docs/losses.md)")
    inputs, truth = truths(False, cosine, scale)
    i = torch.arange(BATCH + 1, device=device_of(backend))
    chosen: dict[str, Any] = {"diagonal": None, "pairs": Pairs(i, i[:-1]), "labels": Labels(i[:-1], i[:-1])}

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return sk.contrastive_loss(images, texts, logit_scale=scale, backend=backend, targets=chosen[targets])

    judge(results(loss, {name: x.to(device_of(backend)) for name, x in inputs.items()}), truth)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("cosine, scale", SETTINGS)
def test_sigmoid_loss(cosine: float, scale: float, backend: str) -> None:
    inputs, truth = truths(True, cosine, scale)

    def loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sk.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias, backend=backend)

    judge(results(loss, {name: x.to(device_of(backend)) for name, x in inputs.items()}), truth)


# The criterion, on a computation as the kernels do it and on its faults


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def emulated(inputs: dict[str, Tensor], fault: str = "") -> dict[str, Tensor | None]:
    """CLIP's loss with a bfloat16 operand of the gradient's products, in float32 otherwise."""
    images, texts, scale = (inputs[name].float() for name in ("images", "texts", "scale"))
    if fault == "rounded features":
        images, texts = (rounded(F.normalize(x, dim=-1)) for x in (images, texts))
    a, b = (1 / x.norm(dim=1) for x in (images, texts))
    cosines = (images @ texts.T) * a[:, None] * b
    positive = (images * texts).sum(1) * a * b
    logits, p = scale * cosines, scale * positive
    eye = torch.eye(len(images)) == 1
    out = eye.roll(1, 1) if fault == "id off by one" else torch.zeros_like(eye) if fault == "target inside" else eye
    logits = logits.masked_fill(out, -torch.inf)
    row_lse, col_lse = logits.logsumexp(1), logits.logsumexp(0)
    if fault == "column merge without the maximum":
        parts = logits.unflatten(0, (4, -1))
        top = parts.amax(1)
        col_lse = top.amax(0) + (parts - top[:, None]).exp().sum((0, 1)).log()
    if fault == "target inside":
        losses, pulls = [lse - p for lse in (row_lse, col_lse)], [torch.ones_like(p), torch.ones_like(p)]
    else:
        losses = [F.softplus(lse - p) for lse in (row_lse, col_lse)]
        pulls = [torch.sigmoid(lse - p) for lse in (row_lse, col_lse)]
    g, h = (x / (2 * len(p)) for x in pulls)
    of_logits = g[:, None] * (logits - row_lse[:, None]).exp() + h * (logits - col_lse).exp()
    operand = rounded(scale * of_logits * a[:, None] * b)
    of_positives = -(g + h)
    grads = []
    for own, other, product, own_inverse, other_inverse in (
        (images, texts, operand, a, b), (texts, images, operand.T, b, a),
    ):  # fmt: skip
        if fault == "dY accumulated in bfloat16" and own is texts:
            w = torch.zeros_like(own)
            for some, rows in zip(product.split(4, 1), other.split(4)):
                w = rounded(w + some @ rows)
        else:
            w = product @ other
        first = w - own * ((own * w).sum(1) * own_inverse.square())[:, None]
        pull = of_positives * scale
        second = (pull * own_inverse * other_inverse)[:, None] * other
        second = second - (pull * positive * own_inverse.square())[:, None] * own
        grads.append(rounded(rounded(first) + rounded(second)))
    of_scale = (of_logits * torch.where(out, 0.0, cosines)).sum() + (of_positives * positive).sum()
    if fault == "rounded features":  # with the gradient of the normalisation, of the raw embeddings
        for i, name in enumerate(("images", "texts")):
            grads[i] = rounded(grads[i] / inputs[name].float().norm(dim=1, keepdim=True))
    return {"loss": torch.stack(losses).mean(), "images": grads[0], "texts": grads[1], "scale": of_scale}


@pytest.mark.parametrize("cosine, scale", SETTINGS)
def test_a_sound_computation_passes(cosine: float, scale: float) -> None:
    inputs, truth = truths(False, cosine, scale)
    judge(emulated(inputs), truth)


FAULTS = {
    "target inside": "(loss|images|texts|scale): error",
    "rounded features": "(loss|images|texts|scale): error",
    "id off by one": "(loss|images): error",
    "column merge without the maximum": "(loss|images): error",
}


@pytest.mark.parametrize("cosine, scale", SETTINGS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, cosine: float, scale: float) -> None:
    inputs, truth = truths(False, cosine, scale)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        judge(emulated(inputs, fault), truth)


def test_an_accumulator_in_bfloat16_is_seen() -> None:
    """It takes many chunks of rows: 256 here."""
    inputs, truth = truths(False, 0.5, 1 / 0.07, batch=1024)
    judge(emulated(inputs), truth)
    with pytest.raises(AssertionError, match="texts: error"):
        judge(emulated(inputs, "dY accumulated in bfloat16"), truth)


def test_a_missing_gradient_is_seen() -> None:
    """open_clip's loss of softmax takes a bias and gives it none."""
    inputs, truth = truths(True, 0.9, 10.0)

    def forgetful(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sk.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias.detach(), backend="eager")

    with pytest.raises(AssertionError, match="bias has no gradient"):
        judge(results(forgetful, inputs), truth)


def test_random_pairs_would_show_nothing() -> None:
    """Why these pairs are matched: at cosine 0 a target inside the rounded gradient passes."""
    inputs, truth = truths(False, 0.0, 1 / 0.07)
    judge(emulated(inputs, "target inside"), truth)


def test_ids_take_the_positives_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id off by one in the call itself."""
    inputs, truth = truths(False, 0.9, 1 / 0.07)
    i = torch.arange(BATCH)

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        stats = sk.similarity_logsumexp(images, texts, row_scale=scale, exclude=Ids(i, i + 1), backend="eager")
        p = scale * sk.paired_cosines(images, texts)
        return (F.softplus(stats.row_lse - p) + F.softplus(stats.col_lse - p)).mean() / 2

    with pytest.raises(AssertionError, match="loss: error"):
        judge(results(loss, inputs), truth)

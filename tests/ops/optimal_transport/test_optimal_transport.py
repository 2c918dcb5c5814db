"""Transport distances, plans and their gradients on every backend, against float64 truth."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _native
from sparc_kernels.ops._registration import kernel
from sparc_kernels.ops.optimal_transport.reference import optimal_transport_reference, transport_reference
from sparc_kernels.ops.optimal_transport.room import ROOM
from tests import tolerance
from tests.conftest import device_of, dtypes_of

BACKENDS = ["eager", *ROOM.dtypes]
FUSED = BACKENDS[1:]
needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))
EVERY = [
    pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
    for backend in BACKENDS
    for dtype in dtypes_of(backend)
]


class Shape(NamedTuple):
    pairs: int
    patches: int
    tokens: int
    channels: int
    masked: bool = False
    lean: float = 0.0  # of tokens to patches, as trained ones do


SHAPES = (
    Shape(3, 7, 5, 12),
    Shape(2, 33, 18, 24, masked=True, lean=3.0),  # no whole vectors, more than one block of patches
    Shape(2, 4, 9, 17, masked=True),  # fewer patches than tokens
    Shape(1, 1, 1, 2),
    Shape(0, 4, 3, 8),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},  # UNITER's
    {"beta": 0.004, "iterations": 6},  # exp(-C / beta) is out of range
    {"proximal": False, "beta": 0.1, "iterations": 9},
    {"proximal": False, "beta": 0.005, "iterations": 4},
    {"iterations": 1},
)


class Problem(NamedTuple):
    image_tokens: Tensor
    text_tokens: Tensor
    masks: dict[str, Tensor]
    upstream: Tensor


def make(shape: Shape) -> Problem:
    """In float64, of numbers that bfloat16 holds exactly; NaN in padding."""
    generator = torch.Generator().manual_seed(sum(shape[:4]))
    b, p, length, d, masked, lean = shape
    images = torch.randn(b, p, d, generator=generator)
    texts = torch.randn(b, length, d, generator=generator) + lean * images[:, torch.arange(length) % p]
    masks: dict[str, Tensor] = {}
    if masked:
        for name, n in (("image_mask", p), ("text_mask", length)):
            masks[name] = torch.rand(b, n, generator=generator) > 0.3
            masks[name][:, 0] = True
    images, texts = (x.bfloat16().double() for x in (images, texts))
    for x, mask in zip((images, texts), masks.values()):
        x[~mask] = torch.nan
    return Problem(images, texts, masks, torch.randn(b, generator=generator, dtype=torch.float64))


def results(
    function: Any, problem: Problem, dtype: torch.dtype, device: torch.device | str = "cpu", **options: Any
) -> list[Tensor]:
    """The distance and both gradients."""
    leaves = [x.to(device, dtype).requires_grad_() for x in problem[:2]]
    distance = function(*leaves, **{name: mask.to(device) for name, mask in problem.masks.items()}, **options)
    total = (distance * problem.upstream.to(distance)).sum()
    return [distance.detach(), *torch.autograd.grad(total, leaves)]


def check(problem: Problem, backend: str, dtype: torch.dtype, **options: Any) -> None:
    found = results(sk.optimal_transport_distance, problem, dtype, device_of(backend), backend=backend, **options)
    truth = results(optimal_transport_reference, problem, torch.float64, **options)
    plain = results(optimal_transport_reference, problem, dtype if dtype.itemsize == 8 else torch.float32, **options)
    if dtype.itemsize == 2:  # of similarities in half precision eager makes another plan
        plain = [plain[0], *(x.to(dtype).double() for x in truth[1:])]
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name, one, exact, made in zip(("distance", "image", "text"), found, truth, plain):
        tolerance.assert_close(name, one, exact, made, dtype, 1e-3)
    for grad, mask in zip(found[1:], problem.masks.values()):
        assert not grad[~mask.to(grad.device)].any()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape[:4])))
@pytest.mark.parametrize("backend, dtype", EVERY)
def test_against_truth(shape: Shape, backend: str, dtype: torch.dtype) -> None:
    check(make(shape), backend, dtype, iterations=12 if backend == "triton" else 50)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())) or "uniter")
@pytest.mark.parametrize("backend", FUSED)
def test_options(options: dict[str, Any], backend: str) -> None:
    check(make(SHAPES[1]), backend, torch.float32, **options)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=lambda options: "-".join(map(str, options.values())) or "uniter")
@pytest.mark.parametrize("backend", FUSED)
def test_plans(options: dict[str, Any], backend: str) -> None:
    problem = make(SHAPES[1])
    device = device_of(backend)
    images, texts = (x.to(device, torch.float32) for x in problem[:2])
    masks = {name: mask.to(device) for name, mask in problem.masks.items()}
    known: dict[str, Any] = {**masks, **options}
    found, made = (sk.transport_plan(images, texts, **known, backend=x) for x in (backend, "eager"))
    known = {**problem.masks, **options}
    truth = transport_reference(problem.image_tokens, problem.text_tokens, **known)[1]
    tolerance.assert_close("plan", found, truth, made, torch.float32)
    valid = masks["text_mask"][:, :, None] & masks["image_mask"][:, None]
    assert not found[~valid].any()
    rows = torch.where(masks["text_mask"], 1 / masks["text_mask"].sum(1, keepdim=True), 0.0)
    torch.testing.assert_close(found.sum(2), rows, rtol=1e-5, atol=1e-7)


def uniter(images: Tensor, texts: Tensor, beta: float, iterations: int) -> tuple[Tensor, Tensor]:
    """UNITER's word-region alignment of one pair, whole: matrices of the kernel and the plan, one inner step."""
    cost = 1 - F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T  # [L, P]
    n, m = cost.shape
    sigma, plan, kernel_matrix = torch.full((n,), 1 / n).double(), torch.ones_like(cost), (-cost / beta).exp().detach()
    for _ in range(iterations):
        scaled = kernel_matrix * plan
        delta = 1 / (m * (sigma @ scaled))
        sigma = 1 / (n * (scaled @ delta))
        plan = sigma[:, None] * scaled * delta
    return (cost * plan).sum(), plan


def test_the_definition() -> None:
    """The reference against UNITER's scheme, pair by pair, gradients included."""
    problem = make(SHAPES[1])
    leaves = [x.clone().requires_grad_() for x in problem[:2]]
    distances, plans = [], transport_reference(*problem[:2], **problem.masks)[1]
    for i in range(SHAPES[1].pairs):
        patches, words = problem.masks["image_mask"][i], problem.masks["text_mask"][i]
        distance, plan = uniter(leaves[0][i][patches], leaves[1][i][words], 0.5, 50)
        distances.append(distance)
        torch.testing.assert_close(plans[i][words][:, patches], plan, rtol=1e-12, atol=1e-14)
    grads = torch.autograd.grad((torch.stack(distances) * problem.upstream).sum(), leaves)
    expected = [torch.stack(distances).detach(), *grads]
    torch.testing.assert_close(results(optimal_transport_reference, problem, torch.float64), expected)


def test_many_steps_arrive_at_the_cheapest_assignment() -> None:
    """As many tokens as patches: the plan is a permutation, found here by trying all of them."""
    problem = make(Shape(2, 5, 5, 8))
    cosines = F.normalize(problem.text_tokens, dim=-1) @ F.normalize(problem.image_tokens, dim=-1).transpose(1, 2)
    orders = torch.cartesian_prod(*[torch.arange(5)] * 5)
    orders = orders[torch.stack([row.unique().numel() == torch.tensor(5) for row in orders])]
    costs = (1 - cosines[:, torch.arange(5), orders]).mean(-1)  # [pairs, orders]
    distance = optimal_transport_reference(*problem[:2], beta=0.05, iterations=400)
    torch.testing.assert_close(distance, costs.amin(1), rtol=1e-6, atol=0)


def test_entropic_plans_have_both_marginals() -> None:
    problem = make(SHAPES[0])
    plan = sk.transport_plan(*problem[:2], proximal=False, beta=0.2, iterations=300, backend="eager")
    torch.testing.assert_close(plan.sum(1), torch.full((3, 7), 1 / 7, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges(backend: str) -> None:
    """Nothing valid: 0 and no gradient; NaN stays with its pair; equal rows share alike; a zero vector costs 1."""
    device = device_of(backend)
    images, texts = (x.to(device, torch.float32) for x in make(Shape(6, 4, 3, 8))[:2])
    image_mask = torch.ones(6, 4, dtype=torch.bool, device=device)
    text_mask = torch.ones(6, 3, dtype=torch.bool, device=device)
    image_mask[0], text_mask[1] = False, False
    images[2, 1, 3] = torch.nan
    images[3], texts[3] = images[3, :1], texts[3, :1]
    texts[4] = 0
    leaves = images.requires_grad_(), texts.requires_grad_()
    options: dict[str, Any] = {"iterations": 5, "backend": backend}
    distance = sk.optimal_transport_distance(*leaves, image_mask, text_mask, **options)
    grads = torch.autograd.grad(distance.sum(), leaves)
    assert distance.detach()[:2].tolist() == [0.0, 0.0]
    assert distance[2].isnan()
    assert distance[3:].isfinite().all()
    expected = 1 - F.cosine_similarity(images[3, 0], texts[3, 0], dim=0)
    torch.testing.assert_close(distance[3], expected)
    torch.testing.assert_close(distance[4], torch.ones_like(distance[4]))
    for grad in grads:
        assert not grad[:2].any()
        assert grad[2].isnan().any()
        assert grad[3:].isfinite().all()
    plan = sk.transport_plan(*leaves, image_mask, text_mask, **options)
    torch.testing.assert_close(plan[3], torch.full_like(plan[3], 1 / 12))
    assert not plan[:2].any()
    assert not plan.requires_grad


@pytest.mark.parametrize("backend", FUSED)
def test_frozen_sides_get_nothing(backend: str) -> None:
    problem = make(SHAPES[0])
    whole = results(sk.optimal_transport_distance, problem, torch.float32, device_of(backend), backend=backend)[1:]
    for frozen in (0, 1):
        leaves = [x.to(device_of(backend), torch.float32) for x in problem[:2]]
        leaves[1 - frozen].requires_grad_()
        distance = sk.optimal_transport_distance(*leaves, backend=backend)
        total = (distance * problem.upstream.to(distance)).sum()
        (grad,) = torch.autograd.grad(total, leaves[1 - frozen])
        assert torch.equal(grad, whole[1 - frozen])


@pytest.mark.parametrize("backend", FUSED)
def test_strides(backend: str) -> None:
    problem = make(Shape(2, 9, 5, 12, masked=True))
    plain = results(sk.optimal_transport_distance, problem, torch.float32, device_of(backend), backend=backend)
    device = device_of(backend)
    leaves = [x.to(device, torch.float32).transpose(1, 2).contiguous().transpose(1, 2) for x in problem[:2]]
    leaves[1] = torch.stack([leaves[1], leaves[1]], -1)[..., 0]
    leaves = [x.requires_grad_() for x in leaves]
    masks = {name: mask.to(device).T.contiguous().T for name, mask in problem.masks.items()}
    distance = sk.optimal_transport_distance(*leaves, **masks, backend=backend)
    grads = torch.autograd.grad((distance * problem.upstream.to(distance)).sum(), leaves)
    torch.testing.assert_close([distance.detach(), *grads], plain)


@needs_cpu_half
@pytest.mark.usefixtures("threads")
def test_same_bits_on_any_number_of_threads() -> None:
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(results(sk.optimal_transport_distance, make(SHAPES[1]), torch.float32, backend="cpu"))
    assert all(torch.equal(one, other) for one, other in zip(*found))


@needs_cpu_half
@pytest.mark.parametrize("dtype", dtypes_of("cpu"))
def test_every_instruction_set(dtype: torch.dtype, capability: str) -> None:
    for options in OPTIONS[:3]:
        check(make(SHAPES[1]), "cpu", dtype, **options)


@pytest.mark.parametrize("backend", FUSED)
def test_potentials_are_kept_and_nothing_else(backend: str) -> None:
    """The plan is made of them: exp(t S + f + g)."""
    problem = make(SHAPES[0])
    images, texts = (x.to(device_of(backend), torch.float32) for x in problem[:2])
    beta = torch.tensor(0.5, device=images.device)
    forward = kernel("transport_forward", backend)
    _, potentials, none = forward(images, texts, None, None, beta, 8, True, False, "highest")
    assert none.shape == (0,)
    plan = forward(images, texts, None, None, beta, 8, True, True, "highest")[2]
    cosines = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).transpose(1, 2)
    f, g = potentials.split([5, 7], 1)
    torch.testing.assert_close((8 / 0.5 * cosines + f[:, :, None] + g[:, None]).exp(), plan, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    problem = make(SHAPES[0])
    device = device_of(backend)
    images, texts = (x.to(device, torch.float32).requires_grad_() for x in problem[:2])
    options: dict[str, Any] = {"iterations": 4, "backend": backend}
    with torch.autocast(device, torch.bfloat16):
        distance = sk.optimal_transport_distance(images, texts, **options)
    expected = sk.optimal_transport_distance(images.bfloat16(), texts.bfloat16(), **options)
    torch.testing.assert_close(distance, expected, rtol=0, atol=0)
    assert torch.autograd.grad(distance.sum(), images)[0].dtype == torch.float32


def test_word_region_alignment() -> None:
    """UNITER's loss: distances of matched pairs minus those of the others, over all; no pair, no loss."""
    problem = make(SHAPES[0])
    distance = sk.optimal_transport_distance(*problem[:2])
    matched = torch.tensor([True, False, True])
    loss = sk.word_region_alignment_loss(*problem[:2], matched=matched)
    torch.testing.assert_close(loss, (distance[0] - distance[1] + distance[2]) / 3)
    torch.testing.assert_close(sk.word_region_alignment_loss(*problem[:2]), distance.mean())
    assert sk.word_region_alignment_loss(torch.zeros(0, 3, 4), torch.zeros(0, 2, 4)).item() == 0


def test_exported_graphs_train() -> None:
    """With other sizes than it was exported with."""

    class Loss(torch.nn.Module):
        def forward(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
            return sk.word_region_alignment_loss(images, texts, None, mask, iterations=5)

    def batch(size: int, tokens: int) -> tuple[Tensor, ...]:
        problem = make(Shape(size, 4, tokens, 8, masked=True))
        return (*(x.nan_to_num().float() for x in problem[:2]), problem.masks["text_mask"])

    b, n = torch.export.Dim("b", min=2, max=64), torch.export.Dim("n", min=2, max=64)
    sizes = {"images": {0: b}, "texts": {0: b, 1: n}, "mask": {0: b, 1: n}}
    exported = torch.export.export(Loss(), batch(3, 5), dynamic_shapes=sizes).module()
    images, texts, mask = batch(6, 9)
    leaves = images.requires_grad_(), texts.requires_grad_()
    found, expected = (torch.autograd.grad(loss(images, texts, mask), leaves) for loss in (exported, Loss()))
    torch.testing.assert_close(found, expected)

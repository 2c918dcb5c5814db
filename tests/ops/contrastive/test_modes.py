"""The modes in which people call the losses: compiled with changing sizes, a side frozen, transformed, exported, ...

tests/test_rooms.py tries most of them with nothing but embeddings; here are targets, exclusions, teachers and queues.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import sparc_kernels as sk
from sparc_kernels import Above, Ids, Labels, Pairs, Teacher
from tests.conftest import device_of
from tests.modes import CLOSE, GradientsWritten, graphs
from tests.ops.contrastive.test_similarity import BACKENDS, FUSED

B, D, K, Q = 6, 8, 5, 3
Loss = Callable[..., Tensor]


class Batch:
    """Matched pairs, and what the losses may be given with them."""

    def __init__(self, backend: str, size: int = B, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device_of(backend))

        self.images, self.queue = normal(size, D), normal(Q, D)
        self.texts = self.images + normal(size, D)
        self.guide = normal(size, K), normal(size + Q, K)
        self.scale = torch.tensor(5.0, device=device_of(backend))
        self.bias = torch.tensor(-2.0, device=device_of(backend))
        self.weights = torch.rand(size, generator=generator).to(device_of(backend))
        i = torch.arange(size, device=device_of(backend))
        self.ids = i // 2
        self.indptr = torch.cat([i.new_zeros(1), i + 1])
        self.next = (i + 1) % size
        for leaf in self.leaves:
            leaf.requires_grad_()

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.images, self.texts, self.scale


def plain(x: Batch, images: Tensor, texts: Tensor, scale: Tensor, backend: str) -> Tensor:
    return sk.contrastive_loss(images, texts, logit_scale=scale, backend=backend)


def labels(x: Batch, images: Tensor, texts: Tensor, scale: Tensor, backend: str) -> Tensor:
    return sk.contrastive_loss(
        images, texts, logit_scale=scale, backend=backend, targets=Labels(x.ids, x.ids),
        exclude=Pairs(x.indptr, x.next), weights=x.weights,
    )  # fmt: skip


def pairs(x: Batch, images: Tensor, texts: Tensor, scale: Tensor, backend: str) -> Tensor:
    return sk.contrastive_loss(
        images, texts, logit_scale=scale, backend=backend, extra_texts=x.queue,
        targets=Pairs(x.indptr, x.next, x.weights),
        exclude=[Ids(x.ids, x.ids), Pairs(x.indptr, x.next), Above(x.guide[0], x.guide[1][: len(texts)], 0.3)],
    )  # fmt: skip


def teacher(x: Batch, images: Tensor, texts: Tensor, scale: Tensor, backend: str) -> Tensor:
    return sk.contrastive_loss(
        images, texts, logit_scale=scale, backend=backend, teacher=Teacher(*x.guide, 3.0), alpha=0.4,
        label_smoothing=0.1, extra_texts=x.queue,
    )  # fmt: skip


def sigmoid(x: Batch, images: Tensor, texts: Tensor, scale: Tensor, backend: str) -> Tensor:
    return sk.sigmoid_loss(
        images, texts, logit_scale=scale, logit_bias=x.bias, backend=backend, targets=Pairs(x.indptr, x.next),
        exclude=Ids(x.ids, x.ids.clone()),
    )  # fmt: skip


def plain_sigmoid(x: Batch, images: Tensor, texts: Tensor, scale: Tensor, backend: str) -> Tensor:
    return sk.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=x.bias, backend=backend)


LOSSES: tuple[Loss, ...] = (plain, labels, pairs, teacher, sigmoid)
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
backends = pytest.mark.parametrize("backend", BACKENDS)


def gradients(loss: Loss, x: Batch, backend: str) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(x, *x.leaves, backend), x.leaves)


# torch.compile


@pytest.mark.parametrize("backend", FUSED or BACKENDS)
@losses
def test_one_graph_for_all_sizes(loss: Loss, backend: str) -> None:
    calls = []
    for size in (6, 9, 4):
        x = Batch(backend, size)
        calls.append((*x.leaves, x.ids, x.indptr, x.next, x.weights, *x.guide))

    def function(images: Tensor, texts: Tensor, scale: Tensor, *others: Tensor) -> Tensor:
        x = Batch.__new__(Batch)
        x.ids, x.indptr, x.next, x.weights, *x.guide = others  # type: ignore[assignment]
        x.queue, x.bias = queue, bias
        return loss(x, images, texts, scale, backend)

    queue, bias = Batch(backend).queue, Batch(backend).bias
    counts = graphs(function, calls, dynamic=True)
    assert counts[-1] == counts[0]


@backends
@losses
def test_compiled_gradients(loss: Loss, backend: str) -> None:
    x = Batch(backend)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *leaves: loss(x, *leaves, backend), fullgraph=True, backend="aot_eager")
    for one, other in zip(torch.autograd.grad(compiled(*x.leaves), x.leaves), gradients(loss, x, backend)):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", ["logit_scale", "alpha", "label_smoothing"])
def test_a_ramp_takes_two_graphs(name: str) -> None:
    """The first value as a constant, any other as an input: ALBEF's alpha rises over the first epoch."""
    x = Batch("eager")

    def function(value: float) -> Tensor:
        options: dict[str, Any] = {
            "logit_scale": 5.0,
            "teacher": Teacher(x.guide[0], x.guide[1][:B], 3.0),
            "alpha": 0.4,
        }
        return sk.contrastive_loss(x.images, x.texts, **options | {name: value})

    counts = graphs(function, [(value,) for value in (0.11, 0.23, 0.31, 0.42, 0.53, 0.64)], dynamic=None)
    assert counts[-1] <= 2


# Frozen sides, inference mode


@backends
@losses
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1)])
def test_frozen_sides(frozen: tuple[int, ...], loss: Loss, backend: str) -> None:
    """The gradients that are left are the same."""
    x = Batch(backend)
    whole = gradients(loss, x, backend)
    some = [leaf.detach().requires_grad_(i not in frozen) for i, leaf in enumerate(x.leaves)]
    left = [i for i in range(3) if i not in frozen]
    for i, grad in zip(left, torch.autograd.grad(loss(x, *some, backend), [some[i] for i in left])):
        torch.testing.assert_close(grad, whole[i], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("side", [0, 1])
def test_nothing_is_allocated_for_a_frozen_side(side: int, backend: str) -> None:
    x = Batch(backend)
    embeds = [leaf.detach().requires_grad_(i == side) for i, leaf in enumerate(x.leaves[:2])]
    with GradientsWritten("logsumexp_backward") as written:
        plain(x, embeds[0], embeds[1], x.scale, backend).backward()
        sk.contrastive_loss(x.images, x.texts, extra_texts=x.queue, backend=backend).backward()
    assert written.calls[0] == (side == 0, side == 1)
    assert sorted(written.calls[1:]) == [(True, False), (True, True)]  # the queue has no gradient


@backends
@losses
def test_features_made_in_inference_mode(loss: Loss, backend: str) -> None:
    x = Batch(backend)
    expected = gradients(loss, x, backend)
    with torch.inference_mode():
        stored = x.images.detach().clone()
        x.weights, x.ids, x.next, x.indptr = (y.clone() for y in (x.weights, x.ids, x.next, x.indptr))
        x.guide = (x.guide[0].clone(), x.guide[1].clone())
        x.queue = x.queue.clone()
    found = torch.autograd.grad(loss(x, stored, *x.leaves[1:], backend), x.leaves[1:])
    for one, other in zip(found, expected[1:]):
        torch.testing.assert_close(one, other)


# Scales, autocast


@backends
@losses
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_of_one_element(shape: tuple[int, ...], loss: Loss, backend: str) -> None:
    """Its gradient has its shape and dtype."""
    x = Batch(backend)
    expected = gradients(loss, x, backend)[2]
    scale = torch.full(shape, 5.0, dtype=torch.bfloat16, device=device_of(backend), requires_grad=True)
    (grad,) = torch.autograd.grad(loss(x, x.images, x.texts, scale, backend), scale)
    assert (grad.shape, grad.dtype) == (scale.shape, torch.bfloat16)
    torch.testing.assert_close(grad.reshape(()).float(), expected, rtol=1e-2, atol=0)


@backends
@losses
def test_autocast(loss: Loss, backend: str) -> None:
    """What goes in is rounded, nothing else; a teacher's embeddings may be of two dtypes, as a student's may."""
    x = Batch(backend)
    with torch.autocast(device_of(backend), dtype=torch.bfloat16):
        found = loss(x, *x.leaves, backend)
        (grad,) = torch.autograd.grad(found, x.images)
        x.guide = (x.guide[0].to(torch.bfloat16), x.guide[1])
        torch.testing.assert_close(loss(x, *x.leaves, backend), found, rtol=0, atol=0)
    assert (found.dtype, grad.dtype) == (torch.float32, torch.float32)
    low = [leaf.detach().to(torch.bfloat16).float() for leaf in x.leaves[:2]]
    x.queue = x.queue.to(torch.bfloat16).float()
    x.guide = (x.guide[0].to(torch.bfloat16).float(), x.guide[1].to(torch.bfloat16).float())
    torch.testing.assert_close(found, loss(x, *low, x.scale, backend), rtol=1e-4, atol=1e-5)


# torch.func


@backends
@losses
def test_func_grad_and_vjp(loss: Loss, backend: str) -> None:
    x = Batch(backend)
    expected = gradients(loss, x, backend)
    values = tuple(leaf.detach() for leaf in x.leaves)
    function = lambda *leaves: loss(x, *leaves, backend)  # noqa: E731
    value, pull, *_ = torch.func.vjp(function, *values)
    for found in (torch.func.grad(function, argnums=(0, 1, 2))(*values), pull(torch.ones_like(value))):
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, **CLOSE)


@backends
@pytest.mark.parametrize("loss", [plain, plain_sigmoid], ids=lambda f: f.__name__)
def test_many_gradients_at_once(loss: Loss, backend: str) -> None:
    x = Batch(backend)
    value = loss(x, *x.leaves, backend)
    upstream = torch.tensor([1.0, -2.0], device=value.device)
    expected = torch.autograd.grad(value, x.leaves, retain_graph=True)
    for found, one in zip(torch.autograd.grad(value, x.leaves, upstream, is_grads_batched=True), expected):
        torch.testing.assert_close(found, torch.stack([one, -2 * one]), **CLOSE)


@backends
@losses
def test_vmap_over_scales(loss: Loss, backend: str) -> None:
    x = Batch(backend)
    scales = torch.tensor([2.0, 5.0], device=device_of(backend))
    function = lambda scale: loss(x, x.images.detach(), x.texts.detach(), scale, backend)  # noqa: E731
    vmap: Any = torch.func.vmap
    torch.testing.assert_close(vmap(function)(scales), torch.stack([function(s) for s in scales]), **CLOSE)


@pytest.mark.parametrize("loss", [plain, labels, pairs, teacher], ids=lambda f: f.__name__)
def test_second_derivatives_on_eager(loss: Loss) -> None:
    x = Batch("eager")
    leaves = tuple(leaf.detach().double().requires_grad_() for leaf in x.leaves)
    x.queue, x.guide, x.weights = x.queue.double(), tuple(g.double() for g in x.guide), x.weights.double()  # type: ignore[assignment]
    assert torch.autograd.gradgradcheck(lambda *values: loss(x, *values, "eager"), leaves)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("frozen", [(0,), (0, 1, 2)], ids=["images", "all but the bias"])
def test_second_derivatives_of_what_the_forward_pass_kept(frozen: tuple[int, ...], backend: str) -> None:
    """They raise: what is kept is no constant, whichever side is."""
    x = Batch(backend)
    leaves = [leaf.detach().requires_grad_(i not in frozen) for i, leaf in enumerate((*x.leaves, x.bias))]
    loss = sk.sigmoid_loss(leaves[0], leaves[1], logit_scale=leaves[2], logit_bias=leaves[3], backend=backend)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    for grad in torch.autograd.grad(loss, wanted, create_graph=True):
        with pytest.raises(RuntimeError, match="is not differentiable: the fused kernels have first derivatives only"):
            torch.autograd.grad(grad.square().sum(), wanted, retain_graph=True, allow_unused=True)


@backends
@losses
def test_forward_mode(loss: Loss, backend: str) -> None:
    """Eager has it; the others say that eager has it, under ``torch.func`` and without."""
    x = Batch(backend)
    scale = x.scale.detach()
    function = lambda s: loss(x, x.images.detach(), x.texts.detach(), s, backend)  # noqa: E731

    def dual() -> Tensor:
        with forward_ad.dual_level():
            found = function(forward_ad.make_dual(scale, torch.ones_like(scale)))
            tangent: Tensor = forward_ad.unpack_dual(found).tangent
            return tangent

    if backend == "eager":
        (expected,) = torch.autograd.grad(loss(x, x.images, x.texts, x.scale, backend), x.scale)
        torch.testing.assert_close(dual(), expected, **CLOSE)
        torch.testing.assert_close(torch.func.jacfwd(function)(scale), expected, **CLOSE)
        return
    for call in (dual, lambda: torch.func.jacfwd(function)(scale)):
        with pytest.raises(NotImplementedError, match=r"no forward-mode derivatives .* use backend='eager'"):
            call()


# torch.jit.trace, fake and meta tensors, export


@pytest.mark.parametrize("backend", FUSED)
def test_gradients_of_a_trace(backend: str) -> None:
    """Sizes are tensors there."""
    x = Batch(backend)

    def function(rows: Tensor, cols: Tensor, scale: Tensor) -> Tensor:
        found = sk.similarity_logsumexp(rows, cols, row_scale=scale, direction="rows", backend=backend).row_lse
        assert found is not None
        return found.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, x.leaves, check_trace=False)
    for one, other in zip(*(torch.autograd.grad(f(*x.leaves), x.leaves) for f in (traced, function))):
        torch.testing.assert_close(one, other, **CLOSE)


@backends
@losses
def test_fake_tensors(loss: Loss, backend: str) -> None:
    with FakeTensorMode():
        x = Batch(backend)
        assert [g.shape for g in gradients(loss, x, backend)] == [leaf.shape for leaf in x.leaves]


@losses
def test_another_default_device(loss: Loss) -> None:
    """Nothing but the inputs says where tensors are made."""
    x = Batch("eager")
    expected = loss(x, *x.leaves, "auto")
    with torch.device("meta"):
        assert loss(x, *x.leaves, "auto").equal(expected)


@losses
def test_meta_tensors(loss: Loss) -> None:
    x = Batch("eager")
    for name, value in vars(x).items():
        moved = tuple(g.to("meta") for g in value) if isinstance(value, tuple) else value.detach().to("meta")
        setattr(x, name, moved)
    for leaf in x.leaves:
        leaf.requires_grad_()
    assert [g.shape for g in gradients(loss, x, "auto")] == [leaf.shape for leaf in x.leaves]


@backends
@losses
@pytest.mark.parametrize("strict", [True, False])
def test_exported_graphs_train(strict: bool, loss: Loss, backend: str) -> None:
    x = Batch(backend)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(D, D)
            self.log_scale = torch.nn.Parameter(torch.tensor(math.log(5.0)))

        def forward(self, images: Tensor, texts: Tensor) -> Tensor:
            return loss(x, self.head(images), texts, self.log_scale.exp(), backend)

    torch.manual_seed(0)
    model = Model().to(device_of(backend))
    arguments = (x.images.detach(), x.texts.detach())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, arguments, strict=strict).module()
    for module in (model, exported):
        module(*arguments).backward()
    for (name, one), other in zip(model.named_parameters(), exported.parameters()):
        torch.testing.assert_close(other.grad, one.grad, **CLOSE, msg=name)


def test_mining_is_compiled_and_faked() -> None:
    x = Batch("eager")
    function = lambda a, b, ids: sk.mine_negatives(a, b, 3, exclude=Ids(ids, ids), at_most=0.8)  # noqa: E731
    torch._dynamo.reset()
    arguments = (x.images.detach(), x.texts.detach(), x.ids)
    assert torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments).equal(function(*arguments))
    with FakeTensorMode():
        y = Batch("eager")
        assert function(y.images, y.texts, y.ids).shape == (B, 3)

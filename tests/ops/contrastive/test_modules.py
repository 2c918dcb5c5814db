"""The modules with open_clip's names: against each loss written out in float64, and against open_clip's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparc_kernels as sk
from benchmarks.measure.peers import part_of
from sparc_kernels.ops.contrastive.room import ROOM
from tests import tolerance
from tests.conftest import device_of

BACKENDS = ["eager", *(backend for backend in ("cpu", "triton") if backend in ROOM.dtypes)]
NAMES = ("ClipLoss", "SigLipLoss", "DistillClipLoss")
THEIRS: Any = part_of("open_clip", "loss")
with_open_clip = pytest.mark.skipif(THEIRS is None, reason="open_clip is not installed")

Arguments = dict[str, Tensor]


def arguments(name: str, cosine: float = 0.6, scale: float = 1 / 0.07, B: int = 9, D: int = 24) -> Arguments:
    """What a model hands out, before its features are normalised, by open_clip's names; exact in bfloat16."""
    generator = torch.Generator().manual_seed(7)

    def normal(width: int) -> Tensor:
        return torch.randn(B, width, generator=generator, dtype=torch.float64)

    def matched(width: int) -> tuple[Tensor, Tensor]:
        rows = normal(width)
        return rows, cosine * rows + (1 - cosine**2) ** 0.5 * normal(width)

    images, texts = (3 * x for x in matched(D))
    found = {"image_features": images, "text_features": texts, "logit_scale": torch.tensor(scale)}
    if name == "DistillClipLoss":
        found |= dict(zip(("dist_image_features", "dist_text_features"), matched(D + 5)))
        found["dist_logit_scale"] = torch.tensor(20.0)
    else:
        found["logit_bias"] = torch.tensor(-4.0)
    return {key: x.to(torch.bfloat16).double() for key, x in found.items()}


def moved(given: Arguments, dtype: torch.dtype, device: str = "cpu") -> Arguments:
    """Features in ``dtype``, numbers in what it accumulates in; all need a gradient but the teacher's."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        key: x.detach().to(device, dtype if x.dim() else wide).requires_grad_(not key.startswith("dist_"))
        for key, x in given.items()
    }


def normalised(given: Arguments) -> Arguments:
    """As open_clip's models hand features out."""
    return {key: F.normalize(x, dim=-1) if x.dim() else x for key, x in given.items()}


def written_out(name: str, x: Arguments) -> dict[str, Tensor]:
    """Each loss from its paper's sums over pairs, of cosines."""
    scale, batch = x["logit_scale"], len(x["image_features"])
    cosines = F.cosine_similarity(x["image_features"][:, None], x["text_features"][None], dim=-1, eps=1e-12)
    if name == "SigLipLoss":
        signs = 2 * torch.eye(batch, dtype=cosines.dtype) - 1
        probabilities = 1 / (1 + torch.exp(-signs * (scale * cosines + x["logit_bias"])))
        return {"contrastive_loss": -probabilities.log().sum() / batch}
    terms: dict[str, list[Tensor]] = {"contrastive_loss": [], "distill_loss": []}
    for way in (0, 1):
        z = scale * (cosines if way == 0 else cosines.T)
        log_p = z - z.exp().sum(1, keepdim=True).log()
        terms["contrastive_loss"].append(-log_p.diagonal().sum() / batch)
        if name == "DistillClipLoss":
            u, v = x["dist_image_features"], x["dist_text_features"]
            t = x["dist_logit_scale"] * F.cosine_similarity(u[:, None], v[None], dim=-1, eps=1e-12)
            t = t if way == 0 else t.T
            target = t.exp() / t.exp().sum(1, keepdim=True)
            terms["distill_loss"].append(-(target * log_p).sum() / batch)
    return {key: (one + other) / 2 for key, (one, other) in ((k, v) for k, v in terms.items() if v)}


def module(name: str, **options: Any) -> nn.Module:
    return getattr(sk, name)(**options)


def outputs(loss: Callable[..., Any], x: Arguments) -> dict[str, Tensor]:
    return loss(**x, output_dict=True)


def gradients(found: dict[str, Tensor], leaves: Arguments) -> Arguments:
    """Of a sum of the losses with unequal weights; None is refused."""
    wanted = {key: x for key, x in leaves.items() if x.requires_grad}
    total = sum(weight * x for weight, x in zip((1.0, 0.7), found.values()))
    assert isinstance(total, Tensor)
    return dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()))))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cosine, scale", [(0.0, 1 / 0.07), (0.5, 100.0), (0.9, 1 / 0.07)])
@pytest.mark.parametrize("name", NAMES)
def test_against_the_loss_written_out(name: str, cosine: float, scale: float, backend: str) -> None:
    dtype = torch.float32 if backend == "triton" else torch.float64
    given = arguments(name, cosine, scale)
    exact, x = moved(given, torch.float64), moved(given, dtype, device_of(backend))
    truth, found = written_out(name, exact), outputs(module(name, backend=backend), x)
    assert list(found) == list(truth)
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    expected = gradients(truth, exact) if name != "ClipLoss" else _clip_gradients(truth, exact)
    results = {key: value.double().cpu() for key, value in (found | gradients(found, x)).items()}
    torch.testing.assert_close(results, truth | expected, **close)


def _clip_gradients(truth: dict[str, Tensor], leaves: Arguments) -> Arguments:
    """The written-out loss does not know the bias, whose gradient is 0."""
    known = {key: x for key, x in leaves.items() if key != "logit_bias"}
    return gradients(truth, known) | {"logit_bias": torch.zeros_like(leaves["logit_bias"])}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """float32 losses; gradients as near to the truth as those of float32 arithmetic on the same inputs."""
    given = arguments(name, cosine=0.9)
    exact, x, plain = moved(given, torch.float64), moved(given, dtype), moved(given, dtype)
    found, truth = outputs(module(name), x), written_out(name, exact)
    assert {value.dtype for value in found.values()} == {torch.float32}
    wide = written_out(name, {key: leaf.float() for key, leaf in plain.items()})
    for key, value in found.items():
        # The distillation's sweep gives the loss as a difference of logits of size 14.
        least = 14.0 / 100 if name == "DistillClipLoss" else 0.0
        tolerance.assert_close(key, value, truth[key], wide[key], torch.float32, least)
    known = {key: leaf for key, leaf in x.items() if key != "logit_bias" or name == "SigLipLoss"}
    eager = gradients(wide, {key: plain[key] for key in known})
    true = gradients(truth, {key: exact[key] for key in known})
    for key, grad in gradients(found, known).items():
        assert grad.dtype == x[key].dtype
        tolerance.assert_close(f"gradient of {key}", grad, true[key], eager[key], dtype)


@with_open_clip
@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_open_clips(name: str) -> None:
    """Same parameters in the same order with the same defaults; ours may have more, by keyword."""
    for method in ("__init__", "forward"):
        ours, theirs = (
            list(inspect.signature(getattr(getattr(library, name), method)).parameters.values())
            for library in (sk, THEIRS)
        )
        extra = ours[len(theirs) :]
        own = ["group", "gradients", "exchange", "backend"]
        assert [p.name for p in extra] == (own if method == "__init__" else [])
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in extra)
        for our, their in zip(ours, theirs):
            assert (our.name, our.kind, our.default) == (their.name, their.kind, their.default) or (
                our.name == "logit_scale" and our.kind is their.kind
            )


@with_open_clip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"cache_labels": True}], ids=["plain", "cached"])
@pytest.mark.parametrize("name", NAMES)
def test_against_open_clip(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Losses and gradients on normalised features, from before their normalisation on; twice, for cached labels."""
    ours, theirs = module(name, **options), getattr(THEIRS, name)(**options)
    for scale in (10.0, 100.0):
        one, other = moved(arguments(name, scale=scale), dtype), moved(arguments(name, scale=scale), dtype)
        found, expected = (outputs(loss, normalised(x)) for loss, x in ((ours, one), (theirs, other)))
        assert list(found) == list(expected)
        close: dict[str, float] = (
            {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-5}
        )
        torch.testing.assert_close(found | gradients(found, one), expected | gradients(expected, other), **close)


@with_open_clip
@pytest.mark.parametrize("name", NAMES)
def test_results_without_a_dictionary_are_open_clips(name: str) -> None:
    given = normalised(arguments(name))
    ours, theirs = module(name)(*given.values()), getattr(THEIRS, name)()(*given.values())
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_softmax_has_no_use_for_a_bias(backend: str, shape: tuple[int, ...]) -> None:
    """Its gradient is 0 to the bit, and there: an optimizer or DDP would trip over None."""
    x = moved(arguments("ClipLoss"), torch.float32, device_of(backend))
    bias = torch.full(shape, 5.0, device=x["logit_scale"].device, requires_grad=True)
    loss, features = module("ClipLoss", backend=backend), (x["image_features"], x["text_features"], x["logit_scale"])
    found = loss(*features, bias)
    assert torch.equal(found, loss(*features))
    assert torch.equal(found, loss(*features, -7.5))
    found.backward()
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.zeros_like(bias))


def test_a_sigmoid_has() -> None:
    x = moved(arguments("SigLipLoss"), torch.float32)
    loss = module("SigLipLoss")
    features = (x["image_features"], x["text_features"], x["logit_scale"])
    torch.testing.assert_close(loss(*features, None), loss(*features, 0.0))
    loss(*features, x["logit_bias"]).backward()
    assert x["logit_bias"].grad.abs() > 0


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_normalised_count_by_their_direction(name: str) -> None:
    x = arguments(name)
    for one, other in zip(outputs(module(name), x).values(), outputs(module(name), normalised(x)).values()):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_the_teacher_gets_no_gradient() -> None:
    x = {key: leaf.requires_grad_() for key, leaf in moved(arguments("DistillClipLoss"), torch.float64).items()}
    contrastive, distill = module("DistillClipLoss")(*x.values())
    (contrastive + distill).backward()
    assert {key for key, leaf in x.items() if leaf.grad is None} == {key for key in x if key.startswith("dist_")}


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_costs_nothing(name: str) -> None:
    x = moved({key: v[:0] if v.dim() else v for key, v in arguments(name).items()}, torch.float32)
    found = outputs(module(name), x)
    assert all(float(value.detach()) == 0 for value in found.values())
    assert all(float(grad.abs().sum()) == 0 for grad in gradients(found, x).values())


@pytest.mark.parametrize("name", NAMES)
def test_no_state_and_a_fair_description(name: str) -> None:
    loss = module(name, rank=3, backend="eager")
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert loss.rank == 3
    assert repr(loss) == f"{name}(backend='eager')"


@pytest.mark.parametrize("name", NAMES)
def test_compiles(name: str) -> None:
    loss, x = module(name), moved(arguments(name), torch.float32)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*x.values()), loss(*x.values()))


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    """Features are cast as for a matrix product, losses stay float32."""
    x = moved(arguments(name), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(module(name), x)
    expected = outputs(module(name), {key: v.bfloat16() if v.dim() else v for key, v in x.items()})
    for key, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"world_size": 0}, ValueError, "world_size must be an integer of at least 1, got 0"),
        ({"rank": -1}, ValueError, "rank must be an integer of at least 0, got -1"),
        ({"group": 3}, TypeError, "group must be 'world', a ProcessGroup or None, got int"),
        ({"gradients": "max"}, ValueError, "gradients must be 'mean' or 'sum', got 'max'"),
        ({"backend": "abacus"}, ValueError, "backend must be one of"),
    ],
)
def test_options_that_cannot_be_served(name: str, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module(name, **options)


def test_an_unknown_exchange() -> None:
    with pytest.raises(ValueError, match=r"dist_impl must be None or one of 'bidir', .*, got 'ring'"):
        module("SigLipLoss", dist_impl="ring")
    assert module("SigLipLoss", dist_impl="gather").dist_impl == "gather"


@pytest.mark.parametrize(
    "name, change, error, message",
    [
        ("ClipLoss", {"logit_bias": torch.zeros(9)}, ValueError, "logit_bias must be a number or a one-element tensor"),
        ("ClipLoss", {"logit_bias": "0"}, TypeError, "logit_bias must be a number or a one-element tensor, got str"),
        ("SigLipLoss", {"logit_bias": torch.zeros(9)}, ValueError, "logit_bias must be a number or a one-element"),
        (
            "DistillClipLoss",
            {"dist_image_features": torch.zeros(4, 3).double()},
            ValueError,
            "belong to the same batch",
        ),
        ("DistillClipLoss", {"text_features": torch.zeros(4, 24).double()}, ValueError, "must have the same B"),
        ("DistillClipLoss", {"dist_logit_scale": -1.0}, ValueError, "teacher.scale must be positive, got -1"),
        ("DistillClipLoss", {"logit_scale": 0.0}, ValueError, "row_scale must be positive, got 0"),
    ],
)
def test_what_does_not_fit(name: str, change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module(name)(**arguments(name) | change)

"""The composed losses, all arguments and their combinations, against a dense definition; edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import Above, Ids, Labels, Teacher
from sparc_kernels.functional import _positives
from sparc_kernels.functional._positives import union
from tests import tolerance
from tests.conftest import device_of
from tests.ops.contrastive.dense import (
    ABOVE,
    GUIDE,
    IDS,
    IMAGES,
    LABELS,
    OTHER,
    OUT,
    PADDED,
    QUEUES,
    TEACHER,
    TEXTS,
    UNEVEN,
    WEIGHTS,
    WIDE,
    B,
    D,
    K,
    Q,
    csr,
    normal,
    sigmoid_definition,
    softmax_definition,
)  # fmt: skip
from tests.ops.contrastive.test_similarity import BACKENDS

# Cases


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "image to text": {"direction": "image_to_text"},
    "text to image": {"direction": "text_to_image", "reduction": "none"},
    "more texts": {"texts": WIDE, "direction": "image_to_text"},
    "more images": {"images": WIDE, "texts": IMAGES, "direction": "text_to_image"},
    "weights": {"weights": WEIGHTS},
    "weights, one way": {"weights": WEIGHTS, "direction": "text_to_image", "reduction": "sum"},
    "smoothing": {"label_smoothing": 0.3},
    "smoothing and queues": {"label_smoothing": 0.1, **QUEUES},
    "queues": QUEUES,
    "one queue": {"extra_texts": QUEUES["extra_texts"]},
    "queue, one way": {"extra_images": QUEUES["extra_images"], "direction": "text_to_image"},
    "same ids": {"exclude": Ids(IDS, IDS)},
    "int32 ids": {"exclude": Ids(IDS.int(), IDS.int())},
    "other ids": {"exclude": Ids(OTHER, IDS)},
    "padding": {"exclude": Ids(PADDED, PADDED)},
    "padding of one side": {"exclude": Ids(PADDED, OTHER)},
    "padding and queues": {"exclude": Ids(PADDED, PADDED), **QUEUES},
    "padding, weights, none": {"exclude": Ids(PADDED, PADDED), "weights": WEIGHTS, "reduction": "none"},
    "all padding but one": {"exclude": Ids(torch.tensor([-1] * 6 + [3]), torch.tensor([-1] * 6 + [3]))},
    "pairs out": {"exclude": OUT},
    "pairs and ids out": {"exclude": [OUT, Ids(IDS, IDS)]},
    "pairs and other ids out": {"exclude": (Ids(OTHER, PADDED), OUT)},
    "above": {"exclude": ABOVE},
    "above per row": {"exclude": Above(*GUIDE, WEIGHTS - 0.8)},
    "everything out": {"exclude": [ABOVE, OUT, Ids(PADDED, OTHER)]},
    "labels": {"targets": LABELS},
    "labels, rectangular": {"texts": WIDE, "targets": Labels(IDS, torch.cat([IDS, IDS[:3]]))},
    "labels, one way": {"targets": LABELS, "direction": "text_to_image", "reduction": "none"},
    "labels, padding": {"targets": Labels(PADDED, OTHER)},
    "labels, pairs out": {"targets": Labels(IDS, IDS), "exclude": OUT},
    "labels, smoothing": {"targets": LABELS, "label_smoothing": 0.2},
    "labels, smoothing, padding": {"targets": Labels(PADDED, OTHER), "label_smoothing": 0.2},
    "labels, queues": {"targets": LABELS, **QUEUES},
    "pairs": {"targets": csr(UNEVEN, B)},
    "pairs, none": {"targets": csr(UNEVEN, B), "reduction": "none", "weights": WEIGHTS},
    "pairs, weights": {"targets": csr(UNEVEN, B), "weights": WEIGHTS},
    "pairs, weights, sum": {"targets": csr(UNEVEN, B), "weights": WEIGHTS, "reduction": "sum"},
    "no pairs": {"targets": csr({}, B)},
    "all pairs": {"targets": csr({i: range(B) for i in range(B)}, B)},
    "pairs, rectangular": {"texts": WIDE, "targets": csr({0: [0, 9], 1: [3], 5: [4, 6, 8]}, B)},
    "weighted pairs": {"targets": csr(UNEVEN, B, [0.5, 0.2, 0.3, 1.0, 2.0, 0.0, 0.7, 3.0, 1.0])},
    "pairs, queues": {"targets": csr(UNEVEN, B), **QUEUES},
    "pairs, smoothing": {"targets": csr(UNEVEN, B), "label_smoothing": 0.2},
    "weighted pairs, smoothing, queues": {
        "targets": csr(UNEVEN, B, [0.5, 0.2, 0.3, 1.0, 2.0, 0.0, 0.7, 3.0, 1.0]), "label_smoothing": 0.2, **QUEUES,
    },
    "pairs, pairs out": {"targets": csr(UNEVEN, B), "exclude": OUT},
    "pairs, ids out": {"targets": csr(UNEVEN, B), "exclude": Ids(IDS, OTHER)},
    "pairs, padding": {"targets": csr(UNEVEN, B), "exclude": [Ids(PADDED, OTHER), OUT]},
    "pairs, above": {"targets": csr(UNEVEN, B), "exclude": ABOVE},
    "teacher": {"teacher": TEACHER, "alpha": 0.4},
    "teacher alone": {"teacher": TEACHER, "alpha": 1.0, "reduction": "none"},
    "teacher, smoothing": {"teacher": TEACHER, "alpha": 0.4, "label_smoothing": 0.1},
    "teacher of labels": {"teacher": TEACHER, "alpha": 0.7, "targets": LABELS},
    "teacher of pairs": {"teacher": TEACHER, "alpha": 0.7, "targets": csr(UNEVEN, B)},
    "teacher, pairs out": {"teacher": TEACHER, "alpha": 0.7, "exclude": OUT},
    "teacher, padding": {"teacher": TEACHER, "alpha": 0.7, "targets": Labels(PADDED, PADDED)},
    "teacher, queue": {
        "teacher": Teacher(GUIDE[0], torch.cat([GUIDE[1], normal(Q, K, seed=6)]), 3.0),
        "alpha": 0.4, "direction": "image_to_text", "extra_texts": QUEUES["extra_texts"],
    },
    "teacher, queues, smoothing": {
        "teacher": Teacher(
            torch.cat([GUIDE[0], normal(Q + 1, K, seed=7)]), torch.cat([GUIDE[1], normal(Q, K, seed=6)]), 3.0
        ),
        "alpha": 0.4, "label_smoothing": 0.1, **QUEUES,
    },
    "teacher of labels, queues": {
        "teacher": Teacher(
            torch.cat([GUIDE[0], normal(Q + 1, K, seed=7)]), torch.cat([GUIDE[1], normal(Q, K, seed=6)]), 3.0
        ),
        "alpha": 0.4, "targets": LABELS, **QUEUES,
    },
}  # fmt: skip
SIGMOID = [
    name
    for name, case in CASES.items()
    if case.keys() <= {"texts", "targets", "exclude", "weights", "reduction"}
    and ("texts" not in case or "targets" in case)
]


def moved(value: Any, dtype: torch.dtype, device: str) -> Any:
    """The tensors of a case on another device, the floating ones in another dtype."""
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if hasattr(value, "_fields"):
        if isinstance(value, (Ids, Labels)) and value.rows is value.cols:
            both = value.rows.to(device)
            return type(value)(both, both)
        return type(value)(*(moved(x, dtype, device) for x in value))
    if isinstance(value, (list, tuple)):
        return [moved(x, dtype, device) for x in value]
    return value


def run(loss: Any, leaves: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    found = loss(*leaves, **options)
    assert isinstance(found, Tensor)
    upstream = torch.linspace(0.5, 1.5, max(found.numel(), 1), dtype=torch.float64).reshape(found.shape)
    grads = torch.autograd.grad(found, leaves, upstream.to(found), allow_unused=True)
    return found, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]


def check(name: str, backend: str, sigmoid: bool) -> None:
    case = dict(CASES[name])
    dtype = torch.float32 if backend == "triton" else torch.float64
    inputs = [case.pop("images", IMAGES), case.pop("texts", TEXTS), torch.tensor(4.0, dtype=torch.float64)]
    if sigmoid:
        inputs.append(torch.tensor(-1.5, dtype=torch.float64))
    leaves = [x.clone().requires_grad_() for x in inputs]
    truth, true_grads = run(sigmoid_definition if sigmoid else softmax_definition, leaves, case)
    leaves = [x.to(device_of(backend), dtype).requires_grad_() for x in inputs]

    def loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        if bias is None:
            return sk.contrastive_loss(images, texts, logit_scale=scale, backend=backend, **options)
        return sk.sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias, backend=backend, **options)

    found, grads = run(loss, leaves, {key: moved(value, dtype, device_of(backend)) for key, value in case.items()})
    close: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.cpu().double(), truth, **close)
    for grad, expected in zip(grads, true_grads):
        torch.testing.assert_close(grad.cpu().double(), expected, **close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_contrastive_loss(name: str, backend: str) -> None:
    check(name, backend, sigmoid=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIGMOID)
def test_sigmoid_loss(name: str, backend: str) -> None:
    check(name, backend, sigmoid=True)


def test_the_cases_exclude_something() -> None:
    """Otherwise they would show nothing."""
    for name, case in CASES.items():
        if "exclude" in case and "all" not in name:
            plain = {key: value for key, value in case.items() if key != "exclude"}
            found, without = (softmax_definition(IMAGES, TEXTS, torch.tensor(4.0), **x).sum() for x in (case, plain))
            assert (found - without).abs() > 1e-3, name


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(9, 64, generator=generator).to(dtype) for _ in range(2))
    found = sk.contrastive_loss(images, texts)
    assert found.dtype == torch.float32
    truth = sk.contrastive_loss(images.double(), texts.double())
    tolerance.assert_close("loss", found, truth, found, torch.float32)


@pytest.mark.parametrize("chunk_bytes", [_positives._CHUNK_BYTES["cpu"], 8 * D * 2])
def test_cosines_of_pairs(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece and in some; a zero vector has cosine 0; second derivatives too."""
    monkeypatch.setitem(_positives._CHUNK_BYTES, "cpu", chunk_bytes)
    x, y = IMAGES.clone().requires_grad_(), TEXTS.clone().requires_grad_()
    row, col = torch.tensor([0, 0, 3, 6, 6]), torch.tensor([1, 5, 5, 0, 6])
    found = _positives.cosines_of_pairs(x, y, row, col, "cpu")
    truth = F.cosine_similarity(x[row], y[col], dim=-1, eps=1e-12)
    torch.testing.assert_close(found, truth)
    for one, other in zip(*(torch.autograd.grad(z.square().sum(), (x, y)) for z in (found, truth))):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradgradcheck(lambda a, b: _positives.cosines_of_pairs(a, b, row, col, "cpu"), (x, y))
    with torch.no_grad():
        x[3] = 0.0
    found = _positives.cosines_of_pairs(x, y, row, col, "cpu")
    assert found[2] == 0
    (grad,) = torch.autograd.grad(found[2], x)
    torch.testing.assert_close(grad[3], 1e12 * F.normalize(y[5], dim=0))


def test_cosines_of_pairs_keep_little_beside_their_inputs() -> None:
    x, y = (z.to(torch.bfloat16).requires_grad_() for z in (IMAGES, TEXTS))
    row = torch.arange(x.shape[0])
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _positives.cosines_of_pairs(x, y, row, row.flip(0), "cpu")
    assert {t.data_ptr() for t in saved if t.dim() > 1} == {x.data_ptr(), y.data_ptr()}


def test_a_positive_that_is_nearly_certain() -> None:
    """In float32, one above all others: its loss of 1e-9 and its gradient, as softplus of a difference gives them."""
    logits = torch.tensor([30.0, 9.0, 8.0, 20.0, 20.0, 3.0])
    segment, negatives = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([7.0, -2.0, -torch.inf])
    results = []
    for dtype in (torch.float32, torch.float64):
        z = logits.to(dtype).requires_grad_()
        losses = _positives.segment_cross_entropies(z, segment, negatives.to(dtype))
        results.append([losses, *torch.autograd.grad(losses[0], z)])
    rows = ([30.0, 9.0, 8.0, 7.0], [20.0, 20.0, -2.0], [3.0])
    whole = [torch.tensor(row, dtype=torch.float64).logsumexp(0) for row in rows]
    torch.testing.assert_close(results[1][0], torch.stack([whole[i] for i in segment]) - logits.double())
    rest = torch.tensor([9.0, 8.0, 7.0], dtype=torch.float64).logsumexp(0) - 30.0
    torch.testing.assert_close(results[1][0][0], rest.exp().log1p(), rtol=1e-12, atol=0)
    for one, other in zip(*results):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=0)


def test_softplus_has_no_jump() -> None:
    x = torch.tensor([-40.0, 0.0, 19.9, 20.1, 30.0, 41.0], dtype=torch.float64)
    torch.testing.assert_close(_positives.softplus(x), x.logaddexp(torch.zeros_like(x)), rtol=1e-15, atol=0)


# Edges


@pytest.mark.parametrize("backend", BACKENDS)
def test_edge_batches(backend: str) -> None:
    device = device_of(backend)
    one, none = torch.randn(1, 8, device=device), torch.randn(0, 8, device=device)
    for batch in (one, none):
        leaf = batch.clone().requires_grad_()
        loss = sk.contrastive_loss(leaf, batch, backend=backend)
        assert loss == 0
        assert torch.autograd.grad(loss, leaf)[0].eq(0).all()
    for targets in (None, Labels(torch.arange(0), torch.arange(0)), csr({}, 0)):
        targets = moved(targets, torch.float32, device)
        assert sk.contrastive_loss(none, none, targets=targets, backend=backend) == 0
        assert sk.sigmoid_loss(none, none, logit_scale=1.0, logit_bias=0.0, targets=targets, backend=backend) == 0
    same = sk.contrastive_loss(torch.zeros(4, 8, device=device), torch.randn(4, 8, device=device), backend=backend)
    torch.testing.assert_close(same.cpu(), torch.tensor(4.0).log())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"exclude": Ids(torch.full((B,), -1), torch.full((B,), -1))},
        {"exclude": Ids(torch.full((B,), -1), IDS)},
        {"targets": Labels(torch.full((B,), -1), torch.full((B,), -1))},
        {"targets": Labels(IDS, IDS + 100)},
        {"targets": Labels(IDS, IDS), "exclude": csr({i: range(B) for i in range(B)}, B)},
        {"targets": csr({}, B), "exclude": csr({i: range(B) for i in range(B)}, B)},
        {"targets": csr({i: [i] for i in range(B)}, B), "exclude": Ids(torch.full((B,), -1), IDS)},
        {"exclude": csr({i: range(B) for i in range(B)}, B)},  # positives are left, alone
        {"teacher": TEACHER, "alpha": 1.0, "exclude": csr({i: range(B) for i in range(B)}, B)},
    ],
)
def test_nothing_left(options: dict[str, Any], backend: str) -> None:
    device = device_of(backend)
    options = moved(options, torch.float32, device)
    images, texts = (x.to(device, torch.float32).requires_grad_() for x in (IMAGES, TEXTS))
    scale = torch.tensor(5.0, device=device, requires_grad=True)
    options = {key: moved(value, torch.float32, device) for key, value in options.items()}
    for reduction in ("mean", "none"):
        loss = sk.contrastive_loss(images, texts, logit_scale=scale, backend=backend, reduction=reduction, **options)
        assert loss.eq(0).all()
        assert all(g.eq(0).all() for g in torch.autograd.grad(loss.sum(), (images, texts, scale)))


def test_union_of_pairs() -> None:
    """Of static shape: a pair in both patterns is once in its place, once outside."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        masks = [torch.rand(5, 6, generator=generator) < 0.4 for _ in range(2)]
        masks[0][2], masks[1][2:4] = False, False
        one, other = (csr({i: row.nonzero()[:, 0].tolist() for i, row in enumerate(m)}, 5) for m in masks)
        indptr, indices = union((one.indptr, one.indices), (other.indptr, other.indices), 6)
        assert len(indices) == len(one.indices) + len(other.indices) == indptr[-1]
        found = torch.zeros(5, 7)
        for i in range(5):
            row = indices[indptr[i] : indptr[i + 1]]
            assert row.equal(row.sort().values)
            found[i].index_add_(0, row, torch.ones(len(row)))
        assert found[:, :6].equal((masks[0] | masks[1]).float())


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(2)
    images, texts = (torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t, s: sk.contrastive_loss(i, t, logit_scale=s), (images, texts, scale))

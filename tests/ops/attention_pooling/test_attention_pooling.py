"""Scores of all pairs and their gradients on every backend, against float64 truth."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _native
from sparc_kernels.ops._registration import kernel
from sparc_kernels.ops.attention_pooling.reference import attention_pooled_reference
from sparc_kernels.ops.attention_pooling.room import ROOM
from tests import tolerance
from tests.conftest import device_of, dtypes_of
from tests.ops.captions.problems import Problem, Shape, leaves_of, make

BACKENDS = ["eager", *(backend for backend in ("cpu", "triton") if backend in ROOM.dtypes)]
FUSED = BACKENDS[1:]
needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))
EVERY = [
    pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
    for backend in BACKENDS
    for dtype in dtypes_of(backend)
]
WEIGHTS = ("softmax", "softmax_sink", "sigmoid", "words_softmax")
POOLINGS = ("mean", "logsumexp")
# Each kind of weights with each pooling; cosines and products in turn.
OPTIONS = [
    {"weights": weights, "pooling": pooling, "normalize": normalize, "attention_scale": 10.0 if normalize else 0.5}
    for i, (weights, pooling) in enumerate(product(WEIGHTS, POOLINGS))
    for normalize in [(i + i // 2) % 2 == 0]
]
SHAPES = (
    Shape(3, 5, 4, 6, 12),
    Shape(2, 110, 3, 33, 64, "masked"),  # more columns than two register tiles
    Shape(5, 9, 7, 20, 17, "packed"),  # captions across chunks of tokens; no whole vector of channels
    Shape(2, 70, 3, 3, 16, "masked"),  # more patches than channels: contexts are formed
    Shape(1, 3, 2, 60, 16, "packed"),  # a caption longer than a chunk
    Shape(3, 20, 90, 1, 16),  # one token per caption
    Shape(1, 1, 1, 1, 2),
    Shape(0, 4, 3, 2, 8),
    Shape(3, 4, 0, 2, 8, "packed"),
)


def gradients(scores: Tensor, problem: Problem, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    upstream = problem.upstream[0].to(scores.device, scores.dtype)
    return list(torch.autograd.grad((scores * upstream).sum(), leaves))


def eager(problem: Problem, dtype: torch.dtype, compute_dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Of the definition: scores and gradients."""
    images, texts = leaves = leaves_of(problem, dtype, "cpu")
    known = dict(problem.options)
    offsets, longest = known.pop("cu_seqlens", None), known.pop("max_seqlen", 0)
    scores = attention_pooled_reference(
        images, texts, **known, text_offsets=offsets, max_tokens=longest, **options, compute_dtype=compute_dtype
    )
    return [scores.detach(), *gradients(scores, problem, leaves)]


def check(problem: Problem, backend: str, dtype: torch.dtype, **options: Any) -> None:
    images, texts = leaves = leaves_of(problem, dtype, device_of(backend))
    scores = sk.attention_pooled_scores(images, texts, **problem.masks(images.device), **options, backend=backend)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = [scores.detach(), *gradients(scores, problem, leaves)]
    truth = eager(problem, torch.float64, torch.float64, **options)
    plain = eager(problem, dtype, dtype if dtype.itemsize == 2 else torch.float32, **options)
    for name, one, exact, made in zip(("scores", "images", "texts"), found, truth, plain, strict=True):
        tolerance.assert_close(f"{name} {options}", one, exact, made, dtype, 1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("backend, dtype", EVERY)
def test_against_truth(shape: Shape, backend: str, dtype: torch.dtype) -> None:
    problem = make(shape)
    for options in OPTIONS if backend != "triton" else OPTIONS[:: len(OPTIONS) // 2]:
        check(problem, backend, dtype, **options)


def test_the_definition() -> None:
    """The reference against loops over pairs and tokens."""
    for shape, (weights, pooling) in product(
        (SHAPES[1]._replace(patches=6, tokens=5, channels=9), SHAPES[2]), product(WEIGHTS, POOLINGS)
    ):
        problem = make(shape)
        images, texts = (F.normalize(x, dim=-1) for x in problem[:2])
        options: dict[str, Any] = {"weights": weights, "pooling": pooling, "attention_scale": 7.0, "pooling_scale": 3.0}
        scores = eager(problem, torch.float64, torch.float64, **options)[0]
        for i, j in torch.cartesian_prod(torch.arange(shape.images), torch.arange(shape.captions)).tolist():
            patches = images[i][problem.options["image_mask"][i]]
            if shape.layout == "packed":
                begin, end = problem.options["cu_seqlens"][j : j + 2].tolist()
                tokens = texts[begin:end]
            else:
                tokens = texts[j][problem.options["text_mask"][j]]
            cosines = []
            for token in tokens if len(patches) else ():
                similar = patches @ token
                if weights == "sigmoid":
                    chosen = 1 / (1 + torch.exp(-7 * similar))
                elif weights == "words_softmax":
                    among_words = torch.stack([(tokens @ patch).exp() for patch in patches])
                    chosen = torch.exp(7 * similar.exp() / among_words.sum(1))
                    chosen = chosen / chosen.sum()
                else:
                    chosen = torch.exp(7 * similar)
                    chosen = chosen / (chosen.sum() + (weights == "softmax_sink"))
                context = (chosen[:, None] * patches).sum(0)
                cosines.append(F.cosine_similarity(token, context, dim=0))
            if not cosines:
                expected = torch.tensor(0.0)
            elif pooling == "mean":
                expected = torch.stack(cosines).mean()
            else:
                expected = torch.stack(cosines).mul(3).exp().sum().log()
            assert abs(float(scores[i, j] - expected)) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_sharp_attention_takes_the_best_patch(backend: str) -> None:
    """Then the mean of cosines is that of maxima over patches; and no scale overflows."""
    problem = make(SHAPES[0])
    images, texts = (x.to(device_of(backend), torch.float32) for x in problem[:2])
    best = sk.late_interaction_scores(images, texts, direction="text_to_image", backend="eager").text_scores
    found = sk.attention_pooled_scores(images, texts, attention_scale=1e4, backend=backend)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-4)  # the runner-up is close by
    sunk = sk.attention_pooled_scores(images, texts, weights="softmax_sink", attention_scale=1e4, backend=backend)
    exact = eager(problem, torch.float64, torch.float64, weights="softmax_sink", attention_scale=1e4)[0]
    torch.testing.assert_close(sunk.cpu().double(), exact, rtol=0, atol=1e-4)
    words = sk.attention_pooled_scores(images, texts, weights="words_softmax", attention_scale=1e4, backend=backend)
    exact = eager(problem, torch.float64, torch.float64, weights="words_softmax", attention_scale=1e4)[0]
    torch.testing.assert_close(words.cpu().double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_of_no_length(backend: str) -> None:
    """A zero token, an image of zero patches, and contexts that cancel have cosine 0; gradients are finite."""
    images = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 3.0], [0.0, 3.0]]])
    texts = torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]])
    images, texts = (x.to(device_of(backend)).requires_grad_() for x in (images, texts))
    for weights in WEIGHTS:
        scores = sk.attention_pooled_scores(images, texts, weights=weights, backend=backend)
        torch.testing.assert_close(scores.cpu(), torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
        for grad in torch.autograd.grad(scores.sum(), (images, texts)):
            assert bool(grad.isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_contexts_that_cancel_up_to_rounding(backend: str) -> None:
    """A length from products of patches could be anything there: cosines stay cosines, and gradients finite."""
    images, texts = (x.float() for x in make(Shape(4, 40, 3, 5, 64))[:2])
    leaves = tuple(x.to(device_of(backend)).requires_grad_() for x in (torch.cat([images, -images], 1), texts))
    for weights in WEIGHTS:
        scores = sk.attention_pooled_scores(*leaves, weights=weights, attention_scale=1e-6, backend=backend)
        assert bool((scores.abs() < 1 + 1e-5).all())
        for grad in torch.autograd.grad(scores.sum(), leaves):
            assert bool(grad.isfinite().all())


@pytest.mark.parametrize("backend", [x for x in BACKENDS if torch.float64 in dtypes_of(x)])
def test_contexts_below_the_least_length(backend: str) -> None:
    """The length is a constant there, so that the weights' own derivative matters."""
    problem = make(Shape(3, 6, 4, 5, 8))
    problem = problem._replace(image_tokens=problem.image_tokens * 1e-14)
    for weights, scale in zip(WEIGHTS, (1e14, 1e14, 1e14, 2.0)):  # so small similarities leave words as they are
        check(problem, backend, torch.float64, weights=weights, normalize=False, attention_scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_with_its_image_and_its_caption(backend: str) -> None:
    problem = make(Shape(3, 20, 3, 12, 16))
    images, texts = (x.to(device_of(backend), torch.float32) for x in problem[:2])
    for weights in ("softmax", "sigmoid", "words_softmax"):
        whole = sk.attention_pooled_scores(images, texts, weights=weights, backend=backend)
        bad_images, bad_texts = images.clone(), texts.clone()
        bad_images[1, 18, 3] = torch.nan
        bad_texts[2, 11, 0] = torch.nan
        found = sk.attention_pooled_scores(bad_images, bad_texts, weights=weights, backend=backend)
        assert found[1].isnan().all()
        assert found[:, 2].isnan().all()
        torch.testing.assert_close(found[[0, 2], :2], whole[[0, 2], :2], rtol=0, atol=0)


@pytest.mark.parametrize("backend", FUSED)
def test_tokens_of_no_caption(backend: str) -> None:
    """Before the first offset and behind the last: gradient 0."""
    images = torch.randn(2, 3, 8, device=device_of(backend))
    texts = torch.randn(9, 8, device=device_of(backend))
    texts[[0, 7, 8]] = torch.nan
    offsets = torch.tensor([1, 4, 7], device=images.device)
    options = (3, True, "words_softmax", 4.0, "logsumexp", 5.0)
    scores, stats, levels = kernel("attention_pooled_forward", backend)(
        images, texts, None, None, offsets, *options, "highest"
    )
    expected = attention_pooled_reference(images, texts[1:7], None, None, offsets - 1, *options)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(levels, expected)
    torch.testing.assert_close(stats[7:13], 1 / texts[1:7].norm(dim=-1))
    grads = kernel("attention_pooled_backward", backend)(
        torch.ones_like(scores), images, texts, None, None, offsets, stats, levels, *options, True, True, "highest"
    )
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not grads[1][[0, 7, 8]].any()
    assert grads[1][1:7].any(1).all()


@pytest.mark.parametrize("backend", FUSED)
def test_frozen_sides_get_nothing(backend: str) -> None:
    problem = make(SHAPES[0])
    for options in OPTIONS[::3]:
        whole: list[Tensor] = []
        for frozen in (None, 0, 1):
            leaves = leaves_of(problem, torch.float32, device_of(backend))
            if frozen is not None:
                leaves[frozen].requires_grad_(False)
            scores = sk.attention_pooled_scores(*leaves, **options, backend=backend)
            grads = gradients(scores, problem, tuple(x for x in leaves if x.requires_grad))
            whole = whole or grads
            assert frozen is None or torch.equal(grads[0], whole[1 - frozen])


@pytest.mark.parametrize("backend", FUSED)
def test_what_is_kept_does_not_grow_with_pairs_of_tokens(backend: str) -> None:
    problem = make(Shape(6, 30, 5, 20, 8))
    leaves = leaves_of(problem, torch.float32, device_of(backend))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sk.attention_pooled_scores(*leaves, pooling="logsumexp", backend=backend)
    assert sum(kept) == sum(x.numel() for x in leaves) + 6 * 30 + 5 * 20 + 6 * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(backend: str) -> None:
    problem = make(Shape(3, 5, 4, 6, 12, "masked"))
    device = device_of(backend)
    images, texts = (x.to(device, torch.float32) for x in problem[:2])
    masks = problem.masks(device)
    plain = tuple(x.requires_grad_() for x in (images, texts))
    expected = sk.attention_pooled_scores(*plain, **masks, backend=backend)
    grads = gradients(expected, problem, plain)
    turned = {name: mask.T.contiguous().T for name, mask in masks.items()}
    for laid_out in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack([x, -x], -1)[..., 0],
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    ):
        leaves = tuple(laid_out(x).detach().requires_grad_() for x in (images, texts))
        found = sk.attention_pooled_scores(*leaves, **turned, backend=backend)
        torch.testing.assert_close(found, expected)
        for one, other in zip(gradients(found, problem, leaves), grads):
            torch.testing.assert_close(one, other)


@needs_cpu_half
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("weights", ["softmax", "words_softmax"])
def test_same_bits_on_any_number_of_threads(weights: str) -> None:
    for shape in (Shape(40, 9, 11, 33, 40, "packed"), Shape(7, 70, 11, 33, 16, "masked")):
        problem = make(shape)
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = leaves_of(problem, torch.float32, "cpu")
            scores = sk.attention_pooled_scores(*leaves, **problem.options, weights=weights, backend="cpu")
            found.append([scores.nan_to_num(7.0), *gradients(scores, problem, leaves)])
        for others in found[1:]:
            assert all(torch.equal(one, other) for one, other in zip(found[0], others))


@needs_cpu_half
@pytest.mark.parametrize("dtype", dtypes_of("cpu"))
def test_every_instruction_set(dtype: torch.dtype, capability: str) -> None:
    for shape, options in zip((SHAPES[1], SHAPES[2], SHAPES[3]), (OPTIONS[0], OPTIONS[5], OPTIONS[6])):
        check(make(shape), "cpu", dtype, **options)


@needs_cpu_half
def test_blocks_of_the_backward_pass() -> None:
    """More images than a block holds, and more similarity gradients than are passed on at once: as of parts."""
    problem = make(Shape(35, 520, 14, 77, 8, "masked"))
    upstream = problem.upstream[0].float()

    def grads(rows: slice, columns: slice) -> list[Tensor]:
        images, texts = problem.image_tokens[rows].float(), problem.text_tokens[columns].float()
        masks = (problem.options["image_mask"][rows], problem.options["text_mask"][columns])
        leaves = (images.requires_grad_(), texts.requires_grad_())
        scores = sk.attention_pooled_scores(*leaves, *masks, weights="words_softmax", backend="cpu")
        return list(torch.autograd.grad(scores, leaves, upstream[rows, columns]))

    every, half, rest = slice(None), slice(7), slice(7, None)
    parts = [[grads(rows, columns) for columns in (half, rest)] for rows in (slice(20), slice(20, None))]
    images, texts = grads(every, every)
    torch.testing.assert_close(images, torch.cat([one[0] + other[0] for one, other in parts]))
    torch.testing.assert_close(texts, torch.cat([one[1] + other[1] for one, other in zip(*parts)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_order_do_not_matter(backend: str) -> None:
    """Packed captions are those that a mask cuts out, captions of one embedding those of one token; items in another
    order have their scores in that order."""
    problem = make(Shape(3, 6, 4, 5, 16, "masked"))
    device = device_of(backend)
    images, texts = (x.to(device, torch.float32) for x in problem[:2])
    image_mask, text_mask = problem.masks(device).values()
    options: dict[str, Any] = {"weights": "words_softmax", "pooling": "logsumexp", "backend": backend}
    scores = sk.attention_pooled_scores(images, texts, image_mask, text_mask, **options)
    lengths = text_mask.sum(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    packed = sk.attention_pooled_scores(images, texts[text_mask], image_mask, cu_seqlens=offsets, **options)
    torch.testing.assert_close(packed, scores)
    turned = sk.attention_pooled_scores(images.flip(0), texts.flip(0), image_mask.flip(0), text_mask.flip(0), **options)
    torch.testing.assert_close(turned.flip(0, 1), scores)
    extended = sk.attention_pooled_scores(
        torch.cat([images, images], 1), texts, F.pad(image_mask, (0, image_mask.shape[1])), text_mask, **options
    )
    torch.testing.assert_close(extended, scores)
    whole = texts.nan_to_num()
    one = sk.attention_pooled_scores(images, whole[:, 0], image_mask, backend=backend)
    torch.testing.assert_close(one, sk.attention_pooled_scores(images, whole[:, :1], image_mask, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    problem = make(SHAPES[0])
    device = device_of(backend)
    images, texts = leaves_of(problem, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        scores = sk.attention_pooled_scores(images, texts, backend=backend)
    cast = sk.attention_pooled_scores(images.bfloat16(), texts.bfloat16(), backend=backend)
    torch.testing.assert_close(scores, cast, rtol=0, atol=0)
    assert scores.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in gradients(scores, problem, (images, texts)))


@pytest.mark.parametrize("backend", FUSED)
def test_compiled_with_packed_captions_of_changing_number_and_length(backend: str) -> None:
    def scores(images: Tensor, texts: Tensor, offsets: Tensor, longest: int) -> Tensor:
        return sk.attention_pooled_scores(images, texts, cu_seqlens=offsets, max_seqlen=longest, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(scores, backend="aot_eager", fullgraph=True)
    for captions, length in ((3, 4), (5, 6), (4, 7)):
        problem = make(Shape(3, 5, captions, length, 12, "packed"))
        leaves = leaves_of(problem, torch.float32, device_of(backend))
        leaves[0].data.nan_to_num_()
        offsets = problem.options["cu_seqlens"].to(leaves[0].device)
        expected, found = (function(*leaves, offsets, length) for function in (scores, compiled))
        torch.testing.assert_close(found, expected)
        for one, other in zip(*(gradients(x, problem, leaves) for x in (found, expected))):
            torch.testing.assert_close(one, other)


def test_exported_graphs_train() -> None:
    """With other sizes than it was exported with."""

    class Scores(torch.nn.Module):
        def forward(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
            return sk.attention_pooled_scores(images, texts, None, mask, weights="words_softmax", pooling="logsumexp")

    def batch(size: int, tokens: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(size)
        images, texts = (torch.randn(size, n, 8, generator=generator) for n in (4, tokens))
        return images, texts, torch.rand(size, tokens, generator=generator) > 0.3

    b, n = torch.export.Dim("b", min=2, max=64), torch.export.Dim("n", min=2, max=64)
    sizes = {"images": {0: b}, "texts": {0: b, 1: n}, "mask": {0: b, 1: n}}
    exported = torch.export.export(Scores(), batch(3, 5), dynamic_shapes=sizes).module()
    images, texts, mask = batch(6, 9)
    leaves = images.requires_grad_(), texts.requires_grad_()
    found, expected = (
        torch.autograd.grad(scores(images, texts, mask).square().sum(), leaves) for scores in (exported, Scores())
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_made_in_inference_mode(backend: str) -> None:
    device = device_of(backend)
    problem = make(Shape(3, 4, 3, 5, 8, "packed"))
    images, texts = leaves_of(problem, torch.float32, device)
    options = problem.masks(device)
    expected = gradients(sk.attention_pooled_scores(images, texts, **options, backend=backend), problem, (images,))
    with torch.inference_mode():
        texts = texts.clone()
        options = {name: x.clone() if isinstance(x, Tensor) else x for name, x in options.items()}
    found = gradients(sk.attention_pooled_scores(images, texts, **options, backend=backend), problem, (images,))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

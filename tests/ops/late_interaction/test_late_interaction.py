"""Scores of all pairs and their gradients on every backend, against float64 truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _native
from sparc_kernels.ops._registration import kernel
from sparc_kernels.ops.late_interaction import schema
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference
from sparc_kernels.ops.late_interaction.room import ROOM
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


SHAPES = (
    Shape(3, 5, 4, 6, 12),
    Shape(2, 70, 3, 33, 24, "masked"),  # more columns than a register tile, more tokens than half a block
    Shape(5, 9, 7, 20, 17, "packed"),  # captions across blocks of tokens; no whole vector of channels
    Shape(2, 257, 2, 3, 16, "masked"),  # indices of two bytes into the patches
    Shape(1, 3, 2, 260, 16, "packed"),  # and into the tokens
    Shape(1, 1, 1, 1, 2),
    Shape(0, 4, 3, 2, 8),
    Shape(3, 4, 0, 2, 8, "packed"),
)


def grads_of(scores: Any, problem: Problem, leaves: tuple[Tensor, Tensor]) -> list[Tensor]:
    total = sum((x * up.to(x.device, x.dtype)).sum() for x, up in zip(scores, problem.upstream) if x is not None)
    return list(torch.autograd.grad(total, leaves))


def eager(problem: Problem, dtype: torch.dtype, compute_dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Of the definition: scores that are wanted, gradients."""
    images, texts = leaves = leaves_of(problem, dtype, "cpu")
    known = dict(problem.options)
    offsets, longest = known.pop("cu_seqlens", None), known.pop("max_seqlen", 0)
    scores = late_interaction_reference(
        images, texts, **known, text_offsets=offsets, max_tokens=longest, **options, compute_dtype=compute_dtype
    )
    return [*(x.detach() for x in scores if x is not None), *grads_of(scores, problem, leaves)]


def check(problem: Problem, backend: str, dtype: torch.dtype, **options: Any) -> None:
    images, texts = leaves = leaves_of(problem, dtype, device_of(backend))
    scores = sk.late_interaction_scores(images, texts, **problem.masks(images.device), **options, backend=backend)
    found = [*(x.detach() for x in scores if x is not None), *grads_of(scores, problem, leaves)]
    direction = options.pop("direction", "both")
    known = {
        "average": options.pop("pooling", "mean") == "mean",
        "by_image": direction != "text_to_image",
        "by_text": direction != "image_to_text",
        **options,
    }
    truth = eager(problem, torch.float64, torch.float64, **known)
    plain = eager(problem, dtype, dtype if dtype.itemsize == 2 else torch.float32, **known)
    assert all(x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for x in found[:-2])
    for one, exact, made in zip(found, truth, plain, strict=True):
        if dtype.itemsize == 2:  # eager's similarities in half precision find other maxima
            made = exact.to(dtype).double()
        tolerance.assert_close(f"{tuple(exact.shape)}", one, exact, made, dtype, 1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("backend, dtype", EVERY)
def test_against_truth(shape: Shape, backend: str, dtype: torch.dtype) -> None:
    check(make(shape), backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "sum", "direction": "text_to_image"},
        {"direction": "image_to_text", "normalize": False},
        {"pooling": "sum", "normalize": False},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options(options: dict[str, Any], backend: str) -> None:
    check(make(SHAPES[1]), backend, torch.float32, **options)


def test_the_definition() -> None:
    """The reference against loops over pairs and tokens."""
    for shape in (SHAPES[1]._replace(patches=6, tokens=5), SHAPES[2]):
        problem = make(shape)
        images = torch.nn.functional.normalize(problem.image_tokens, dim=-1)
        texts = torch.nn.functional.normalize(problem.text_tokens, dim=-1)
        scores = eager(problem, torch.float64, torch.float64)[:2]
        for i, j in torch.cartesian_prod(torch.arange(shape.images), torch.arange(shape.captions)).tolist():
            patches = images[i][problem.options["image_mask"][i]]
            if shape.layout == "packed":
                begin, end = problem.options["cu_seqlens"][j : j + 2].tolist()
                tokens = texts[begin:end]
            else:
                tokens = texts[j][problem.options["text_mask"][j]]
            best_tokens = [max(float(patch @ token) for token in tokens) for patch in patches] if len(tokens) else []
            best_patches = [max(float(patch @ token) for patch in patches) for token in tokens] if len(patches) else []
            for found, expected in zip(scores, (best_tokens, best_patches)):
                mean = sum(expected) / len(expected) if expected else 0.0
                assert abs(float(found[i, j]) - mean) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_of_equals_takes_all(backend: str) -> None:
    """Whole numbers, so that no backend rounds: patches 1 and 2 are the same, and so are tokens 0 and 3."""
    images = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
    texts = torch.tensor([[[0.0, 3.0], [2.0, 0.0], [-1.0, -1.0], [0.0, 3.0]]])
    leaves = tuple(x.to(device_of(backend)).requires_grad_() for x in (images, texts))
    for direction, image_grad, text_grad in (
        ("text_to_image", [[1.0, -1.0], [0.0, 6.0], [0.0, 0.0]], [[0.0, 2.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]),
        ("image_to_text", [[2.0, 0.0], [0.0, 3.0], [0.0, 3.0]], [[0.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
    ):
        scores = sk.late_interaction_scores(
            *leaves, pooling="sum", normalize=False, direction=direction, backend=backend
        )
        total = sum(x.sum() for x in scores if x is not None)
        grads = torch.autograd.grad(total, leaves)
        assert grads[0][0].tolist() == image_grad
        assert grads[1][0].tolist() == text_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_with_its_image_and_its_caption(backend: str) -> None:
    problem = make(Shape(3, 20, 3, 12, 16))
    images, texts = (x.to(device_of(backend), torch.float32).requires_grad_() for x in problem[:2])
    whole = sk.late_interaction_scores(images, texts, backend=backend)
    images, texts = images.detach().clone(), texts.detach().clone()
    images[1, [18, 17], 3] = torch.nan
    texts[2, 11, 0] = torch.nan
    images.requires_grad_()
    found = sk.late_interaction_scores(images, texts, backend=backend)
    for one, other in zip(found, whole):
        assert one is not None
        assert other is not None
        assert one[1].isnan().all()
        assert one[:, 2].isnan().all()
        torch.testing.assert_close(one[[0, 2], :2], other[[0, 2], :2], rtol=0, atol=0)
    if backend != "eager":
        flags = (0, True, True, True, True, True, "highest")
        _, _, best_token, best_patch, _ = kernel("max_similarity_forward", backend)(
            images.detach(), texts, None, None, None, *flags
        )
        assert (best_patch[1, :2] == 17).all()
        assert (best_token[0, 2] == 11).all()


@pytest.mark.parametrize("backend", FUSED)
def test_indices_say_none(backend: str) -> None:
    """At tokens that are not valid, and where nothing valid is faced; of the narrowest dtype."""
    for tokens, dtype in ((255, torch.uint8), (256, torch.int16)):
        images = torch.randn(2, 3, 4, device=device_of(backend))
        texts = torch.randn(2, tokens, 4, device=device_of(backend))
        image_mask = torch.tensor([[True, False, True], [False, False, False]], device=device_of(backend))
        flags = (0, True, True, True, True, True, "highest")
        _, stats, best_token, best_patch, _ = kernel("max_similarity_forward", backend)(
            images, texts, image_mask, None, None, *flags
        )
        none = schema.none_index(dtype)
        assert best_token.dtype == dtype
        assert best_patch.dtype == torch.uint8
        assert (best_token == none).tolist() == (~image_mask)[:, None].expand(2, 2, 3).tolist()
        assert not (best_patch[0] == 255).any()
        assert (best_patch[1] == 255).all()
        expected = 1 / torch.cat([images.flatten(0, 1), texts.flatten(0, 1)]).norm(dim=-1)
        valid = torch.cat([image_mask.flatten(), torch.ones(2 * tokens, dtype=torch.bool, device=images.device)])
        torch.testing.assert_close(stats[valid], expected[valid])


@pytest.mark.parametrize("backend", FUSED)
def test_tokens_of_no_caption(backend: str) -> None:
    """Before the first offset and behind the last: index none, gradient 0."""
    images = torch.randn(2, 3, 8, device=device_of(backend))
    texts = torch.randn(9, 8, device=device_of(backend))
    texts[[0, 7, 8]] = torch.nan
    offsets = torch.tensor([1, 4, 7], device=images.device)
    flags = (3, True, True, True, True, True, "highest")
    image_scores, stats, best_token, best_patch, text_scores = kernel("max_similarity_forward", backend)(
        images, texts, None, None, offsets, *flags
    )
    expected = late_interaction_reference(images, texts[1:7], None, None, offsets - 1, 3)
    torch.testing.assert_close((image_scores, text_scores), expected)
    assert (best_patch == 255).tolist() == 2 * [[True, *6 * [False], True, True]]
    kept = (stats, best_token, best_patch)
    options = (3, True, True, True, True, "highest")
    grads = kernel("max_similarity_backward", backend)(
        *map(torch.ones_like, (image_scores, text_scores)), images, texts, None, None, offsets, *kept, *options
    )
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not grads[1][[0, 7, 8]].any()
    assert grads[1][1:7].any(1).all()


@pytest.mark.parametrize("backend", FUSED)
def test_without_keeping_the_backward_pass_runs_the_forward_again(backend: str) -> None:
    problem = make(SHAPES[2])
    grads = []
    for keep in (True, False):
        images, texts = leaves_of(problem, torch.float32, device_of(backend))
        masks = problem.masks(device_of(backend))
        image_scores, _, best_token, best_patch, text_scores = kernel("max_similarity_forward", backend)(
            images, texts, masks["image_mask"], None, masks["cu_seqlens"], masks["max_seqlen"],
            True, True, True, True, keep, "highest",
        )  # fmt: skip
        assert (best_token.numel() > 0) == (best_patch.numel() > 0) == keep
        grads.append(grads_of((image_scores, text_scores), problem, (images, texts)))
    assert all(torch.equal(one, other) for one, other in zip(*grads))


@pytest.mark.parametrize("backend", FUSED)
def test_frozen_sides_get_nothing(backend: str) -> None:
    problem = make(SHAPES[0])
    whole = None
    for frozen in (None, 0, 1):
        leaves = leaves_of(problem, torch.float32, device_of(backend))
        if frozen is not None:
            leaves[frozen].requires_grad_(False)
        scores = sk.late_interaction_scores(*leaves, backend=backend)
        wanted = tuple(x for x in leaves if x.requires_grad)
        grads = grads_of(scores, problem, wanted)
        if frozen is None:
            whole = grads
        else:
            assert whole is not None
            assert torch.equal(grads[0], whole[1 - frozen])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["transposed", "strided", "slices"])
def test_strides(layout: str, backend: str) -> None:
    problem = make(Shape(3, 5, 4, 6, 12, "masked"))

    def laid_out(x: Tensor) -> Tensor:
        if layout == "transposed":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "strided":
            return torch.stack([x, -x], -1)[..., 0]
        return torch.cat([x, x], 1)[:, : x.shape[1]]

    images, texts = (x.to(device_of(backend), torch.float32) for x in problem[:2])
    masks = problem.masks(device_of(backend))
    leaves = tuple(laid_out(x).detach().requires_grad_() for x in (images, texts))
    plain = tuple(x.requires_grad_() for x in (images, texts))
    turned = {name: mask.T.contiguous().T for name, mask in masks.items()}
    scores = [
        sk.late_interaction_scores(*x, **given, backend=backend) for x, given in ((leaves, turned), (plain, masks))
    ]
    torch.testing.assert_close(scores[0], scores[1])
    grads = [grads_of(x, problem, given) for x, given in zip(scores, (leaves, plain))]
    torch.testing.assert_close(*grads)


@needs_cpu_half
@pytest.mark.usefixtures("threads")
def test_same_bits_on_any_number_of_threads() -> None:
    problem = make(Shape(7, 70, 11, 33, 40, "packed"))
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        leaves = leaves_of(problem, torch.float32, "cpu")
        scores = sk.late_interaction_scores(*leaves, **problem.options, backend="cpu")
        found.append([*scores, *grads_of(scores, problem, leaves)])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others))


@needs_cpu_half
@pytest.mark.parametrize("dtype", dtypes_of("cpu"))
def test_every_instruction_set(dtype: torch.dtype, capability: str) -> None:
    for shape in SHAPES[1:3]:
        check(make(shape), "cpu", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_order_do_not_matter(backend: str) -> None:
    """Packed captions are those that a mask cuts out; items in another order have their scores in that order."""
    problem = make(Shape(3, 6, 4, 5, 16, "masked"))
    device = device_of(backend)
    images, texts = (x.to(device, torch.float32) for x in problem[:2])
    masks = problem.masks(device)
    scores = sk.late_interaction_scores(images, texts, **masks, backend=backend)
    lengths = masks["text_mask"].sum(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    packed = sk.late_interaction_scores(
        images, texts[masks["text_mask"]], masks["image_mask"], cu_seqlens=offsets, backend=backend
    )
    torch.testing.assert_close(packed, scores)
    turned = sk.late_interaction_scores(
        images.flip(0), texts.flip(0), masks["image_mask"].flip(0), masks["text_mask"].flip(0), backend=backend
    )
    torch.testing.assert_close(tuple(x.flip(0, 1) for x in turned if x is not None), tuple(scores))
    extended = sk.late_interaction_scores(
        torch.cat([images, images], 1),
        texts,
        torch.cat([masks["image_mask"], torch.zeros_like(masks["image_mask"])], 1),
        masks["text_mask"],
        backend=backend,
    )
    torch.testing.assert_close(extended, scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    problem = make(SHAPES[0])
    device = device_of(backend)
    images, texts = leaves_of(problem, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        scores = sk.late_interaction_scores(images, texts, backend=backend)
    cast = sk.late_interaction_scores(images.bfloat16(), texts.bfloat16(), backend=backend)
    torch.testing.assert_close(scores, cast, rtol=0, atol=0)
    assert all(x is not None and x.dtype == torch.float32 for x in scores)
    assert all(grad.dtype == torch.float32 for grad in grads_of(scores, problem, (images, texts)))


@pytest.mark.parametrize("backend", FUSED)
def test_compiled_with_packed_captions_of_changing_number_and_length(backend: str) -> None:
    def scores(images: Tensor, texts: Tensor, offsets: Tensor, longest: int) -> Any:
        return tuple(sk.late_interaction_scores(images, texts, cu_seqlens=offsets, max_seqlen=longest, backend=backend))

    torch._dynamo.reset()
    compiled = torch.compile(scores, backend="aot_eager", fullgraph=True)
    for captions, length in ((3, 4), (5, 6), (4, 7)):
        problem = make(Shape(3, 5, captions, length, 12, "packed"))
        leaves = leaves_of(problem, torch.float32, device_of(backend))
        leaves[0].data.nan_to_num_()
        offsets = problem.options["cu_seqlens"].to(leaves[0].device)
        expected, found = (function(*leaves, offsets, length) for function in (scores, compiled))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(grads_of(x, problem, leaves) for x in (found, expected)))

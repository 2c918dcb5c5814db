"""Cases of four ranks: the losses, for each kind of argument."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure.peers import part_of
from sparc_kernels.functional import (
    _streamed,
    attention_pooled_scores,
    contrastive_loss,
    filip_loss,
    flair_loss,
    gloria_loss,
    late_interaction_scores,
    mgca_local_loss,
    pacl_loss,
    sigmoid_loss,
    subcaption_grouping_loss,
)
from sparc_kernels.modules import FilipLoss
from tests.distributed.problems import (
    CLOSE,
    LEAVES,
    UNEVEN,
    Loss,
    Problem,
    compare,
    leaves,
    mean_of_ranks,
    of_rank,
    off,
)
from tests.distributed.world import Cases, Here

THEIRS: Any = part_of("open_clip", "loss")

CASES = Cases()
SOFTMAX = (
    "",
    "direction=image_to_text",
    "direction=text_to_image",
    "reduction=sum",
    "weights",
    "label_smoothing=0.1",
    "labels",
    "padded-labels",
    "labels label_smoothing=0.2",
    "pairs",
    "weighted-pairs",
    "pairs label_smoothing=0.1",
    "pairs direction=text_to_image",
    "ids",
    "own-ids",
    "own-ids pairs",
    "without-pairs",
    "above",
    "ids without-pairs above",
    "without-pairs labels",
    "without-pairs pairs",
    "teacher alpha=0.4",
    "teacher labels alpha=0.4 direction=text_to_image",
    "teacher pairs alpha=0.4",
    "extra_texts extra_images",
    "extra_texts direction=image_to_text labels",
)
SIGMOID = (
    "",
    "reduction=sum",
    "weights",
    "labels",
    "padded-labels",
    "pairs",
    "weighted-pairs",
    "ids",
    "own-ids",
    "above",
)
TEXTS = {(5, 9, 3, 7): (10, 2, 0, 11), (6, 0, 1, 17): (3, 4, 1, 9)}  # of each rank, where pairs name the targets


def _problem(kinds: str, sizes: tuple[int, ...]) -> Problem:
    uneven = any(kind in kinds.split() for kind in ("pairs", "weighted-pairs", "labels"))
    return Problem.of(
        sizes, TEXTS[sizes] if uneven and "own-ids" not in kinds and "weights" not in kinds.split() else None
    )


def _softmax(kinds: str, here: Here) -> None:
    for sizes in UNEVEN:
        for backend in ("cpu", "eager"):
            problem = _problem(kinds, sizes)
            error = compare(contrastive_loss, problem, kinds, here, backend)
            assert error < CLOSE, f"{sizes} {backend}: {error:.3g}"


def _biased(bias: Tensor, **options: object) -> Tensor:
    return sigmoid_loss(logit_bias=bias, **options)


def _sigmoid(kinds: str, here: Here) -> None:
    for sizes in UNEVEN:
        for backend in ("cpu", "eager"):
            problem = _problem(kinds, sizes)
            loss = partial(_biased, torch.tensor(-3.0, dtype=torch.float64))
            error = compare(loss, problem, kinds, here, backend)
            assert error < CLOSE, f"{sizes} {backend}: {error:.3g}"


for _kinds in SOFTMAX:
    CASES.add(f"softmax {_kinds}".strip())(partial(_softmax, _kinds))
for _kinds in SIGMOID:
    CASES.add(f"sigmoid {_kinds}".strip())(partial(_sigmoid, _kinds))


RING = {
    "softmax": (
        "",
        "direction=image_to_text",
        "direction=text_to_image reduction=sum",
        "weights",
        "label_smoothing=0.1",
        "ids",
        "own-ids",
        "ids without-pairs",
        "extra_texts extra_images",
    ),
    "sigmoid": ("", "reduction=sum", "weights", "labels", "padded-labels", "ids", "own-ids", "without-pairs"),
}
LOSSES: dict[str, Loss] = {
    "softmax": contrastive_loss,
    "sigmoid": lambda **options: sigmoid_loss(logit_bias=torch.tensor(-3.0, dtype=torch.float64), **options),
}


@CASES.add("ring")
def ring(here: Here) -> None:
    """Texts go around: the same loss and gradients."""
    for name, loss in LOSSES.items():
        for sizes in UNEVEN:
            for kinds in RING[name]:
                error = compare(loss, _problem(kinds, sizes), kinds, here, "cpu", exchange="ring")
                assert error < CLOSE, f"{name} {kinds} {sizes}: {error:.3g}"
        three = dist.new_group([0, 1, 2])
        if here.rank < 3:
            error = compare(loss, Problem.of((4, 0, 5)), "", Here(three, here.rank, 3), "cpu", exchange="ring")
            assert error < CLOSE, f"{name} three ranks: {error:.3g}"
        for frozen in (("image_embeds",), ("text_embeds",), ("logit_scale",), ("image_embeds", "text_embeds")):
            error = compare(loss, Problem.of(UNEVEN[1]), "", here, "cpu", frozen, "sum", "ring")
            assert error < CLOSE, f"{name} without gradients of {frozen}: {error:.3g}"


def _allocated(loss: Loss, here: Here, exchange: str) -> tuple[int, int]:
    """Bytes: the largest tensor that is made, and the most that lives at once."""
    x = [torch.randn(96, 64, requires_grad=True) for _ in range(2)]
    torch.cuda.is_available()  # outside of what is recorded
    with torch.profiler.profile(profile_memory=True) as profile:
        loss(image_embeds=x[0], text_embeds=x[1], logit_scale=6.0, group=here.group, exchange=exchange).backward()
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(sizes), max(accumulate(sizes))


@CASES.add("memory of a ring")
def memory_of_a_ring(here: Here) -> None:
    """No tensor is larger than a block of texts, and four ranks take no more than three; gathered, both grow."""
    three, block = dist.new_group([0, 1, 2]), 96 * 64 * 4
    for name, loss in LOSSES.items():
        of_cpu = partial(loss, backend="cpu")
        with mock.patch.object(_streamed, "KEEP_BYTES", 0):
            for exchange in ("ring", "gather"):
                largest, most = _allocated(of_cpu, here, exchange)
                if here.rank < 3:
                    fewer = _allocated(of_cpu, Here(three, here.rank, 3), exchange)[1]
                    message = f"{name} {exchange}: {fewer} and {most} bytes with three and four ranks"
                    assert (most < 1.02 * fewer) == (exchange == "ring"), message
                assert largest == block * (1 if exchange == "ring" else 4), f"{name} {exchange}: {largest}"


@CASES.add("frozen sides")
def frozen_sides(here: Here) -> None:
    """Nothing is computed for them, and nothing waits for them."""
    problem = Problem.of(UNEVEN[0])
    for frozen in (("image_embeds",), ("text_embeds",), ("logit_scale",), ("image_embeds", "text_embeds")):
        for loss in (contrastive_loss, partial(_biased, torch.tensor(-3.0, dtype=torch.float64))):
            for backend in ("cpu", "eager"):
                error = compare(loss, problem, "", here, backend, frozen)
                assert error < CLOSE, f"{frozen} {backend}: {error:.3g}"


@CASES.add("gradients that are summed")
def summed(here: Here) -> None:
    problem = Problem.of(UNEVEN[1])
    for loss in (contrastive_loss, partial(_biased, torch.tensor(-3.0, dtype=torch.float64))):
        error = compare(loss, problem, "", here, "cpu", gradients="sum")
        assert error < CLOSE, f"{error:.3g}"


def _packed(text_tokens: Tensor, text_mask: Tensor) -> dict[str, Any]:
    """Captions whose padding is behind them, without it."""
    ends = text_mask.sum(1).cumsum(0)
    length = text_tokens.shape[1]
    return {"text_tokens": text_tokens[text_mask], "cu_seqlens": F.pad(ends, (1, 0)), "max_seqlen": length}


def _filip(image_embeds: Tensor, text_embeds: Tensor, packed: bool = False, **options: Any) -> Tensor:
    texts = _packed(text_embeds, options.pop("text_mask")) if packed else {"text_tokens": text_embeds}
    return filip_loss(image_embeds, **texts, **options)


def _by_module(
    module: FilipLoss, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, backend: str, **ours: object
) -> Tensor:
    """With the group, gradients and scale that the module was made with; the single process has no group."""
    if ours:
        return module(image_embeds, text_embeds)
    return filip_loss(image_embeds, text_embeds, logit_scale=module.logit_scale, backend=backend)


@CASES.add("filip")
def filip(here: Here) -> None:
    """Packed, masked and bare captions; frozen sides, and gradients that are summed."""
    for sizes in UNEVEN:
        problem = Problem.of_tokens(sizes)
        for backend in ("cpu", "eager"):
            for kinds, packed in (("", False), ("image_mask text_mask", False), ("image_mask text_mask", True)):
                error = compare(_filip, problem, kinds, here, backend, packed=packed)
                assert error < CLOSE, f"{sizes} {backend} {kinds} packed={packed}: {error:.3g}"
        for frozen in (("image_embeds",), ("text_embeds",), ("logit_scale",), ("image_embeds", "text_embeds")):
            error = compare(_filip, problem, "text_mask", here, "cpu", frozen, "sum")
            assert error < CLOSE, f"{sizes} without gradients of {frozen}: {error:.3g}"
    for gradients in ("mean", "sum"):
        module = FilipLoss(group=here.group, gradients=gradients, logit_scale=1)
        error = compare(partial(_by_module, module), problem, "", here, "auto", ("logit_scale",), gradients)
        assert error < CLOSE, f"{gradients}, by the module: {error:.3g}"


def _gloria(image_embeds: Tensor, text_embeds: Tensor, packed: bool = False, **options: Any) -> Tensor:
    texts = _packed(text_embeds, options.pop("text_mask")) if packed else {"text_tokens": text_embeds}
    return gloria_loss(image_embeds, **texts, **options)


def _pacl(image_embeds: Tensor, text_embeds: Tensor, **options: Any) -> Tensor:
    return pacl_loss(image_embeds, text_embeds[:, 0], **options)


def _flair(image_embeds: Tensor, text_embeds: Tensor, **options: Any) -> Tensor:
    """Two tokens of each caption are its image's captions."""
    return flair_loss(image_embeds, text_embeds[:, :2].flatten(0, 1), captions_per_image=2, logit_bias=-3.0, **options)


@CASES.add("losses on attention-pooled scores")
def pooled(here: Here) -> None:
    calls: dict[Loss, tuple[tuple[str, dict[str, Any]], ...]] = {
        _gloria: (("", {}), ("image_mask text_mask", {}), ("image_mask text_mask", {"packed": True})),
        _pacl: (("image_mask", {}), ("", {"weights": "softmax"})),
        _flair: (("image_mask", {}), ("", {})),
    }
    for loss, kinds in calls.items():
        for sizes, backend, masks, options in (
            (UNEVEN[1], "eager", *kinds[0]),
            *((UNEVEN[0], "cpu", *kind) for kind in kinds),
        ):
            error = compare(loss, Problem.of_tokens(sizes), masks, here, backend, **options)
            assert error < CLOSE, f"{loss.__name__} {sizes} {backend} {masks} {options}: {error:.3g}"
        for frozen in (("image_embeds", "logit_scale"), ("text_embeds",)):
            error = compare(loss, Problem.of_tokens(UNEVEN[1]), "", here, "cpu", frozen, "sum")
            assert error < CLOSE, f"{loss.__name__} without gradients of {frozen}: {error:.3g}"


def _subcaptions(image_embeds: Tensor, text_embeds: Tensor, negatives: str, **options: Any) -> Tensor:
    options["subcaption_mask"] = options.pop("text_mask")
    return subcaption_grouping_loss(image_embeds, text_embeds, negatives=negatives, **options)


def _mgca(image_embeds: Tensor, text_embeds: Tensor, **options: Any) -> Tensor:
    return mgca_local_loss(image_embeds, text_embeds, **options)


@CASES.add("losses within pairs")
def within_pairs(here: Here) -> None:
    """Texts and images of nothing but padding among them, and a rank without a pair."""
    for sizes in UNEVEN:
        problem = Problem.of_tokens(sizes)
        for gradients in ("mean", "sum"):
            error = compare(_mgca, problem, "image_mask text_mask", here, "cpu", (), gradients)
            assert error < CLOSE, f"{sizes} {gradients}, mgca: {error:.3g}"
        for negatives in ("batch", "image"):
            error = compare(_subcaptions, problem, "text_mask", here, "cpu", negatives=negatives)
            assert error < CLOSE, f"{sizes} {negatives}: {error:.3g}"
    odd = here.rank == 2
    with pytest.raises(
        ValueError, match="direction must be the same on all ranks, got image_to_text on rank 2 and both"
    ):
        mgca_local_loss(
            torch.ones(2, 3, 4), torch.ones(2, 5, 4), direction="image_to_text" if odd else "both", group=here.group
        )


SCORES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (late_interaction_scores, {"direction": "both", "pooling": "sum"}),
    (late_interaction_scores, {"direction": "image_to_text", "pooling": "sum"}),
    (late_interaction_scores, {"direction": "text_to_image", "pooling": "sum"}),
    (attention_pooled_scores, {"weights": "words_softmax", "pooling": "logsumexp"}),
)


@CASES.add("scores of all pairs")
def scores_of_all_pairs(here: Here) -> None:
    """The rows of this rank's images, with the captions of all; gradients are those of the sum over ranks."""
    for sizes in UNEVEN:
        problem, batch = Problem.of_tokens(sizes), sum(sizes)
        weights = torch.randn(2, batch, batch, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        mine = slice(sum(sizes[: here.rank]), sum(sizes[: here.rank + 1]))
        for function, known in SCORES:
            whole, own = leaves(problem, None), leaves(problem, here.rank)
            found = []
            for x, rank, options in ((whole, None, {"backend": "eager"}), (own, here.rank, {"group": here.group})):
                masks = problem.options("image_mask text_mask", rank)
                scores = function(x["image_embeds"], x["text_embeds"], **options, **known, **masks)
                found.append((scores,) if isinstance(scores, Tensor) else scores)
                pairs = zip(found[-1], weights if rank is None else weights[:, mine])
                sum((scores * weight).sum() for scores, weight in pairs if scores is not None).backward()
            for true, scores in zip(*found):
                assert off(scores, None if true is None else true[mine]) < CLOSE
            for name in LEAVES[:2]:
                assert off(own[name].grad, whole[name].grad[mine]) < CLOSE, f"{sizes} {known} {name}"


@CASES.add("late interaction, ranks that disagree")
def disagreeing_tokens(here: Here) -> None:
    """All ranks get the error, and can go on."""
    images, texts = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    mask = torch.ones(2, 5, dtype=torch.bool)
    packed, odd = _packed(texts, mask), here.rank == 2
    calls: dict[str, dict[str, Any]] = {
        "text_tokens length must be the same on all ranks, got 4 on rank 2 and 5": {
            "text_tokens": texts[:, :4] if odd else texts
        },
        "text_mask given must be the same on all ranks, got True on rank 2 and False": {
            "text_tokens": texts, "text_mask": mask if odd else None
        },
        "cu_seqlens given must be the same on all ranks, got True on rank 2 and False": (
            packed if odd else {"text_tokens": texts}
        ),
        "max_seqlen must be the same on all ranks, got 6 on rank 2 and 5": packed | {"max_seqlen": 6 if odd else 5},
        "image_tokens requires_grad must be the same on all ranks, got True on rank 2 and False": {
            "image_tokens": images.clone().requires_grad_(odd), "text_tokens": texts
        },
        "max_seqlen must be given with cu_seqlens and group": packed | {"max_seqlen": None},
    }  # fmt: skip
    for message, arguments in calls.items():
        with pytest.raises(ValueError, match=message):
            filip_loss(**{"image_tokens": images} | arguments, group=here.group)
    message = "captions_per_image must be the same on all ranks, got 2 on rank 2 and 1"
    with pytest.raises(ValueError, match=message):
        flair_loss(
            images, texts[:, :2].flatten(0, 1) if odd else texts[:, 0], captions_per_image=1 + odd, group=here.group
        )
    with pytest.raises(ValueError, match="pooling must be the same on all ranks, got sum on rank 2 and mean"):
        late_interaction_scores(images, texts, pooling="sum" if odd else "mean", group=here.group)
    with pytest.raises(ValueError, match=r"attention_scale must be the same on all ranks, got 2.5 on rank 2 and 10.0"):
        attention_pooled_scores(images, texts, attention_scale=2.5 if odd else 10, group=here.group)
    assert late_interaction_scores(images, texts, group=here.group).image_scores.shape == (2, 2 * here.size)


@CASES.add("open_clip's modes")
def modes_of_open_clip(here: Here) -> None:
    """What docs/distributed.md says of the gradients that DDP makes of open_clip's own loss, relative to the true."""
    if THEIRS is None:
        return
    for (local, with_grad), (of_towers, straight) in {
        (True, True): (1.0, True),
        (False, True): (1.0, True),
        (False, False): (1 / here.size, True),
        (True, False): (0.5, False),
    }.items():
        problem = Problem.of((8,) * here.size)
        whole, own = leaves(problem, None), leaves(problem, here.rank)
        contrastive_loss(**whole, backend="eager").backward()
        loss = THEIRS.ClipLoss(local_loss=local, gather_with_grad=with_grad, rank=here.rank, world_size=here.size)
        loss(*(F.normalize(own[name], dim=-1) for name in LEAVES[:2]), own["logit_scale"]).backward()
        grads = {name: (own[name].grad, whole[name].grad) for name in LEAVES}
        assert off(mean_of_ranks(grads["logit_scale"][0], here), grads["logit_scale"][1]) < CLOSE
        for name in LEAVES[:2]:
            made, true = grads[name][0] / here.size, of_rank(grads[name][1], problem.images, here.rank)
            factor = float((made * true).sum() / true.square().sum())
            turned = float((made - factor * true).norm() / (factor * true.norm()))
            assert abs(factor - of_towers) < (1e-9 if straight else 0.2), f"{local} {with_grad}: {factor:.3g}"
            assert (turned < 1e-9) == straight, f"{local} {with_grad}: {turned:.3g}"
            if here.rank == 0:
                print(f"local_loss={local} gather_with_grad={with_grad} {name}: {factor:.3f}, {turned:.1%} elsewhere")

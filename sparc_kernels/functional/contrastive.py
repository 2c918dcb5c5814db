"""Contrastive losses over all pairs of a batch, composed of streamed statistics (docs/losses.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Fact, Group, Ranks, global_ratios, ranks_of, replicated
from sparc_kernels.functional._arguments import (
    REDUCTIONS,
    check_reduction,
    check_share,
    check_targets,
    check_together,
    checked_embeddings,
    checked_extras,
    checked_item_weights,
)
from sparc_kernels.functional._candidates import (
    Exclusion,
    Labels,
    Pairs,
    Scope,
    Teacher,
    checked_guide,
    checked_scale,
    checked_scope,
    checked_single,
)
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE, DIRECTIONS, recordable, wanted_directions
from sparc_kernels.functional._everyone import Everyone, everyone_of, exclusion_facts, scope_of_everyone
from sparc_kernels.functional._objectives import (
    Call,
    Losses,
    Targets,
    mean_softmax_loss,
    sigmoid_losses,
    sigmoid_total,
    softmax_losses,
)
from sparc_kernels.functional._ring import check_exchange
from sparc_kernels.functional._streamed import launches_whole_losses, sigmoid_of_pairs
from sparc_kernels.ops.contrastive.reference import contrastive_reference, sigmoid_reference

_NOBODY = -(2**62)  # a label that no item has


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    logit_scale: float | Tensor = DEFAULT_LOGIT_SCALE,
    targets: Targets | None = None,
    exclude: Exclusion | Sequence[Exclusion] | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    teacher: Teacher | None = None,
    alpha: float = 0.0,
    direction: str = "both",
    extra_texts: Tensor | None = None,
    extra_images: Tensor | None = None,
    reduction: str = "mean",
    group: Group = None,
    gradients: str = "mean",
    exchange: str = "gather",
    backend: str = "auto",
) -> Tensor:
    """Contrastive loss: cross-entropy of the softmax over the cosines between images and texts, which are never stored.

    With nothing but embeddings it is symmetric InfoNCE: the loss of CLIP (Radford et al., 2021), equation 1 of Bica
    et al. (2024). docs/losses.md says how the losses of other papers are written with it.

    Args:
        image_embeds: [M, D] image embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_embeds: [N, D] text embeddings, of the same dtype and device.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        targets: None: text i belongs to image i. :class:`Labels`: all texts of an image's label are its positives, of
            equal weight; for few positives at a sharp scale :class:`Pairs` are more accurate. :class:`Pairs`: image i
            and its texts, with weights (None: equal, summing to 1; weights given are taken as they are in
            both directions). The loss of an item without a positive is 0.
        exclude: pairs that are no candidates, beyond the targets: :class:`Ids`, :class:`Pairs`, :class:`Above`, or
            several. A positive stays one even so, except that under labels or a teacher an excluded pair is no
            target either. Items of id -1 are padding: no loss, no candidate, not counted in a mean.
            Not served: ``Ids`` with labels or a teacher; ``Above`` with labels or a teacher.
        weights: a factor per image and its text, not negative; it is no part of the mean's denominator.
        label_smoothing: this share of the target goes evenly to all candidates, in [0, 1). Not together with
            ``exclude``, whose mean over the candidates would need all pairs.
        teacher: soft targets: the softmax of a :class:`Teacher` of the same batch (where extra items are given, of the
            images with ``extra_images`` behind them, of the texts with ``extra_texts``).
        alpha: the share of the teacher's targets, in [0, 1]; the rest is that of ``targets``.
        direction: ``"both"`` (the mean of both), ``"image_to_text"`` (an image among texts) or ``"text_to_image"``.
        extra_texts: [Q, D] further candidates of the images, such as a queue: no positives, without gradient.
        extra_images: [Q, D] further candidates of the texts.
        reduction: ``"mean"`` over the items that are no padding, ``"sum"`` over all, ``"none"``: one per item. With
            both directions, half of the images' and half of the texts'.
        group: ``"world"`` or a process group: the loss is that of the batches of all its ranks, one after the other,
            and each rank returns it (docs/distributed.md). Each comes with its own images and texts, of any number,
            with ids, labels, weights, teacher and thresholds of these, and with the rows of ``indptr`` of its own
            images; ``indices`` of :class:`Pairs` count the texts of all ranks. Scales, and extra items, are the same
            on all ranks. ``"none"``: the items of this rank, whose gradients have no factor. None: this process alone.
            Not served: a teacher with extra items.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``. With
            ``"mean"`` the gradient of ``logit_scale`` is that of the loss on every rank.
        exchange: how the texts of other ranks come: ``"gather"``, all at once, or ``"ring"``, one rank's after the
            other's, in memory that does not grow with the ranks (docs/distributed.md says when it pays). A ring does
            not serve targets, a teacher, :class:`Above` and ``backend="eager"``.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [] (``"none"``: [M], for one direction [M] or [N]) in float32 (float64 for float64 embeddings); 0 for an
        empty batch, and for items without candidates.

    Raises:
        TypeError: an argument of another type or dtype than it has to be.
        ValueError: shapes, devices, ids, pairs, weights, scales that do not fit, or arguments that do not go together.
        NotImplementedError: the backend cannot serve the call, or ``group`` cannot.
    """
    images, texts = checked_embeddings(image_embeds, text_embeds)
    ranks = ranks_of(group, gradients, "contrastive_loss")
    wanted = wanted_directions(direction)
    check_targets(images, texts, targets, wanted)
    check_reduction(reduction, images, texts, wanted)
    check_share("label_smoothing", label_smoothing, below_one=True)
    check_share("alpha", alpha)
    check_together(targets, exclude, label_smoothing, teacher, alpha)
    extras = checked_extras(images, texts, extra_texts, extra_images, wanted)
    weights = checked_item_weights(weights, images, texts, wanted)
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_embeds", images), ranks)
    backend = resolve("contrastive", backend, images.device, images.dtype)
    refused = {} if targets is None else {"targets": "positives would be on other ranks"}
    if teacher is not None:
        refused["a teacher"] = "the teacher's embeddings would have to travel, too"
    ring = check_exchange(exchange, backend, exclude, refused)
    optional = (targets, exclude, weights, teacher, *extras)
    plain = all(x is None for x in optional) and all(wanted) and reduction == "mean" and not label_smoothing
    if plain and backend == "eager" and ranks is None:
        return contrastive_reference(recordable(images), recordable(texts), scale)
    if plain and ranks is None and backend != "eager" and _validate.runs_now():
        return mean_softmax_loss(Call(images, texts, scale, Scope(), backend))
    labels = targets if isinstance(targets, Labels) else None
    if teacher is not None and any(x is not None for x in extras):
        if ranks is not None:
            raise NotImplementedError("group must be None where a teacher is given with extra_texts or extra_images")
        if exclude is not None or isinstance(targets, Pairs):
            raise ValueError(
                "a teacher with extra_texts or extra_images goes with neither exclude nor Pairs as targets"
            )
        call = Call(images, texts, scale, Scope(), backend, wanted, *extras, label_smoothing, alpha)
        losses = [x for each in _joined(call, labels, teacher) for x in softmax_losses(each, labels)]
    else:
        facts = _facts(images, scale, targets, exclude, teacher) | {
            "direction": (direction, DIRECTIONS),
            "reduction": (reduction, REDUCTIONS),
            "weights given": weights is not None,
            "label_smoothing given": label_smoothing != 0,
            "alpha given": alpha != 0,
            "extra_texts": 0 if extras[0] is None else extras[0].shape[0],
            "extra_images": 0 if extras[1] is None else extras[1].shape[0],
        }
        everyone = None if ranks is None else everyone_of("text_embeds", texts, facts, ranks, ring)
        scope, paired = _scope(images, texts, exclude, targets, teacher, everyone)
        call = Call(images, texts, scale, scope, backend, wanted, *extras, label_smoothing, alpha, everyone, paired)
        losses = softmax_losses(call, targets)
    return _reduced(losses, weights, reduction, ranks)


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    targets: Targets | None = None,
    exclude: Exclusion | Sequence[Exclusion] | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    group: Group = None,
    gradients: str = "mean",
    exchange: str = "gather",
    backend: str = "auto",
) -> Tensor:
    """The sigmoid loss: every pair of the batch a binary classification.

    Equation 1 of Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023). Mean and sum compute the gradients
    that are wanted along with the value and keep them for the backward pass; for a value alone use ``torch.no_grad()``.

    Args:
        image_embeds: [M, D] image embeddings; float16, bfloat16, float32 or float64. Not normalised by the caller.
        text_embeds: [N, D] text embeddings, of the same dtype and device.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        logit_bias: added to every logit, a number or a one-element tensor; the paper starts at -10.
        targets: which pairs are positives, as in :func:`contrastive_loss`; weights of :class:`Pairs` multiply the
            positive pairs (None: 1), such as 1 / k for an image of k captions.
        exclude: pairs that are left out, as in :func:`contrastive_loss`.
        weights: a factor per image, for all its pairs; not negative.
        reduction: ``"mean"``: the sum over all pairs divided by the number of images that are no padding;
            ``"sum"`` over all pairs; ``"none"``: the sums of the images.
        group: as in :func:`contrastive_loss`.
        gradients: as in :func:`contrastive_loss`.
        exchange: likewise, and :class:`Labels` are served. The gradients are those of one upstream gradient, the same
            on all ranks: multiply the loss by nothing that differs between them. ``weights`` get no gradient in a ring.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [] (``"none"``: [M]) in float32 (float64 for float64 embeddings); 0 for an empty batch.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`contrastive_loss`.
    """
    images, texts = checked_embeddings(image_embeds, text_embeds)
    ranks = ranks_of(group, gradients, "sigmoid_loss")
    wanted = (True, False)
    check_targets(images, texts, targets, (True, True))
    check_reduction(reduction, images, texts, wanted)
    check_together(targets, exclude, 0.0, None, 0.0)
    weights = checked_item_weights(weights, images, texts, wanted)
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_embeds", images), ranks)
    bias = replicated(checked_single("logit_bias", logit_bias, "image_embeds", images), ranks)
    backend = resolve("contrastive", backend, images.device, images.dtype)
    refused = {"Pairs as targets": "positives would be on other ranks"} if isinstance(targets, Pairs) else {}
    if weights is not None and weights.requires_grad:
        refused["weights that require a gradient"] = "it takes another round"
    ring = check_exchange(exchange, backend, exclude, refused)
    if backend == "eager" and reduction == "mean" and all(x is None for x in (targets, exclude, weights, ranks)):
        return sigmoid_reference(recordable(images), recordable(texts), scale, bias)
    plain = all(x is None for x in (targets, exclude, weights, ranks)) and reduction != "none"
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (images, texts, scale, bias))
    if plain and learns and launches_whole_losses(backend, images, texts):
        return sigmoid_of_pairs(images, texts, (scale, bias), reduction == "mean")
    facts = _facts(images, scale, targets, exclude, None) | {
        "logit_bias requires_grad": bias.requires_grad,
        "reduction": (reduction, REDUCTIONS),
        "weights given": weights is not None,
    }
    everyone = None if ranks is None else everyone_of("text_embeds", texts, facts, ranks, ring)
    scope, paired = _scope(images, texts, exclude, targets, None, everyone)
    call = Call(images, texts, scale, scope, backend, everyone=everyone, paired_ids=paired)
    if reduction == "none":
        return _reduced([sigmoid_losses(call, bias, targets)], weights, reduction, ranks)
    if ranks is None:
        return sigmoid_total(call, bias, targets, weights, reduction == "mean")
    total = sigmoid_total(call, bias, targets, weights, mean=False)[None]
    there = None if scope.row_ids is None else scope.row_ids != -1
    count = images.shape[0] if there is None else there.sum()
    counts = torch.zeros_like(total).detach() + (count if reduction == "mean" else 0)  # a sum is divided by 1
    return global_ratios(total, counts, ranks)[0]


# Checks


def _joined(call: Call, labels: Labels | None, teacher: Teacher) -> list[Call]:
    """Each direction on its own, extra candidates behind the others, so that the teacher's softmax is over all."""
    known = checked_scope(call.images, call.texts, None, labels, None)
    images = _appended(call.images, call.extra_images)
    texts = _appended(call.texts, call.extra_texts)
    guide = checked_guide("teacher", teacher, images, texts)
    found = []
    for index in (0, 1):
        if not call.wanted[index]:
            continue
        rows, cols = (call.images, texts) if index == 0 else (images, call.texts)
        scope = Scope(
            row_ids=_named(known.row_ids, rows),
            col_ids=_named(known.col_ids, cols),
            guide_rows=guide[0][: rows.shape[0]],
            guide_cols=guide[1][: cols.shape[0]],
            guide_scale=checked_scale("teacher.scale", teacher.scale, "image_embeds", call.images).detach(),
        )
        found.append(
            call._replace(
                images=rows,
                texts=cols,
                scope=scope,
                wanted=(index == 0, index == 1),
                extra_texts=None,
                extra_images=None,
            )
        )
    return found


def _appended(items: Tensor, extra: Tensor | None) -> Tensor:
    return items if extra is None else torch.cat([items, extra])


def _named(labels: Tensor | None, items: Tensor) -> Tensor | None:
    """Labels of the items, those behind the labelled ones being nobody's positive."""
    if labels is None:
        return None
    return torch.cat([labels, labels.new_full((items.shape[0] - labels.shape[0],), _NOBODY)])


# What ranks agree on, and who takes part


def _facts(
    images: Tensor,
    scale: Tensor,
    targets: Targets | None,
    exclude: Exclusion | Sequence[Exclusion] | None,
    teacher: Teacher | None,
) -> dict[str, Fact]:
    """What all ranks have to come with alike, beside the texts."""
    weighted = isinstance(targets, Pairs) and targets.weights is not None
    return exclusion_facts(exclude) | {
        "image_embeds requires_grad": images.requires_grad,
        "logit_scale requires_grad": scale.requires_grad,
        "targets": ("None" if targets is None else type(targets).__name__, ("None", "Labels", "Pairs")),
        "targets.weights given": weighted,
        "teacher width": 0 if teacher is None else teacher.cols.shape[1],
    }


def _scope(
    images: Tensor,
    texts: Tensor,
    exclude: Exclusion | Sequence[Exclusion] | None,
    targets: Targets | None,
    teacher: Teacher | None,
    everyone: Everyone | None,
) -> tuple[Scope, bool]:
    """Who takes part, and whether ids say that text i belongs to image i."""
    labels = targets if isinstance(targets, Labels) else None
    columns = None if everyone is None else everyone.spread.items()
    scope = checked_scope(images, texts, exclude, labels, teacher, columns)
    paired = scope.row_ids is not None and scope.row_ids is scope.col_ids
    if everyone is None:
        return scope, paired
    by_position = targets is None and scope.row_ids is None
    return scope_of_everyone(scope, everyone, images, by_position), paired or by_position


def _reduced(losses: list[Losses], weights: Tensor | None, reduction: str, ranks: Ranks | None) -> Tensor:
    """The mean over the directions of each one's mean, sum or items."""
    if ranks is not None and reduction != "none":
        return _reduced_over_ranks(losses, weights, reduction, ranks)
    found = []
    for values, there in losses:
        if weights is not None:
            values = weights * values
        if reduction == "mean":
            count = max(values.shape[0], 1) if there is None else there.sum().clamp(min=1)
            values = values.sum() / count
        elif reduction == "sum":
            values = values.sum()
        found.append(values)
    return found[0] if len(found) == 1 else (found[0] + found[1]) / 2


def _reduced_over_ranks(losses: list[Losses], weights: Tensor | None, reduction: str, ranks: Ranks) -> Tensor:
    sums = torch.stack([(values if weights is None else weights * values).sum() for values, _ in losses])
    counts = torch.zeros_like(sums).detach()  # a sum is divided by 1
    if reduction == "mean":
        counts = torch.stack(
            [sums.new_full((), values.shape[0]) if there is None else there.sum() for values, there in losses]
        )
    return global_ratios(sums, counts, ranks).mean()

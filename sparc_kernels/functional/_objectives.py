"""Losses of items from the statistics of their candidates: softmax and sigmoid, for each kind of target."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels.functional._candidates import Labels, Pairs, Scope, check_pairs, checked_weights
from sparc_kernels.functional._everyone import Everyone
from sparc_kernels.functional._positives import (
    cosines_of_pairs,
    counts,
    label_counts,
    log_add,
    over_ranks,
    rows_of,
    segment_cross_entropies,
    softplus,
    union,
)
from sparc_kernels.functional._streamed import (
    cosines_of_rows,
    logsumexp_of_everyone,
    mean_of_cross_entropies,
    softplus_of_everyone,
    softplus_total_of_everyone,
    streamed_logsumexp,
    streamed_softplus,
    streamed_softplus_total,
)
from sparc_kernels.ops._dtype import accumulation_dtype, without_autocast

Targets: TypeAlias = Labels | Pairs
_ALL = slice(None)


class Losses(NamedTuple):
    """Of the items of one side."""

    values: Tensor
    """[items]"""
    there: Tensor | None
    """[items] bool: no padding; None = all."""


class Call(NamedTuple):
    """A checked call of a loss."""

    images: Tensor  # [M, D]
    texts: Tensor  # [N, D], of this rank
    scale: Tensor  # []
    scope: Scope  # what ``exclude``, labels and the teacher say; columns are those of all ranks
    backend: str
    wanted: tuple[bool, bool] = (True, True)  # losses of the images, of the texts
    extra_texts: Tensor | None = None  # [Q, D]
    extra_images: Tensor | None = None
    smoothing: float = 0.0
    alpha: float = 0.0
    everyone: Everyone | None = None  # texts of all ranks, where there are several
    paired_ids: bool = False  # text i has the id of image i

    @property
    def columns(self) -> Tensor:
        """[positions, D] texts of all ranks; in a ring nobody has them."""
        assert self.everyone is None or not self.everyone.ring
        return self.texts if self.everyone is None else self.everyone.cols

    def own(self, of_columns: Tensor) -> Tensor:
        """[N]: of the texts of this rank."""
        return of_columns if self.everyone is None else self.everyone.own(of_columns)

    @property
    def positions(self) -> int:
        """Columns that indices may name."""
        return self.texts.shape[0] if self.everyone is None else self.everyone.spread.size


def softmax_losses(call: Call, targets: Targets | None) -> list[Losses]:
    """Of the images, of the texts: of the sides that are wanted."""
    taught = call.scope.guide_scale is not None
    if isinstance(targets, Labels):
        return _of_labels(call)
    if targets is None:
        return _of_labels(_with_diagonal_labels(call)) if taught else _of_diagonal(call)
    if not taught:
        return _of_pairs(call, targets)
    # The positives' share wants them out of the candidates, the teacher's inside: two sweeps.
    untaught = call.scope._replace(guide_rows=None, guide_cols=None, guide_scale=None)
    hard, soft = _of_pairs(call._replace(scope=untaught), targets), _of_teacher(call)
    return [
        Losses((1 - call.alpha) * one.values + call.alpha * other, one.there)
        for one, other in zip(hard, soft, strict=True)
    ]


def sigmoid_losses(call: Call, bias: Tensor, targets: Targets | None) -> Losses:
    """Of the images: sums over all texts."""
    split = _split(call, bias, targets)
    options = (split.scope, split.ids_exclude, call.backend)
    if call.everyone is None:
        sums = streamed_softplus(call.images, call.texts, call.scale, bias, *options)
    else:
        sums = softplus_of_everyone(call.images, call.everyone, (call.scale, bias), *options)
    if split.positives is not None:
        row = split.row
        sums = sums + split.positives if row is None else sums.index_add(0, row, split.positives)
    return Losses(sums, _there(call, 0))


def sigmoid_total(call: Call, bias: Tensor, targets: Targets | None, weights: Tensor | None, mean: bool) -> Tensor:
    """[]: the weighted sum of :func:`sigmoid_losses`, over the number of images that are no padding for a ``mean``."""
    there = _there(call, 0)
    share = call.scale.detach().new_ones(call.images.shape[0]) if weights is None else weights
    if mean:
        share = share / (max(share.shape[0], 1) if there is None else there.sum().clamp(min=1))
    split = _split(call, bias, targets)
    options = ((call.scale, bias), share, split.scope, split.ids_exclude, call.backend)
    if call.everyone is None:
        total = streamed_softplus_total(call.images, call.texts, *options)
    else:
        total = softplus_total_of_everyone(call.images, call.everyone, *options)
    if split.positives is None:
        return total
    return total + ((share if split.row is None else share[split.row]) * split.positives).sum()


class _Split(NamedTuple):
    """The losses of pairs: those of ``scope`` by the sweep, and ``positives`` that are not among them."""

    scope: Scope
    ids_exclude: bool
    positives: Tensor | None = None
    """One per row, or one per pair, of row ``row``."""
    row: Tensor | None = None


def _split(call: Call, bias: Tensor, targets: Targets | None) -> _Split:
    images, texts, scale, scope = call[:4]
    if isinstance(targets, Labels):
        return _Split(scope, False)
    if targets is None:
        values = softplus(-(scale * cosines_of_rows(images, texts, call.backend) + bias))
        both = _both_there(scope.row_ids, _own_col_ids(call))
        return _Split(_without_diagonal(call), True, values if both is None else values.masked_fill(~both, 0.0))
    indptr, indices, weights = _checked(call, targets)
    row = rows_of(indptr, indices)
    values = softplus(-(scale * cosines_of_pairs(images, call.columns, row, indices, call.backend) + bias))
    if weights is not None:
        values = weights * values
    both = _both_there(scope.row_ids, scope.col_ids, row, indices)
    if both is not None:
        values = values.masked_fill(~both, 0.0)
    return _Split(_without(call, indptr, indices), True, values, row)


# Softmax, by the kind of target


def mean_softmax_loss(call: Call) -> Tensor:
    """[]: the mean over both sides of :func:`softmax_losses` of the pairs (i, i), where nobody is padding and nothing
    else is asked for. The same numbers from one node of autograd instead of a dozen: at a few thousand pairs the host
    is what takes the time."""
    return mean_of_cross_entropies(call.images, call.texts, call.scale, call.backend)


def _of_diagonal(call: Call) -> list[Losses]:
    m, n = call.images.shape[0], call.texts.shape[0]
    count = m if call.wanted[0] else n
    logits = call.scale * cosines_of_rows(
        call.images if m == count else call.images[:count],
        call.texts if n == count else call.texts[:count],
        call.backend,
    )
    both = _both_there(call.scope.row_ids, _own_col_ids(call), slice(count), slice(count))
    found = []
    for side, lse, *_ in _statistics(call._replace(scope=_without_diagonal(call))):
        values = softplus(lse - logits)
        if call.smoothing:
            values = values + call.smoothing * (logits - _mean_logits(call, side))
        values = values if both is None else values.masked_fill(~both, 0.0)
        found.append(Losses(values, _there(call, side)))
    return found


def _of_pairs(call: Call, targets: Pairs) -> list[Losses]:
    indptr, indices, weights = _checked(call, targets)
    pairs = (rows_of(indptr, indices), indices)
    both = _both_there(call.scope.row_ids, call.scope.col_ids, *pairs)
    logits = call.scale * cosines_of_pairs(call.images, call.columns, *pairs, call.backend)
    found = []
    for side, lse, *_ in _statistics(call._replace(scope=_without(call, indptr, indices))):
        # A text has positives on all ranks, an image on its own.
        spread = call.everyone.spread if call.everyone is not None and side == 1 else None
        lse = lse if spread is None else spread.everyone(lse, -torch.inf)
        segment, items = pairs[side], lse.shape[0]
        if both is not None:  # positives of padding go to an item more
            segment, lse = torch.where(both, segment, items), F.pad(lse, (0, 1), value=-torch.inf)
        values = segment_cross_entropies(logits, segment, lse, spread)
        if call.smoothing:
            means = _mean_logits(call, side)
            means = means if spread is None else spread.everyone(means)
            values = values + call.smoothing * (logits - (means if both is None else F.pad(means, (0, 1)))[segment])
        share = 1 / over_ranks(counts(segment, lse), spread)[segment] if weights is None else weights
        sums = torch.zeros_like(lse).index_add(0, segment, share * values)[:items]
        found.append(Losses(sums if spread is None else spread.parts(sums).sum(0), _there(call, side)))
    return found


def _of_labels(call: Call) -> list[Losses]:
    """Equal ids are targets, and a teacher has its share: one sweep, with the targets among the candidates."""
    found = []
    for side, lse, target, soft in _statistics(call, ids_exclude=False):
        assert target is not None
        number = label_counts(call.scope, by_rows=side == 0)
        if call.everyone is not None and side == 1:
            number = call.everyone.spread.parts(number).sum(0)
        target = target / number.clamp(min=1)
        if call.smoothing:
            target = (1 - call.smoothing) * target + call.smoothing * _mean_logits(call, side)
        values = torch.where(number > 0, lse - target, 0.0)
        if soft is not None:
            values = (1 - call.alpha) * values + call.alpha * _finite(lse - soft)
        found.append(Losses(values, _there(call, side)))
    return found


def _of_teacher(call: Call) -> list[Tensor]:
    return [_finite(lse - soft) for _, lse, _, soft in _statistics(call) if soft is not None]


def _finite(losses: Tensor) -> Tensor:
    """0 for items without candidates, whose log-sum-exp is -inf."""
    return losses.masked_fill(losses == -torch.inf, 0.0)


class _Side(NamedTuple):
    """Statistics of the images (index 0) or of the texts (1), extra candidates in the log-sum-exp."""

    side: int
    lse: Tensor
    target: Tensor | None
    soft: Tensor | None


def _statistics(call: Call, ids_exclude: bool = True) -> list[_Side]:
    """Of the sides that are wanted."""
    options = (call.scale, call.scale, call.scope, call.wanted, ids_exclude, call.backend)
    if call.everyone is None:
        stats = streamed_logsumexp(call.images, call.texts, *options)
    else:
        stats = logsumexp_of_everyone(call.images, call.everyone, *options)
    found = []
    for side, (items, extra) in enumerate(((call.images, call.extra_texts), (call.texts, call.extra_images))):
        lse, target, soft = stats[side::2]
        if lse is None:
            continue
        if extra is not None and extra.shape[0] > 0:
            further = streamed_logsumexp(
                items, extra, call.scale, call.scale, Scope(), (True, False), True, call.backend
            ).row_lse
            assert further is not None
            lse = log_add(lse, further)
        found.append(_Side(side, lse, target, soft))
    return found


def _mean_logits(call: Call, side: int) -> Tensor:
    """[items]: the mean of an item's logits over all candidates, through the mean of their normalised embeddings."""
    dtype = accumulation_dtype(call.images.dtype)
    items, others = (call.images, call.texts) if side == 0 else (call.texts, call.images)
    extra = call.extra_texts if side == 0 else call.extra_images
    there = _there(call, 1 - side)
    with without_autocast(items.device.type):
        directions = F.normalize(others.to(dtype), dim=-1)
        if there is None:
            total, number = directions.sum(0), directions.new_full((), directions.shape[0])
        else:
            total, number = directions.masked_fill(~there[:, None], 0.0).sum(0), there.sum().to(dtype)
        if call.everyone is not None:
            total, number = call.everyone.spread.total(total), call.everyone.spread.total(number)
        if extra is not None:
            total, number = total + F.normalize(extra.to(dtype), dim=-1).sum(0), number + extra.shape[0]
        return call.scale * (F.normalize(items.to(dtype), dim=-1) @ (total / number.clamp(min=1)))


# Who takes part


def _arange(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)


def _with_diagonal_labels(call: Call) -> Call:
    """Pair (i, i) by labels of its own."""
    if call.everyone is not None:  # they name positions already
        return call
    m, n = call.images.shape[0], call.texts.shape[0]
    rows = _arange(m, call.images)
    cols = rows if m == n else _arange(n, call.images)
    return call._replace(scope=call.scope._replace(row_ids=rows, col_ids=cols))


def _without_diagonal(call: Call) -> Scope:
    """The positives (i, i) are not among the candidates."""
    if call.scope.row_ids is None:
        return _with_diagonal_labels(call).scope
    if call.paired_ids:  # it is left out already
        return call.scope
    m, n = call.images.shape[0], call.texts.shape[0]
    texts = _arange(n, call.images) if call.everyone is None else call.everyone.spread.own_positions()
    return _without(call, _arange(m + 1, call.images).clamp(max=n), texts[: min(m, n)])


def _without(call: Call, indptr: Tensor, indices: Tensor) -> Scope:
    """These pairs are not among the candidates either."""
    scope, pairs = call.scope, (indptr, indices)
    if scope.excluded_indptr is not None and scope.excluded_indices is not None:
        pairs = union((scope.excluded_indptr, scope.excluded_indices), pairs, call.positions)
    return scope._replace(excluded_indptr=pairs[0], excluded_indices=pairs[1])


def _own_col_ids(call: Call) -> Tensor | None:
    """[N] of this rank's texts."""
    return None if call.scope.col_ids is None else call.own(call.scope.col_ids)


def _there(call: Call, side: int) -> Tensor | None:
    """[items] bool: the item is no padding; None = all."""
    ids = call.scope.row_ids if side == 0 else _own_col_ids(call)
    return None if ids is None else ids != -1


def _both_there(
    row_ids: Tensor | None, col_ids: Tensor | None, row: Tensor | slice = _ALL, col: Tensor | slice = _ALL
) -> Tensor | None:
    """[pairs] bool: neither the image nor the text is padding; None = all."""
    if row_ids is None or col_ids is None:
        return None
    return (row_ids[row] != -1) & (col_ids[col] != -1)


def _checked(call: Call, targets: Pairs) -> tuple[Tensor, Tensor, Tensor | None]:
    """``targets`` as int64, and weights in the accumulation dtype."""
    columns = call.texts.shape[0] if call.everyone is None else call.everyone.spread.items()
    indptr, indices = check_pairs("targets", targets, call.images, columns)
    if call.everyone is not None:
        indices = call.everyone.spread.positions_of(indices)
    if targets.weights is None:
        return indptr, indices, None
    size = indices.shape[0]
    return indptr, indices, checked_weights("targets.weights", targets.weights, size, "image_embeds", call.images)

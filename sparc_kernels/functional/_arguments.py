"""Checks of what a global loss is called with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.functional._candidates import (
    Above,
    Exclusion,
    Ids,
    Labels,
    Pairs,
    Teacher,
    checked_weights,
    exclusions,
)
from sparc_kernels.functional._common import autocast, checked_pair
from sparc_kernels.functional._objectives import Targets

REDUCTIONS = ("mean", "sum", "none")


def checked_embeddings(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    return checked_pair(("image_embeds", images, "[B, D]"), ("text_embeds", texts, "[B, D]"), {"D": 1})


def check_targets(images: Tensor, texts: Tensor, targets: object, wanted: tuple[bool, bool]) -> None:
    if targets is not None and not isinstance(targets, (Labels, Pairs)):
        raise TypeError(f"targets must be Labels, Pairs or None, got {type(targets).__name__}")
    if targets is not None:
        return
    if all(wanted):
        _validate.same("text_embeds", texts, "image_embeds", images, {"B": 0})
        return
    names = ("image_embeds", "text_embeds") if wanted[0] else ("text_embeds", "image_embeds")
    few, many = (images, texts) if wanted[0] else (texts, images)
    if few.shape[0] > many.shape[0]:
        raise ValueError(
            f"{names[1]} must hold the positive of each of the {few.shape[0]} {names[0]}, got {list(many.shape)}"
        )


def check_reduction(reduction: str, images: Tensor, texts: Tensor, wanted: tuple[bool, bool]) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    if reduction == "none" and all(wanted) and images.shape[0] != texts.shape[0]:
        raise ValueError(
            "reduction='none' with both directions needs as many texts as images, got "
            f"{list(images.shape)} and {list(texts.shape)}: ask for one direction"
        )


def check_share(name: str, value: float, below_one: bool = False) -> None:
    _validate.weight(name, value)
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f"{name} must lie in [0, 1{')' if below_one else ']'}, got {value}")


def check_together(
    targets: Targets | None,
    exclude: Exclusion | Sequence[Exclusion] | None,
    label_smoothing: float,
    teacher: Teacher | None,
    alpha: float,
) -> None:
    """What cannot be served in one call, with the reason."""
    if targets is exclude is teacher is None and alpha == 0:
        return
    kinds = {type(each) for each in exclusions(exclude)}
    if teacher is not None and not isinstance(teacher, Teacher):
        raise TypeError(f"teacher must be a Teacher or None, got {type(teacher).__name__}")
    if teacher is None and alpha != 0:
        raise ValueError(f"alpha must be 0 without a teacher, got {alpha}")
    if label_smoothing and exclude is not None:
        raise ValueError(
            "label_smoothing must be 0 where exclude is given: the mean over the candidates that are left needs all "
            f"pairs, got {label_smoothing}"
        )
    dense = (
        "targets are Labels" if isinstance(targets, Labels) else "a teacher is given" if teacher is not None else None
    )
    if dense and Above in kinds:
        raise ValueError(
            f"exclude may not hold Above where {dense}: it would take targets away that are then still counted"
        )
    if dense and Ids in kinds:
        raise ValueError(
            f"exclude may not hold Ids where {dense}: padding is label -1 in Labels, other pairs go into Pairs"
        )


def checked_extras(
    images: Tensor,
    texts: Tensor,
    extra_texts: Tensor | None,
    extra_images: Tensor | None,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Further candidates of the images, and of the texts, without gradient."""
    found = []
    for name, value, other_name, other, want in (
        ("extra_texts", extra_texts, "text_embeds", texts, wanted[0]),
        ("extra_images", extra_images, "image_embeds", images, wanted[1]),
    ):
        if value is not None:
            if not want:
                raise ValueError(
                    f"{name} must be None in the other direction, where they are no candidates, got a tensor"
                )
            _validate.embeddings(name, value, "[Q, D]")
            value = autocast(value)[0].detach()
            _validate.same(name, value, other_name, other, {"D": 1})
        found.append(value)
    return found[0], found[1]


def checked_item_weights(
    weights: Tensor | None, images: Tensor, texts: Tensor, wanted: tuple[bool, bool]
) -> Tensor | None:
    if weights is None:
        return None
    if all(wanted) and images.shape[0] != texts.shape[0]:
        raise ValueError(
            f"weights with both directions need as many texts as images, got {list(images.shape)} and "
            f"{list(texts.shape)}: ask for one direction"
        )
    owner_name, owner = ("image_embeds", images) if wanted[0] else ("text_embeds", texts)
    return checked_weights("weights", weights, owner.shape[0], owner_name, owner)

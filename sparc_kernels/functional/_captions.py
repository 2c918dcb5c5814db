"""What the functions share in which every image meets every caption: masked or packed captions, of all ranks or not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.distributed import Fact, Group, Ranks, Spread, spread_over
from sparc_kernels.functional._common import checked_pair
from sparc_kernels.functional._everyone import dtype_fact
from sparc_kernels.ops._captions.eager import padded_captions
from sparc_kernels.ops._captions.sizes import captions


class Batch(NamedTuple):
    """Checked tokens: the op's arguments of these names."""

    image_tokens: Tensor
    text_tokens: Tensor
    image_mask: Tensor | None
    text_mask: Tensor | None
    text_offsets: Tensor | None
    max_tokens: int


def with_all_captions(
    batch: Batch, max_seqlen: int | None, facts: dict[str, Fact], ranks: Ranks
) -> tuple[Batch, Spread]:
    """This rank's images with the captions of all ranks, and where these are. Packed captions travel padded: what a
    rank may send is agreed on in captions, not in tokens."""
    text_tokens, text_mask, packed = batch.text_tokens, batch.text_mask, batch.text_offsets is not None
    if batch.text_offsets is not None:
        if max_seqlen is None:
            raise ValueError("max_seqlen must be given with cu_seqlens and group, the same on all ranks, got None")
        text_tokens, text_mask = padded_captions(text_tokens, batch.text_offsets, batch.max_tokens)
    own: dict[str, Fact] = {
        "text_tokens width": text_tokens.shape[2],
        "text_tokens dtype": dtype_fact(text_tokens),
        "text_tokens requires_grad": text_tokens.requires_grad,
        "cu_seqlens given": packed,
        "max_seqlen" if packed else "text_tokens length": text_tokens.shape[1],
        "text_mask given": batch.text_mask is not None,
    }
    everyone, spread = spread_over(text_tokens, {**own, **facts}, ranks)
    there = spread.there()[:, None]
    mask = there.expand(-1, text_tokens.shape[1]) if text_mask is None else spread.everyone(text_mask)
    return batch._replace(text_tokens=everyone, text_mask=mask.contiguous(), text_offsets=None, max_tokens=0), spread


def refuse_traced(function: str, group: Group) -> None:
    if not _validate.runs_now():
        raise NotImplementedError(
            f"group must be None where {function} is traced or transformed: how many captions all ranks have is not "
            f"known then, got {group!r}"
        )


def without_padding(scores: Tensor, spread: Spread) -> Tensor:
    """[I, J] of [I, positions]: the columns of captions that are there."""
    columns = spread.there().nonzero()[:, 0]
    return scores if columns.shape[0] == spread.size else scores.index_select(1, columns)


def checked(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
) -> Batch:
    layout = "[B, L, D]" if cu_seqlens is None else "[N, D]"
    image_tokens, text_tokens = checked_pair(
        ("image_tokens", image_tokens, "[B, P, D]"), ("text_tokens", text_tokens, layout), {"D": -1}
    )
    _validate.mask("image_mask", image_mask, "image_tokens", image_tokens)
    if cu_seqlens is not None:
        if text_mask is not None:
            raise ValueError("text_mask must be None where cu_seqlens is given, all packed tokens being valid")
        offsets = _checked_offsets(cu_seqlens, text_tokens)
        longest = _checked_longest(max_seqlen, offsets)
    else:
        if max_seqlen is not None:
            raise ValueError(f"max_seqlen must be None without cu_seqlens, got {max_seqlen!r}")
        _validate.mask("text_mask", text_mask, "text_tokens", text_tokens)
        offsets, longest = None, 0
    return Batch(image_tokens, text_tokens, image_mask, text_mask, offsets, longest)


def check_captions(batch: Batch, each: int = 1) -> None:
    """That there are ``each`` captions for each image."""
    images, texts = batch.image_tokens.shape[0], captions(batch.text_tokens, batch.text_offsets)
    if texts != each * images:
        wanted = "as many captions as there are images" if each == 1 else f"{each} captions for each image"
        raise ValueError(f"text_tokens must hold {wanted}, got {texts} captions and {images} images")


def _checked_offsets(offsets: object, text_tokens: Tensor) -> Tensor:
    """As int64."""
    if not isinstance(offsets, Tensor):
        raise TypeError(f"cu_seqlens must be an integer torch.Tensor or None, got {type(offsets).__name__}")
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must have dtype torch.int32 or torch.int64, got {offsets.dtype}")
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"cu_seqlens must have shape [captions + 1], got {list(offsets.shape)}")
    _validate.same_device("cu_seqlens", offsets, "text_tokens", text_tokens)
    if _validate.can_be_looked_at(offsets):
        first, last, falls = int(offsets[0]), int(offsets[-1]), bool((offsets.diff() < 0).any())
        if first != 0 or last != text_tokens.shape[0] or falls:
            raise ValueError(
                f"cu_seqlens must rise from 0 to {text_tokens.shape[0]}, the number of tokens, got {first} to {last}"
                + (", falling in between" if falls else "")
            )
    return offsets.to(torch.int64).contiguous()


def _checked_longest(longest: object, offsets: Tensor) -> int:
    """At least 1."""
    if longest is None:
        if not _validate.has_values(offsets):
            raise ValueError(
                "max_seqlen must be given with cu_seqlens where the call is traced or transformed (torch.func), or the "
                "tensors are meta or fake, got None"
            )
        return max(1, int(offsets.diff().amax())) if offsets.shape[0] > 1 else 1
    if isinstance(longest, bool) or not isinstance(longest, (int, torch.SymInt)):
        raise TypeError(f"max_seqlen must be an integer or None, got {type(longest).__name__}")
    if longest < 1:
        raise ValueError(f"max_seqlen must be at least 1, got {longest}")
    if _validate.can_be_looked_at(offsets) and offsets.shape[0] > 1 and int(offsets.diff().amax()) > longest:
        raise ValueError(
            f"max_seqlen must be at least {int(offsets.diff().amax())}, the longest caption of cu_seqlens, "
            f"got {longest}"
        )
    return longest  # type: ignore[return-value]


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")

"""What the families share: the default temperature, directions, autocast, scalars, tensors made in inference mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.ops._dtype import accumulation_dtype, has_autocast

DEFAULT_LOGIT_SCALE = 1 / 0.07
DIRECTIONS = ("both", "image_to_text", "text_to_image")


def wanted_directions(direction: str) -> tuple[bool, bool]:
    """Whether image to text, and text to image, is wanted."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    return direction != "text_to_image", direction != "image_to_text"


def autocast(*embeds: Tensor) -> tuple[Tensor, ...]:
    """The embeddings in the autocast dtype, where autocast is on and they are not float64."""
    device_type = embeds[0].device.type
    if not has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return embeds
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in embeds)


def checked_pair(
    one: tuple[str, Tensor, str], other: tuple[str, Tensor, str], shared: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Two embeddings, given as name, tensor and layout, in the autocast dtype: of one dtype and device, and as large in
    the ``shared`` dimensions."""
    for name, value, layout in (one, other):
        _validate.embeddings(name, value, layout)
    found, beside = autocast(one[1], other[1])
    _validate.same(other[0], beside, one[0], found, shared)
    return found, beside


def scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or one-element tensor as a [] tensor of the accumulation dtype, on the device of ``like``."""
    dtype = accumulation_dtype(like.dtype)
    if isinstance(value, Tensor):
        given: Tensor = recordable(value)
        single = given.reshape(()) if given.dim() else given
        return single if single.dtype == dtype else single.to(dtype)
    if torch.compiler.is_compiling():  # torch.full would compile anew for every value; a product takes it as an input
        return torch.ones((), dtype=dtype, device=like.device) * value
    return torch.full((), value, dtype=dtype, device=like.device)


def recordable(tensor: Tensor | None) -> Any:
    """A tensor made under ``torch.inference_mode`` as one that autograd's own operators can save: a copy."""
    if (
        tensor is None
        or torch.compiler.is_compiling()
        or not tensor.is_inference()
        or torch.is_inference_mode_enabled()
    ):
        return tensor
    return tensor.clone()

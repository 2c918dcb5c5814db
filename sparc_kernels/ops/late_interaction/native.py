"""The forward's hot kernel in CUDA C++ (``csrc/late_interaction``), in place of ``triton_resident``'s in the same plan.

It finds the same keys by matrix instructions of warpgroups, on compute capability 9.0. Plans take it where it is there
and the faster one (``Problem.config``); a config with ``native`` asks for it, and fails where it is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sparc_kernels._native import step_reason
from sparc_kernels.ops.late_interaction.config import choose_native


def missing(images: Tensor) -> str | None:
    """Why there is no kernel for the device of these images, or None."""
    return step_reason("resident_maxima", images)


def refusal(images: Tensor, n_patches: int, block_p: int) -> str | None:
    """Why the kernel cannot serve cosines of these images (a copy, if patches have slots), or None."""
    n_channels = images.shape[2]
    fitting = choose_native(n_patches, n_channels, block_p)
    if fitting is None:
        return (
            f"the native kernel of late interaction takes 104, 128, 200 or 256 patches at a time and at most 512 "
            f"channels, as far as they fit shared memory, not {block_p} patches of {n_channels} channels"
        )
    reason = missing(images)
    return None if reason is None else f"the native kernel of late interaction is not there: {reason}"


@dataclass(frozen=True)
class Maxima:
    """Keys of some images, by the arguments of the op."""

    images: Tensor
    slotted: Tensor
    image_inverse: Tensor
    patch_slots: Tensor | None
    patch_counts: Tensor | None
    slot_inverse: Tensor
    captions: Tensor
    codes: Tensor
    run_lengths: Tensor
    token_keys: Tensor | None
    patch_keys: Tensor | None
    columns: int
    first_image: int
    n_images: int
    n_captions: int

    @classmethod
    def of(cls, known: dict[str, Any], n_images: int) -> Maxima:
        """Of the images from FIRST on; ``known``: what Triton's kernel would take."""
        given = {each.name: known[f"p_{each.name}"] for each in fields(cls) if f"p_{each.name}" in known}
        return cls(
            **given, columns=known["BLOCK_P"], first_image=known["FIRST"], n_images=n_images, n_captions=known["J"]
        )

    def run(self) -> None:
        """Queue it on the current stream."""
        run_maxima(**vars(self))


def run_maxima(**arguments: Any) -> None:
    """The registered op."""
    torch.ops.sparc_kernels.resident_maxima(**arguments)

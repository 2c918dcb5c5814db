"""The fine-grained ops of the native library: typed calls, fake implementations.

One op for every device that the library has kernels for; the dispatcher chooses by where the tensors are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels import _native
from sparc_kernels.ops._registration import complete, float32_precision
from sparc_kernels.ops.fine_grained import schema

if _native.cpu_reason() is None:
    complete("sparc_kernels::fine_grained_forward", schema.fake_forward)
    complete("sparc_kernels::fine_grained_backward", schema.fake_backward)


def fine_grained_forward(
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    token_mask: Tensor | None,  # [B, L] bool
    patch_mask: Tensor | None,  # [B, P] bool
    logit_scale: Tensor,  # []
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    """``(token_loss [B, L], stats [6, B, L])``; see ``MATH.md``, the op's signature."""
    return torch.ops.sparc_kernels.fine_grained_forward(
        patch_embeds,
        token_embeds,
        token_mask,
        patch_mask,
        logit_scale,
        similarity_threshold,
        float32_precision(),
    )


def fine_grained_backward(
    grad_token_loss: Tensor,  # [B, L]
    patch_embeds: Tensor,  # [B, P, D]
    token_embeds: Tensor,  # [B, L, D]
    token_mask: Tensor | None,  # [B, L] bool
    patch_mask: Tensor | None,  # [B, P] bool
    logit_scale: Tensor,  # []
    stats: Tensor,  # [6, B, L]
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(grad_patch_embeds [B, P, D], grad_token_embeds [B, L, D], grad_logit_scale [B])``."""
    return torch.ops.sparc_kernels.fine_grained_backward(
        grad_token_loss,
        patch_embeds,
        token_embeds,
        token_mask,
        patch_mask,
        logit_scale,
        stats,
        similarity_threshold,
        float32_precision(),
    )

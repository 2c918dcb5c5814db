"""Launchers of the Triton kernels, registered as ``sparc_kernels::fine_grained_{forward,backward}_triton``.

``forward`` and ``backward`` take the op's arguments (``MATH.md``, the op's signature) and, for tests and tuning, a
``config``. The plans behind them build outputs and launches and run nothing: compile-time tests use them on meta
tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._triton.config import TiledConfig, choose_tiled
from sparc_kernels.ops._triton.launch import (
    Launch,
    capability,
    interpreted,
    product_precision,
    register_op,
    run_all,
    strides,
    unsupported_reason,
)
from sparc_kernels.ops.fine_grained.config import PairConfig, choose
from sparc_kernels.ops.fine_grained.schema import BACKWARD, FORWARD, fake_backward, fake_forward
from sparc_kernels.ops.fine_grained.triton_pair import pair_backward_kernel, pair_forward_kernel
from sparc_kernels.ops.fine_grained.triton_plans import tiled_backward, tiled_forward

__all__ = ["backward", "backward_plan", "forward", "forward_plan", "unsupported_reason"]


def _arguments(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: float | None,
    config: PairConfig,
) -> dict[str, Any]:
    """What both kernels take, by the names of their parameters."""
    b, l, d = token_embeds.shape
    return {
        "p_patches": patch_embeds,
        "p_tokens": token_embeds,
        "p_token_mask": token_mask,
        "p_patch_mask": patch_mask,
        "p_scale": logit_scale,
        "threshold": similarity_threshold,
        **strides(patch_embeds, "stride_vb", "stride_vp", "stride_vd"),
        **strides(token_embeds, "stride_tb", "stride_tl", "stride_td"),
        **strides(token_mask, "stride_lb", "stride_ll"),
        **strides(patch_mask, "stride_pb", "stride_pp"),
        "stride_stat": b * l,
        "L": l,
        "P": patch_embeds.shape[1],
        "D": d,
        "BLOCK_L": config.block_l,
        "BLOCK_P": config.block_p,
        "BLOCK_D": config.block_d,
        "PRECISION": product_precision(token_embeds.dtype),
        "UPCAST": interpreted() and token_embeds.dtype == torch.bfloat16,
    }


def _choose(patch_embeds: Tensor, token_embeds: Tensor) -> PairConfig | TiledConfig:
    _, l, d = token_embeds.shape
    size = token_embeds.element_size()
    return choose(l, patch_embeds.shape[1], d, size, capability(token_embeds)) or choose_tiled(size)


def forward_plan(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: float | None,
    config: PairConfig | TiledConfig | None = None,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """The outputs of ``fine_grained_forward``, not yet computed, and the launches that compute them."""
    inputs = (patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, similarity_threshold)
    token_loss, stats = fake_forward(*inputs)
    b = token_embeds.shape[0]
    config = config or _choose(patch_embeds, token_embeds)
    if isinstance(config, TiledConfig):
        return (token_loss, stats), tiled_forward(*inputs, token_loss, stats, config)
    arguments = _arguments(*inputs, config) | {"p_loss": token_loss, "p_stats": stats}
    launch = Launch(pair_forward_kernel, (b,), arguments, config.num_warps, config.num_stages)
    return (token_loss, stats), [launch]


def backward_plan(
    grad_token_loss: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    stats: Tensor,
    similarity_threshold: float | None,
    config: PairConfig | TiledConfig | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Launch]]:
    """The outputs of ``fine_grained_backward``, not yet computed, and the launches that compute them."""
    inputs = (patch_embeds, token_embeds, token_mask, patch_mask, logit_scale)
    grads = fake_backward(grad_token_loss, *inputs, stats, similarity_threshold)
    b = token_embeds.shape[0]
    config = config or _choose(patch_embeds, token_embeds)
    if isinstance(config, TiledConfig):
        return grads, tiled_backward(grad_token_loss, *inputs, stats, similarity_threshold, grads, config)
    arguments = _arguments(*inputs, similarity_threshold, config) | {
        "p_grad_loss": grad_token_loss,
        "p_stats": stats,
        "p_grad_patches": grads[0],
        "p_grad_tokens": grads[1],
        "p_grad_scale": grads[2],
        **strides(grad_token_loss, "stride_gb", "stride_gl"),
    }
    return grads, [Launch(pair_backward_kernel, (b,), arguments, config.num_warps, config.num_stages)]


def forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: float | None,
    config: PairConfig | TiledConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """token_loss [B, L] and stats [6, B, L] of patch_embeds [B, P, D] and token_embeds [B, L, D]."""
    outputs, launches = forward_plan(
        patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, similarity_threshold, config
    )
    run_all(launches, token_embeds)
    return outputs


def backward(
    grad_token_loss: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    stats: Tensor,
    similarity_threshold: float | None,
    config: PairConfig | TiledConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of patch_embeds [B, P, D], token_embeds [B, L, D] and, per pair, of logit_scale [B]."""
    inputs = (patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, stats, similarity_threshold)
    outputs, launches = backward_plan(grad_token_loss, *inputs, config)
    run_all(launches, token_embeds)
    return outputs


def _forward_op(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    return forward(patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, similarity_threshold)


def _backward_op(
    grad_token_loss: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    stats: Tensor,
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (patch_embeds, token_embeds, token_mask, patch_mask, logit_scale, stats, similarity_threshold)
    return backward(grad_token_loss, *inputs)


register_op("fine_grained_forward_triton", FORWARD, _forward_op, fake_forward)
register_op("fine_grained_backward_triton", BACKWARD, _backward_op, fake_backward)

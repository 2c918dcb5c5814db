"""Launchers of the Triton kernels behind ``sparc_kernels::fine_grained_{forward,backward}_triton``.

``forward`` and ``backward`` take the op's arguments (``MATH.md``, the op's signature) and, for tests and tuning, a
``config``. The plans behind them build outputs and launches and run nothing: compile-time tests use them on meta
tensors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparc_kernels.ops._alignment.config import TiledConfig, choose_tiled
from sparc_kernels.ops._alignment.plans import Gradients, Inputs
from sparc_kernels.ops._triton.launch import Launch, capability, run_all, strides, unsupported_reason
from sparc_kernels.ops.fine_grained.config import PairConfig, choose
from sparc_kernels.ops.fine_grained.schema import fake_forward
from sparc_kernels.ops.fine_grained.triton_pair import pair_backward_kernel, pair_forward_kernel
from sparc_kernels.ops.fine_grained.triton_plans import Results, tiled_backward, tiled_forward

__all__ = ["backward", "backward_plan", "forward", "forward_plan", "unsupported_reason"]

Config = PairConfig | TiledConfig


def _pair_launch(
    kernel: Any, inputs: Inputs, logit_scale: Tensor, config: PairConfig, arguments: dict[str, Any]
) -> Launch:
    """A launch of the pair path, with the arguments that both of its kernels take."""
    b, l, _, _ = inputs.shape
    shared = inputs.arguments() | {
        "p_token_mask": inputs.token_mask,
        **strides(inputs.token_mask, "stride_lb", "stride_ll"),
        "p_scale": logit_scale,
        "stride_stat": b * l,
        "BLOCK_L": config.block_l,
        "BLOCK_P": config.block_p,
        "BLOCK_D": config.block_d,
    }
    return Launch(kernel, (b,), shared | arguments, config.num_warps, config.num_stages)


def _choose(inputs: Inputs) -> Config:
    _, l, p, d = inputs.shape
    size = inputs.tokens.element_size()
    return choose(l, p, d, size, capability(inputs.tokens)) or choose_tiled(size)


def forward_plan(
    inputs: Inputs, logit_scale: Tensor, pool_patches: bool, pool_tokens: bool, config: Config | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Launch]]:
    """The outputs of ``fine_grained_forward``, not yet computed, and the launches that compute them."""
    outputs = fake_forward(
        inputs.patches,
        inputs.tokens,
        inputs.token_mask,
        inputs.patch_mask,
        logit_scale,
        inputs.threshold,
        pool_patches,
        pool_tokens,
        inputs.float32_precision,
    )
    token_loss, stats, pooled_patches, pooled_tokens = outputs
    results = Results(
        token_loss, stats, pooled_patches if pool_patches else None, pooled_tokens if pool_tokens else None
    )
    config = config or _choose(inputs)
    if isinstance(config, TiledConfig):
        return outputs, tiled_forward(inputs, logit_scale, results, config)
    arguments = {
        "p_loss": results.token_loss,
        "p_stats": results.stats,
        "p_pooled_patches": results.pooled_patches,
        "p_pooled_tokens": results.pooled_tokens,
    }
    return outputs, [_pair_launch(pair_forward_kernel, inputs, logit_scale, config, arguments)]


def backward_plan(
    grad_token_loss: Tensor,
    inputs: Inputs,
    logit_scale: Tensor,
    stats: Tensor,
    out: Gradients,
    config: Config | None = None,
) -> list[Launch]:
    """The launches that compute what ``out`` wants of ``fine_grained_backward``."""
    if out.patches is None and out.tokens is None:
        return []
    config = config or _choose(inputs)
    if isinstance(config, TiledConfig):
        return tiled_backward(grad_token_loss, inputs, logit_scale, stats, out, config)
    arguments = {
        "p_grad_loss": grad_token_loss,
        "p_grad_pooled_patches": out.mean_patches,
        "p_grad_pooled_tokens": out.mean_tokens,
        "p_stats": stats,
        "p_grad_patches": out.patches,
        "p_grad_tokens": out.tokens,
        **strides(grad_token_loss, "stride_gb", "stride_gl"),
    }
    return [_pair_launch(pair_backward_kernel, inputs, logit_scale, config, arguments)]


def forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: Tensor | None,
    pool_patches: bool,
    pool_tokens: bool,
    float32_precision: str,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op: token_loss [B, L], stats [7, B, L], the means [B, D] (or [0]) of the valid patches and tokens."""
    inputs = Inputs(patch_embeds, token_embeds, token_mask, patch_mask, similarity_threshold, float32_precision)
    outputs, launches = forward_plan(inputs, logit_scale, pool_patches, pool_tokens, config)
    run_all(launches, token_embeds)
    return outputs


def backward(
    grad_token_loss: Tensor,
    grad_pooled_patches: Tensor | None,
    grad_pooled_tokens: Tensor | None,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    token_mask: Tensor | None,
    patch_mask: Tensor | None,
    logit_scale: Tensor,
    similarity_threshold: Tensor | None,
    stats: Tensor,
    need_patches: bool,
    need_tokens: bool,
    float32_precision: str,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """The op: gradients of patch_embeds [B, P, D] and token_embeds [B, L, D], or [0] for one that is not needed."""
    inputs = Inputs(patch_embeds, token_embeds, token_mask, patch_mask, similarity_threshold, float32_precision)
    grad_patches = patch_embeds.new_empty(patch_embeds.shape if need_patches else (0,))
    grad_tokens = token_embeds.new_empty(token_embeds.shape if need_tokens else (0,))
    out = Gradients(
        grad_patches if need_patches else None,
        grad_tokens if need_tokens else None,
        grad_pooled_patches if need_patches else None,
        grad_pooled_tokens if need_tokens else None,
    )
    run_all(backward_plan(grad_token_loss, inputs, logit_scale, stats, out, config), token_embeds)
    return grad_patches, grad_tokens

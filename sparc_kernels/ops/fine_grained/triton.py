"""Launchers of the Triton kernels behind ``sparc_kernels::fine_grained_{forward,backward}_triton``.

``forward`` and ``backward`` are the ops: they take the arguments of ``schema.py`` in its order and, for tests and
tuning, a ``config``. Their plans build outputs and launches and run nothing: compile-time tests use them on meta
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparc_kernels.ops._alignment import loss_logits
from sparc_kernels.ops._alignment.config import Config, LibraryConfig, TiledConfig
from sparc_kernels.ops._alignment.loss_library import library_backward, library_forward
from sparc_kernels.ops._alignment.loss_plans import LossInputs, Results, tiled_backward, tiled_forward
from sparc_kernels.ops._alignment.plans import Gradients, wanted
from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Step, strides
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.fine_grained.schema import STATS, fake_backward, fake_forward
from sparc_kernels.ops.fine_grained.triton_pair import pair_backward_kernel, pair_forward_kernel

__all__ = ["backward", "backward_plan", "forward", "forward_plan"]

Outputs = tuple[Tensor, ...]
assert STATS[2:] == loss_logits.STATS[2:]


def forward_plan(*args: Any, config: Config | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``forward``, not yet computed, and the steps that compute them."""
    patches, tokens, token_mask, patch_mask, scale, threshold, _pool_patches, _pool_tokens, precision = args
    inputs = LossInputs(patches, tokens, token_mask, patch_mask, threshold, precision, scale)
    outputs = fake_forward(*args)
    token_loss, stats, *means = outputs
    results = Results(token_loss, stats, *wanted(*means))
    config = config or inputs.choose()
    if isinstance(config, LibraryConfig):
        return outputs, library_forward(inputs, results, config)
    if isinstance(config, TiledConfig):
        return outputs, tiled_forward(inputs, results, config)
    b, l, _, _ = inputs.shape
    return outputs, [
        inputs.launch(
            pair_forward_kernel,
            b,
            config,
            p_loss=results.token_loss,
            p_stats=results.stats,
            p_mean_patches=results.mean_patches,
            p_mean_tokens=results.mean_tokens,
            stride_stat=b * l,
        )
    ]


def backward_plan(*args: Any, config: Config | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``backward``, not yet computed, and the steps that compute them."""
    grad_loss, grad_mean_patches, grad_mean_tokens, *pairs, stats, _need_patches, _need_tokens, precision = args
    patches, tokens, token_mask, patch_mask, scale, threshold = pairs
    inputs = LossInputs(patches, tokens, token_mask, patch_mask, threshold, precision, scale)
    outputs = fake_backward(*args)
    grad_patches, grad_tokens = wanted(*outputs)
    out = Gradients(grad_patches, grad_tokens, grad_mean_patches, grad_mean_tokens)
    if out.patches is None and out.tokens is None:
        return outputs, []
    config = config or inputs.choose()
    if isinstance(config, LibraryConfig):
        return outputs, library_backward(grad_loss, inputs, stats, out, config)
    if isinstance(config, TiledConfig):
        return outputs, tiled_backward(grad_loss, inputs, stats, out, config)
    b, l, _, _ = inputs.shape
    return outputs, [
        inputs.launch(
            pair_backward_kernel,
            b,
            config,
            p_grad_loss=grad_loss,
            **strides(grad_loss, "stride_gb", "stride_gl"),
            p_stats=stats,
            stride_stat=b * l,
            DESCRIBED=config.described and inputs.described,
            **part.arguments(),
        )
        for part in ([out] if config.grads_together else out.apart())
    ]


def forward(*args: Any, config: Config | None = None) -> Outputs:
    """token_loss [B, L], stats [7, B, L], the means [B, D] (or [0]) of the valid patches and tokens."""
    with without_autocast(args[0].device.type):  # a library's products of float32 stay such
        return run_plan(forward_plan, args, args[0], config)


def backward(*args: Any, config: Config | None = None) -> Outputs:
    """Gradients of patch_embeds [B, P, D] and token_embeds [B, L, D], or [0] for one that is not needed."""
    with without_autocast(args[3].device.type):
        return run_plan(backward_plan, args, args[3], config)

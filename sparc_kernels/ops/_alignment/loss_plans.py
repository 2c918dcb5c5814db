"""Launches of the tiled path of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparc_kernels.ops._alignment.config import TiledConfig
from sparc_kernels.ops._alignment.loss_tiled import (
    tiled_grad_logits_kernel,
    tiled_grad_products_kernel,
    tiled_grad_weights_kernel,
    tiled_logits_kernel,
    tiled_loss_kernel,
)
from sparc_kernels.ops._alignment.plans import Gradients, Inputs, micro_batches
from sparc_kernels.ops._alignment.tiled import ROW_FACTORS, ROW_SCALARS
from sparc_kernels.ops._triton.launch import Launch, cdiv, strides
from sparc_kernels.ops._triton.products import mean_launch


@dataclass(frozen=True)
class LossInputs(Inputs):
    """And the scale of the logits []."""

    scale: Tensor

    def arguments(self) -> dict[str, Any]:
        """Kernel arguments."""
        return super().arguments() | {"p_scale": self.scale}


@dataclass(frozen=True)
class Results:
    """What the forward op returns; None for means that are not wanted."""

    token_loss: Tensor  # [B, L]
    stats: Tensor  # [STATS, B, L]
    mean_patches: Tensor | None  # [B, D]
    mean_tokens: Tensor | None  # [B, D]


def mean_launches(inputs: LossInputs, results: Results, config: TiledConfig) -> list[Launch]:
    """The means that are wanted."""
    sides = (
        (inputs.patches, inputs.patch_mask, results.mean_patches),
        (inputs.tokens, inputs.token_mask, results.mean_tokens),
    )
    return [mean_launch(rows, mask, mean, config.product) for rows, mask, mean in sides if mean is not None]


def stats_arguments(stats: Tensor | None) -> dict[str, Any]:
    """Kernel arguments for stats [STATS, N, L]."""
    return {"p_stats": stats, "stride_stat": stats.stride(0) if stats is not None else 0}


def tiled_forward(inputs: LossInputs, results: Results, config: TiledConfig) -> list[Launch]:
    """Five launches per micro-batch, and one for each mean. Workspace per pair: L (P + D + L + 5) floats."""
    _, l, p, d = inputs.shape
    launches = mean_launches(inputs, results, config)
    shapes = {"p_heights": (l, p), "p_scalars": (len(ROW_SCALARS), l), "p_groups": (l, d), "p_z": (l, l)}
    for pairs, tile in micro_batches(config, inputs, shapes):
        stats = stats_arguments(results.stats[:, pairs])
        launches += [
            *tile.min_max(),
            tile.groups(tile.workspaces["p_groups"], normalize=False),
            tile.launch(tiled_logits_kernel, "LL", **stats),
            tile.launch_squares(tiled_loss_kernel, "L", p_loss=results.token_loss[pairs], **stats),
        ]
    return launches


def tiled_backward(
    grad_token_loss: Tensor, inputs: LossInputs, stats: Tensor, out: Gradients, config: TiledConfig
) -> list[Launch]:
    """Ten launches per micro-batch, one less for each gradient that nobody wants.

    Workspace per pair: L (2 P + D + 2 L + 8) floats.
    """
    _, l, p, d = inputs.shape
    shapes: dict[str, tuple[int, ...]] = {
        "p_heights": (l, p),
        "p_grads": (l, p),
        "p_scalars": (len(ROW_SCALARS), l),
        "p_factors": (len(ROW_FACTORS), l),
        "p_groups": (l, d),
        "p_z": (l, l),
        "p_dz": (l, l),
        "p_pair_factor": (1,),
    }
    if inputs.is_half:
        shapes["p_amax"] = (cdiv(l, config.block_l) * cdiv(p, config.block_p),)
    launches = []
    for pairs, tile in micro_batches(config, inputs, shapes):
        grad_loss = {"p_grad_loss": grad_token_loss[pairs], **strides(grad_token_loss, "stride_gb", "stride_gl")}
        groups = tile.workspaces["p_groups"]
        launches += [
            *tile.min_max(),
            tile.groups(groups, normalize=False),
            tile.launch(tiled_logits_kernel, "LL", **stats_arguments(None)),
            tile.launch_squares(tiled_grad_logits_kernel, "", **grad_loss, **stats_arguments(stats[:, pairs])),
            tile.launch(tiled_grad_weights_kernel, "LP"),
            tile.grad_similarities(None, normalize=False),
            tile.launch(tiled_grad_products_kernel, "LP"),
            *tile.grad_inputs(out.of(pairs), groups),
        ]
    return launches

"""Launches of the tiled path of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparc_kernels.ops._alignment.config import TiledConfig
from sparc_kernels.ops._alignment.plans import Gradients, Inputs, Tiled, mean_launch, tiled_groups
from sparc_kernels.ops._triton.launch import Launch, strides
from sparc_kernels.ops.fine_grained.triton_tiled import (
    tiled_grad_logits_kernel,
    tiled_grad_products_kernel,
    tiled_grad_weights_kernel,
    tiled_logits_kernel,
    tiled_loss_kernel,
)


@dataclass(frozen=True)
class Results:
    """What the forward op returns; None for means that are not wanted."""

    token_loss: Tensor  # [B, L]
    stats: Tensor  # [7, B, L]
    pooled_patches: Tensor | None  # [B, D]
    pooled_tokens: Tensor | None  # [B, D]


def _logits(tile: Tiled, groups: Tensor, logits: Tensor, stats: Tensor | None) -> Launch:
    """logits [N, L, L] = C' T^T; the norms of both into stats [7, N, L] if they are given."""
    sizes = tile.sizes("L", "D", "TILES_L", "BLOCK_L", "BLOCK_D", "PRECISION", "UPCAST")
    return tile.launch(
        tiled_logits_kernel,
        tile.n_pairs * sizes["TILES_L"] ** 2,
        p_groups=groups,
        p_tokens=tile.inputs.tokens,
        p_token_mask=tile.inputs.token_mask,
        p_logits=logits,
        p_stats=stats,
        **strides(tile.inputs.tokens, "stride_tb", "stride_tl", "stride_td"),
        **strides(tile.inputs.token_mask, "stride_lb", "stride_ll"),
        stride_stat=stats.stride(0) if stats is not None else 0,
        **sizes,
    )


def tiled_forward(inputs: Inputs, logit_scale: Tensor, results: Results, config: TiledConfig) -> list[Launch]:
    """Five launches per group of pairs, one for each mean. Workspace per pair: L (P + D + L + 5) floats."""
    _, l, p, d = inputs.shape
    launches = []
    for rows, mask, mean in (
        (inputs.patches, inputs.patch_mask, results.pooled_patches),
        (inputs.tokens, inputs.token_mask, results.pooled_tokens),
    ):
        if mean is not None:
            launches.append(mean_launch(config, rows, mask, mean))
    for pairs, tile, workspaces in tiled_groups(config, inputs, ((l, p), (5, l), (l, d), (l, l))):
        heights, rows, groups, logits = workspaces
        stats = results.stats[:, pairs]
        sizes = tile.square_sizes()
        launches += tile.heights(heights, rows)
        launches.append(tile.groups(heights, rows, groups, normalize=False))
        launches.append(_logits(tile, groups, logits, stats))
        launches.append(
            tile.launch_pass(
                tiled_loss_kernel,
                tile.n_pairs * sizes["TILES_L"],
                p_logits=logits,
                p_rows=rows,
                p_token_mask=tile.inputs.token_mask,
                p_scale=logit_scale,
                p_loss=results.token_loss[pairs],
                p_stats=stats,
                **strides(tile.inputs.token_mask, "stride_lb", "stride_ll"),
                stride_stat=stats.stride(0),
                **sizes,
            )
        )
    return launches


def tiled_backward(
    grad_token_loss: Tensor, inputs: Inputs, logit_scale: Tensor, stats: Tensor, out: Gradients, config: TiledConfig
) -> list[Launch]:
    """Ten launches per group of pairs, one less for each gradient that nobody wants.

    Workspace per pair: L (2 P + D + 2 L + 8) floats.
    """
    _, l, p, d = inputs.shape
    launches = []
    shapes = ((l, p), (l, p), (5, l), (3, l), (l, d), (l, l), (l, l), (1,))
    for pairs, tile, workspaces in tiled_groups(config, inputs, shapes):
        heights, grad_weights, rows, factors, groups, logits, grad_logits, pair_factor = workspaces
        sizes = tile.sizes("L", "P", "TILES_L", "TILES_P", "BLOCK_L", "BLOCK_P")
        n_tiles = sizes["TILES_L"] * sizes["TILES_P"]
        tops = rows.new_empty((tile.n_pairs, n_tiles)) if tile.is_half else None
        launches += tile.heights(heights, rows)
        launches.append(tile.groups(heights, rows, groups, normalize=False))
        launches.append(_logits(tile, groups, logits, None))
        launches.append(
            tile.launch_pass(
                tiled_grad_logits_kernel,
                tile.n_pairs,
                p_z=logits,
                p_dz=grad_logits,
                p_rows=rows,
                p_stats=stats[:, pairs],
                p_grad_loss=grad_token_loss[pairs],
                p_token_mask=tile.inputs.token_mask,
                p_scale=logit_scale,
                p_factors=factors,
                p_pair_factor=pair_factor,
                **strides(grad_token_loss, "stride_gb", "stride_gl"),
                **strides(tile.inputs.token_mask, "stride_lb", "stride_ll"),
                stride_stat=stats.stride(0),
                **tile.square_sizes(),
                SHRINK=tile.shrink,
                OPERAND=tile.operand,
            )
        )
        launches.append(
            tile.launch(
                tiled_grad_weights_kernel,
                tile.n_pairs * n_tiles,
                p_groups=groups,
                p_dz=grad_logits,
                p_heights=heights,
                p_rows=rows,
                p_factors=factors,
                p_patches=tile.inputs.patches,
                p_patch_mask=tile.inputs.patch_mask,
                p_grads=grad_weights,
                **strides(inputs.patches, "stride_vb", "stride_vp", "stride_vd"),
                **strides(inputs.patch_mask, "stride_pb", "stride_pp"),
                **sizes,
                **tile.sizes("D", "BLOCK_D", "PRECISION", "UPCAST"),
            )
        )
        launches.append(tile.grad_rows(grad_weights, heights, rows, None, normalize=False))
        launches.append(
            tile.launch(
                tiled_grad_products_kernel,
                tile.n_pairs * n_tiles,
                p_dz=grad_logits,
                p_heights=heights,
                p_rows=rows,
                p_grads=grad_weights,
                p_tops=tops,
                **sizes,
                **tile.sizes("PRECISION"),
                OPERAND=tile.operand,
            )
        )
        launches += tile.grads(grad_weights, tops, heights, rows, groups, factors, pair_factor, out.of(pairs))
    return launches

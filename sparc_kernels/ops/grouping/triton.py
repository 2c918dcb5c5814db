"""Launchers of the Triton kernels of ``grouping``, registered as
``sparc_kernels::{grouped_embeddings,alignment_weights}_{forward,backward}_triton``.

The functions take the ops' arguments (``MATH.md``, the ops' signatures) and, for tests and tuning, a ``config``. The
plans behind them build outputs and launches and run nothing: compile-time tests use them on meta tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels.ops._triton.config import TiledConfig, choose_tiled, tiles
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
from sparc_kernels.ops._triton.plans import Tiled, tiled_groups
from sparc_kernels.ops.grouping.config import RowConfig, choose
from sparc_kernels.ops.grouping.schema import (
    EMBEDDINGS_BACKWARD,
    EMBEDDINGS_FORWARD,
    WEIGHTS_BACKWARD,
    WEIGHTS_FORWARD,
    fake_backward,
    fake_embeddings_forward,
    fake_weights_forward,
)
from sparc_kernels.ops.grouping.triton_rows import rows_backward_kernel, rows_forward_kernel
from sparc_kernels.ops.grouping.triton_tiled import tiled_given_grads_kernel, tiled_weights_kernel

__all__ = ["backward", "backward_plan", "forward", "forward_plan", "unsupported_reason"]

Config = RowConfig | TiledConfig


def _choose(patch_embeds: Tensor, token_embeds: Tensor, backward: bool) -> Config:
    _, l, d = token_embeds.shape
    size = token_embeds.element_size()
    config = choose(l, patch_embeds.shape[1], d, size, capability(token_embeds), backward)
    return config or choose_tiled(size)


def _row_launch(
    kernel: object,
    programs: int,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
    config: RowConfig,
    arguments: dict[str, object],
) -> Launch:
    """A launch of the row path, with the arguments that both of its kernels take."""
    shared = {
        "p_patches": patch_embeds,
        "p_tokens": token_embeds,
        "p_patch_mask": patch_mask,
        "threshold": similarity_threshold,
        **strides(patch_embeds, "stride_vb", "stride_vp", "stride_vd"),
        **strides(token_embeds, "stride_tb", "stride_tl", "stride_td"),
        **strides(patch_mask, "stride_pb", "stride_pp"),
        "L": token_embeds.shape[1],
        "P": patch_embeds.shape[1],
        "D": token_embeds.shape[2],
        "BLOCK_L": config.block_l,
        "BLOCK_P": config.block_p,
        "BLOCK_D": config.block_d,
        "PRECISION": product_precision(token_embeds.dtype),
        "UPCAST": interpreted() and token_embeds.dtype == torch.bfloat16,
    }
    return Launch(kernel, (programs,), shared | arguments, config.num_warps, config.num_stages)


def forward_plan(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
    *,
    weights: bool,
    config: Config | None = None,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Outputs of the forward op of the weights (or embeddings), not yet computed, and their launches."""
    inputs = (patch_embeds, token_embeds, patch_mask, similarity_threshold)
    out, stats = fake_weights_forward(*inputs) if weights else fake_embeddings_forward(*inputs)
    config = config or _choose(patch_embeds, token_embeds, backward=False)
    (b, l), p = token_embeds.shape[:2], patch_embeds.shape[1]
    if isinstance(config, RowConfig):
        arguments = {
            "p_out": out,
            "p_stats": stats,
            "stride_stat": b * l,
            "TILES_L": tiles(l, config.block_l),
            "WEIGHTS": weights,
        }
        programs = b * tiles(l, config.block_l)
        return (out, stats), [_row_launch(rows_forward_kernel, programs, *inputs, config, arguments)]
    launches = []
    masks = (None, patch_mask, similarity_threshold)
    for pairs, tile, workspaces in tiled_groups(config, patch_embeds, token_embeds, *masks, ((l, p), (5, l))):
        heights, rows = workspaces
        launches += tile.heights(heights, rows, stats[:, pairs])
        if weights:
            launches.append(_weights(tile, heights, rows, out[pairs]))
        else:
            launches.append(tile.groups(heights, rows, out[pairs], normalize=True))
    return (out, stats), launches


def _weights(tile: Tiled, heights: Tensor, rows: Tensor, weights: Tensor) -> Launch:
    """weights [N, L, P] from the workspaces."""
    sizes = tile.sizes("L", "P", "TILES_L", "TILES_P", "BLOCK_L", "BLOCK_P", "UPCAST")
    programs = tile.n_pairs * sizes["TILES_L"] * sizes["TILES_P"]
    return tile.launch_pass(tiled_weights_kernel, programs, p_heights=heights, p_rows=rows, p_weights=weights, **sizes)


def _given_grads(tile: Tiled, given: Tensor, grads: Tensor) -> Launch:
    """grads [N, L, P] = the gradient of the weights, 0 at masked patches."""
    sizes = tile.sizes("L", "P", "TILES_L", "TILES_P", "BLOCK_L", "BLOCK_P", "UPCAST")
    return tile.launch_pass(
        tiled_given_grads_kernel,
        tile.n_pairs * sizes["TILES_L"] * sizes["TILES_P"],
        p_given=given,
        p_patch_mask=tile.patch_mask,
        p_grads=grads,
        **strides(given, "stride_gb", "stride_gl", "stride_gp"),
        **strides(tile.patch_mask, "stride_pb", "stride_pp"),
        **sizes,
    )


def backward_plan(
    grad: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    stats: Tensor,
    similarity_threshold: float | None,
    *,
    weights: bool,
    config: Config | None = None,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Outputs of the backward op of the weights (or embeddings), not yet computed, and their launches.

    The kernels recompute the similarities and take minima and sums from what they see, not from ``stats``.
    """
    outputs = fake_backward(grad, patch_embeds, token_embeds, patch_mask, stats, similarity_threshold)
    config = config or _choose(patch_embeds, token_embeds, backward=True)
    (b, l), p = token_embeds.shape[:2], patch_embeds.shape[1]
    inputs = (patch_embeds, token_embeds, patch_mask, similarity_threshold)
    if isinstance(config, RowConfig):
        arguments = {
            "p_grad": grad,
            "p_grad_patches": outputs[0],
            "p_grad_tokens": outputs[1],
            **strides(grad, "stride_gb", "stride_gl", "stride_gd"),
            "WEIGHTS": weights,
        }
        return outputs, [_row_launch(rows_backward_kernel, b, *inputs, config, arguments)]
    launches = []
    masks = (None, patch_mask, similarity_threshold)
    shapes = ((l, p), (l, p), (5, l), (tiles(l, config.row_l),))
    for pairs, tile, workspaces in tiled_groups(config, patch_embeds, token_embeds, *masks, shapes):
        heights, grads, rows, all_tops = workspaces
        tops = all_tops if tile.is_half else None
        launches += tile.heights(heights, rows)
        if weights:
            launches.append(_given_grads(tile, grad[pairs], grads))
        else:
            launches.append(tile.similarities(grad[pairs], None, grads))
        launches.append(tile.grad_rows(grads, heights, rows, tops, normalize=True))
        groups = None if weights else grad[pairs]
        some_outputs = (outputs[0][pairs], outputs[1][pairs])
        launches += tile.grads(grads, tops, heights, rows, groups, None, None, *some_outputs)
    return outputs, launches


def forward(
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    similarity_threshold: float | None,
    *,
    weights: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Alignment weights [B, L, P] (or grouped embeddings [B, L, D]) and stats [3, B, L]."""
    inputs = (patch_embeds, token_embeds, patch_mask, similarity_threshold)
    outputs, launches = forward_plan(*inputs, weights=weights, config=config)
    run_all(launches, token_embeds)
    return outputs


def backward(
    grad: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    stats: Tensor,
    similarity_threshold: float | None,
    *,
    weights: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of patch_embeds [B, P, D] and token_embeds [B, L, D] from that of the weights (or embeddings)."""
    inputs = (patch_embeds, token_embeds, patch_mask, stats, similarity_threshold)
    outputs, launches = backward_plan(grad, *inputs, weights=weights, config=config)
    run_all(launches, token_embeds)
    return outputs


def _embeddings_forward(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, similarity_threshold: float | None
) -> tuple[Tensor, Tensor]:
    return forward(patch_embeds, token_embeds, patch_mask, similarity_threshold, weights=False)


def _weights_forward(
    patch_embeds: Tensor, token_embeds: Tensor, patch_mask: Tensor | None, similarity_threshold: float | None
) -> tuple[Tensor, Tensor]:
    return forward(patch_embeds, token_embeds, patch_mask, similarity_threshold, weights=True)


def _embeddings_backward(
    grad: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    stats: Tensor,
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    inputs = (patch_embeds, token_embeds, patch_mask, stats, similarity_threshold)
    return backward(grad, *inputs, weights=False)


def _weights_backward(
    grad: Tensor,
    patch_embeds: Tensor,
    token_embeds: Tensor,
    patch_mask: Tensor | None,
    stats: Tensor,
    similarity_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    inputs = (patch_embeds, token_embeds, patch_mask, stats, similarity_threshold)
    return backward(grad, *inputs, weights=True)


register_op("grouped_embeddings_forward_triton", EMBEDDINGS_FORWARD, _embeddings_forward, fake_embeddings_forward)
register_op("grouped_embeddings_backward_triton", EMBEDDINGS_BACKWARD, _embeddings_backward, fake_backward)
register_op("alignment_weights_forward_triton", WEIGHTS_FORWARD, _weights_forward, fake_weights_forward)
register_op("alignment_weights_backward_triton", WEIGHTS_BACKWARD, _weights_backward, fake_backward)

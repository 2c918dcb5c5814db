"""Launchers of the Triton kernels of ``grouping``, behind
``sparc_kernels::{grouped_embeddings,alignment_weights}_{forward,backward}_triton``.

``forward`` and ``backward`` take, for tests and tuning, a ``config``; the ops (``MATH.md``, the ops' signatures) stand
at the end. The plans build outputs and launches and run nothing: compile-time tests use them on meta tensors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparc_kernels.ops._alignment.config import TiledConfig, choose_tiled, tiles
from sparc_kernels.ops._alignment.plans import Gradients, Inputs, Tiled, tiled_groups
from sparc_kernels.ops._triton.launch import Launch, capability, run_all, strides, unsupported_reason
from sparc_kernels.ops.grouping.config import RowConfig, choose
from sparc_kernels.ops.grouping.schema import fake_embeddings_forward, fake_weights_forward
from sparc_kernels.ops.grouping.triton_rows import rows_backward_kernel, rows_forward_kernel
from sparc_kernels.ops.grouping.triton_tiled import tiled_given_grads_kernel, tiled_weights_kernel

__all__ = [
    "backward",
    "backward_plan",
    "embeddings_backward",
    "embeddings_forward",
    "forward",
    "forward_plan",
    "unsupported_reason",
    "weights_backward",
    "weights_forward",
]

Config = RowConfig | TiledConfig


def _choose(inputs: Inputs, backward: bool) -> Config:
    _, l, p, d = inputs.shape
    size = inputs.tokens.element_size()
    return choose(l, p, d, size, capability(inputs.tokens), backward) or choose_tiled(size)


def _row_launch(kernel: object, programs: int, inputs: Inputs, config: RowConfig, arguments: dict[str, Any]) -> Launch:
    """A launch of the row path, with the arguments that both of its kernels take."""
    blocks = {"BLOCK_L": config.block_l, "BLOCK_P": config.block_p, "BLOCK_D": config.block_d}
    return Launch(kernel, (programs,), inputs.arguments() | blocks | arguments, config.num_warps, config.num_stages)


def forward_plan(
    inputs: Inputs, *, weights: bool, config: Config | None = None
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Outputs of the forward op of the weights (or embeddings), not yet computed, and their launches."""
    fake = fake_weights_forward if weights else fake_embeddings_forward
    out, stats = fake(inputs.patches, inputs.tokens, inputs.patch_mask, inputs.threshold, inputs.float32_precision)
    config = config or _choose(inputs, backward=False)
    b, l, p, _ = inputs.shape
    if isinstance(config, RowConfig):
        arguments = {
            "p_out": out,
            "p_stats": stats,
            "stride_stat": b * l,
            "TILES_L": tiles(l, config.block_l),
            "WEIGHTS": weights,
        }
        programs = b * tiles(l, config.block_l)
        return (out, stats), [_row_launch(rows_forward_kernel, programs, inputs, config, arguments)]
    launches = []
    for pairs, tile, workspaces in tiled_groups(config, inputs, ((l, p), (5, l))):
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
        p_patch_mask=tile.inputs.patch_mask,
        p_grads=grads,
        **strides(given, "stride_gb", "stride_gl", "stride_gp"),
        **strides(tile.inputs.patch_mask, "stride_pb", "stride_pp"),
        **sizes,
    )


def backward_plan(
    grad: Tensor, inputs: Inputs, out: Gradients, *, weights: bool, config: Config | None = None
) -> list[Launch]:
    """The launches that compute what ``out`` wants of the backward op of the weights (or embeddings).

    The kernels recompute the similarities and take minima and sums from what they see, not from ``stats``.
    """
    if out.patches is None and out.tokens is None:
        return []
    config = config or _choose(inputs, backward=True)
    b, l, p, _ = inputs.shape
    if isinstance(config, RowConfig):
        arguments = {
            "p_grad": grad,
            "p_grad_patches": out.patches,
            "p_grad_tokens": out.tokens,
            **strides(grad, "stride_gb", "stride_gl", "stride_gd"),
            "WEIGHTS": weights,
        }
        return [_row_launch(rows_backward_kernel, b, inputs, config, arguments)]
    launches = []
    shapes = ((l, p), (l, p), (5, l), (tiles(l, config.row_l),))
    for pairs, tile, workspaces in tiled_groups(config, inputs, shapes):
        heights, grads, rows, all_tops = workspaces
        tops = all_tops if tile.is_half else None
        launches += tile.heights(heights, rows)
        if weights:
            launches.append(_given_grads(tile, grad[pairs], grads))
        else:
            launches.append(tile.similarities(grad[pairs], None, grads))
        launches.append(tile.grad_rows(grads, heights, rows, tops, normalize=True))
        groups = None if weights else grad[pairs]
        launches += tile.grads(grads, tops, heights, rows, groups, None, None, out.of(pairs))
    return launches


def forward(inputs: Inputs, *, weights: bool, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """Alignment weights [B, L, P] (or grouped embeddings [B, L, D]) and stats [3, B, L]."""
    outputs, launches = forward_plan(inputs, weights=weights, config=config)
    run_all(launches, inputs.tokens)
    return outputs


def backward(
    grad: Tensor, inputs: Inputs, need_patches: bool, need_tokens: bool, *, weights: bool, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of patches [B, P, D] and tokens [B, L, D] from that of the weights (or embeddings), or [0]."""
    grad_patches = inputs.patches.new_empty(inputs.patches.shape if need_patches else (0,))
    grad_tokens = inputs.tokens.new_empty(inputs.tokens.shape if need_tokens else (0,))
    out = Gradients(grad_patches if need_patches else None, grad_tokens if need_tokens else None)
    run_all(backward_plan(grad, inputs, out, weights=weights, config=config), inputs.tokens)
    return grad_patches, grad_tokens


def _inputs(
    patches: Tensor, tokens: Tensor, patch_mask: Tensor | None, threshold: Tensor | None, precision: str
) -> Inputs:
    return Inputs(patches, tokens, None, patch_mask, threshold, precision)


def embeddings_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """``grouped_embeddings_forward``."""
    return forward(_inputs(*args), weights=False)


def weights_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """``alignment_weights_forward``."""
    return forward(_inputs(*args), weights=True)


def _backward(weights: bool, grad: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *inputs, _stats, need_patches, need_tokens, precision = args
    return backward(grad, _inputs(*(*inputs, precision)), need_patches, need_tokens, weights=weights)


def embeddings_backward(*args: Any) -> tuple[Tensor, Tensor]:
    """``grouped_embeddings_backward``."""
    return _backward(False, *args)


def weights_backward(*args: Any) -> tuple[Tensor, Tensor]:
    """``alignment_weights_backward``."""
    return _backward(True, *args)

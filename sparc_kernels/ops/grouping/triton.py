"""Launchers of the Triton kernels of ``grouping``, behind
``sparc_kernels::{grouped_embeddings,alignment_weights}_{forward,backward}_triton``.

``forward`` and ``backward`` are the ops of the weights (or embeddings): they take the arguments of ``schema.py`` in its
order and, for tests and tuning, a ``config``. Their plans build outputs and steps and run nothing: compile-time
tests use them on meta tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from sparc_kernels.ops._alignment.config import Config, LibraryConfig, TiledConfig
from sparc_kernels.ops._alignment.plans import Gradients, Inputs, micro_batches, wanted
from sparc_kernels.ops._alignment.tiled import ROW_SCALARS
from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Step, cdiv, strides
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.grouping.schema import STATS, fake_backward, fake_embeddings_forward, fake_weights_forward
from sparc_kernels.ops.grouping.triton_library import library_backward, library_forward
from sparc_kernels.ops.grouping.triton_rows import rows_backward_kernel, rows_forward_kernel
from sparc_kernels.ops.grouping.triton_tiled import tiled_given_grads_kernel, tiled_weights_kernel

__all__ = [
    "backward",
    "backward_plan",
    "embeddings_backward",
    "embeddings_forward",
    "forward",
    "forward_plan",
    "weights_backward",
    "weights_forward",
]

Outputs = tuple[Tensor, Tensor]


def forward_plan(*args: Any, weights: bool, config: Config | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``forward``, not yet computed, and the steps that compute them."""
    patches, tokens, patch_mask, threshold, precision = args
    inputs = Inputs(patches, tokens, None, patch_mask, threshold, precision)
    out, stats = fake_weights_forward(*args) if weights else fake_embeddings_forward(*args)
    config = config or inputs.choose(most_tokens=64)  # rows do not see each other
    b, l, p, _ = inputs.shape
    if isinstance(config, LibraryConfig):
        return (out, stats), library_forward(inputs, out, stats, weights, config)
    if not isinstance(config, TiledConfig):
        tiles_l = cdiv(l, config.block_l)
        own = {"p_out": out, "p_stats": stats, "stride_stat": b * l, "TILES_L": tiles_l, "WEIGHTS": weights}
        return (out, stats), [inputs.launch(rows_forward_kernel, b * tiles_l, config, **own)]
    launches: list[Step] = []
    for pairs, tile in micro_batches(config, inputs, {"p_heights": (l, p), "p_scalars": (len(ROW_SCALARS), l)}):
        launches += tile.min_max(**dict(zip(STATS, stats[:, pairs])))
        if weights:
            launches.append(tile.launch_pass(tiled_weights_kernel, "LP", p_weights=out[pairs]))
        else:
            launches.append(tile.groups(out[pairs], normalize=True))
    return (out, stats), launches


def backward_plan(*args: Any, weights: bool, config: Config | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``backward``, not yet computed, and the steps that compute them.

    The kernels recompute the similarities and take minima and sums from what they see, not from the statistics.
    """
    grad, patches, tokens, patch_mask, threshold, _stats, _need_patches, _need_tokens, precision = args
    inputs = Inputs(patches, tokens, None, patch_mask, threshold, precision)
    outputs = fake_backward(*args)
    out = Gradients(*wanted(*outputs))
    if out.patches is None and out.tokens is None:
        return outputs, []
    config = config or inputs.choose()
    if isinstance(config, LibraryConfig):
        return outputs, library_backward(grad, inputs, out, weights, config)
    b, l, p, _ = inputs.shape
    given = {"p_grad": grad, **strides(grad, "stride_gb", "stride_gl", "stride_gd")}
    if not isinstance(config, TiledConfig):
        own = {"p_grad_patches": out.patches, "p_grad_tokens": out.tokens, "WEIGHTS": weights}
        return outputs, [inputs.launch(rows_backward_kernel, b, config, **given, **own)]
    shapes: dict[str, tuple[int, ...]] = {"p_heights": (l, p), "p_grads": (l, p), "p_scalars": (len(ROW_SCALARS), l)}
    if inputs.is_half:
        shapes["p_amax"] = (cdiv(l, config.pass_l),)
    launches: list[Step] = []
    for pairs, tile in micro_batches(config, inputs, shapes):
        launches += tile.min_max()
        if weights:
            launches.append(tile.launch_pass(tiled_given_grads_kernel, "LP", **given | {"p_grad": grad[pairs]}))
        else:
            launches.append(tile.similarities(grad[pairs], None, tile.workspaces["p_grads"]))
        launches.append(tile.grad_similarities(tile.workspaces.get("p_amax"), normalize=True))
        launches += tile.grad_inputs(out.of(pairs), None if weights else grad[pairs])
    return outputs, launches


# One object per kind, by which a plan is known again.
_FORWARD = {weights: partial(forward_plan, weights=weights) for weights in (False, True)}
_BACKWARD = {weights: partial(backward_plan, weights=weights) for weights in (False, True)}


def forward(*args: Any, weights: bool, config: Config | None = None) -> tuple[Tensor, ...]:
    """Alignment weights [B, L, P] (or grouped embeddings [B, L, D]) and stats [3, B, L]."""
    with without_autocast(args[0].device.type):  # a library's products of float32 stay such
        return run_plan(_FORWARD[weights], args, args[0], config)


def backward(*args: Any, weights: bool, config: Config | None = None) -> tuple[Tensor, ...]:
    """Gradients of patch_embeds [B, P, D] and token_embeds [B, L, D], or [0] for one that is not needed."""
    with without_autocast(args[1].device.type):
        return run_plan(_BACKWARD[weights], args, args[1], config)


embeddings_forward, embeddings_backward = partial(forward, weights=False), partial(backward, weights=False)
weights_forward, weights_backward = partial(forward, weights=True), partial(backward, weights=True)

"""Launchers of the Triton kernels behind ``sparc_kernels::softmax_alignment_{forward,backward}_triton``.

``forward`` and ``backward`` are the ops: they take the arguments of ``schema.py`` in its order and, for tests and
tuning, a ``config``. Their plans are the fine-grained loss's with other weights, on the tiled path in half precision
and between a library's products in float32: there is no path that holds a pair in one program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparc_kernels.ops._alignment import loss_logits
from sparc_kernels.ops._alignment.config import LibraryConfig, TiledConfig
from sparc_kernels.ops._alignment.loss_library import library_backward, library_forward
from sparc_kernels.ops._alignment.loss_plans import LossInputs, Results, tiled_backward, tiled_forward
from sparc_kernels.ops._alignment.plans import Gradients, wanted
from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Step
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.softmax_alignment.schema import STATS, fake_backward, fake_forward

__all__ = ["backward", "backward_plan", "forward", "forward_plan"]

Outputs = tuple[Tensor, ...]
assert STATS[2:] == loss_logits.STATS[2:]


def _inputs(pairs: Sequence[Any], precision: str) -> LossInputs:
    patches, tokens, token_mask, patch_mask, scale, attention = pairs
    return LossInputs(patches, tokens, token_mask, patch_mask, None, precision, scale, attention=attention)


def _choose(inputs: LossInputs) -> TiledConfig:
    return LibraryConfig() if inputs.tokens.element_size() == 4 else TiledConfig()


def forward_plan(*args: Any, config: TiledConfig | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``forward``, not yet computed, and the steps that compute them."""
    inputs = _inputs(args[:-1], args[-1])
    outputs = fake_forward(*args)
    token_loss, stats = outputs
    results = Results(token_loss, stats, None, None)
    config = config or _choose(inputs)
    if isinstance(config, LibraryConfig):
        return outputs, library_forward(inputs, results, config)
    return outputs, tiled_forward(inputs, results, config)


def backward_plan(*args: Any, config: TiledConfig | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``backward``, not yet computed, and the steps that compute them."""
    grad_loss, *pairs, stats, _need_patches, _need_tokens, precision = args
    inputs = _inputs(pairs, precision)
    outputs = fake_backward(*args)
    grad_patches, grad_tokens = wanted(*outputs)
    out = Gradients(grad_patches, grad_tokens)
    if out.patches is None and out.tokens is None:
        return outputs, []
    config = config or _choose(inputs)
    if isinstance(config, LibraryConfig):
        return outputs, library_backward(grad_loss, inputs, stats, out, config)
    return outputs, tiled_backward(grad_loss, inputs, stats, out, config)


def forward(*args: Any, config: TiledConfig | None = None) -> Outputs:
    """token_loss [B, L], stats [7, B, L]."""
    with without_autocast(args[0].device.type):  # a library's products of float32 stay such
        return run_plan(forward_plan, args, args[0], config)


def backward(*args: Any, config: TiledConfig | None = None) -> Outputs:
    """Gradients of patch_embeds [B, P, D] and token_embeds [B, L, D], or [0] for one that is not needed."""
    with without_autocast(args[1].device.type):
        return run_plan(backward_plan, args, args[1], config)

"""The steps of ``grouping`` between products of a library (``ops/_alignment/library.py``)."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels.ops._alignment.config import LibraryConfig
from sparc_kernels.ops._alignment.library import by_library, width
from sparc_kernels.ops._alignment.plans import Gradients, Inputs
from sparc_kernels.ops._triton.launch import Step
from sparc_kernels.ops._triton.products import LibraryProduct
from sparc_kernels.ops.grouping.schema import STATS


def library_forward(inputs: Inputs, out: Tensor, stats: Tensor, weights: bool, config: LibraryConfig) -> list[Step]:
    """A pass per part of the batch, between two products; after one, in its result, where weights are asked for.

    Workspace per pair: L P floats.
    """
    _, l, p, _ = inputs.shape
    steps: list[Step] = []
    for pairs, part in by_library(config, inputs, {"p_weights": (l, width(p))}):
        patches, cleaning = part.clean_patches()
        held = out[pairs] if weights else part.workspaces["p_weights"]
        steps += [
            *cleaning,
            LibraryProduct(held[..., :p], part.inputs.tokens, patches.mT),
            part.weights(held, held, normalize=True, **{f"p_{n}": x for n, x in zip(STATS, stats[:, pairs])}),
        ]
        if not weights:
            steps.append(LibraryProduct(out[pairs], held[..., :p], patches))
    return steps


def library_backward(grad: Tensor, inputs: Inputs, out: Gradients, weights: bool, config: LibraryConfig) -> list[Step]:
    """Of groups: S and dA as one product of T above dC, and dV as one of dS above A with T above dC.

    Workspace per pair: 2 L (P + D) floats, L P where weights have the gradient.
    """
    _, l, p, d = inputs.shape
    shapes = {"p_grads": (l, width(p))} if weights else {"p_grads": (2 * l, width(p)), "p_rows": (2 * l, d)}
    steps: list[Step] = []
    for pairs, part in by_library(config, inputs, shapes):
        rows, grads, given = part.inputs.tokens, part.workspaces["p_grads"], grad[pairs]
        patches, cleaning = part.clean_patches()
        steps += cleaning
        if not weights:
            rows = part.workspaces["p_rows"]
            steps += [part.copy(part.inputs.tokens, None, rows[:, :l]), part.copy(given, None, rows[:, l:])]
            given = grads[:, l:]
        steps += [
            LibraryProduct(grads[..., :p], rows, patches.mT),
            part.grad_weights(grads[:, :l], given, None, grads[:, :l], None if weights else grads[:, l:]),
        ]
        wanted = out.of(pairs)
        if wanted.patches is not None:
            steps.append(LibraryProduct(wanted.patches, grads[..., :p].mT, rows))
        if wanted.tokens is not None:
            steps.append(LibraryProduct(wanted.tokens, grads[:, :l, :p], patches))
    return steps

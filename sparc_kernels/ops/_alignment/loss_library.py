# mypy: disable-error-code="no-untyped-def"
"""The loss between products of a library (``ops/_alignment/library.py``): its steps, and a pass of its own."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparc_kernels.ops._alignment.config import LibraryConfig
from sparc_kernels.ops._alignment.library import by_library, width
from sparc_kernels.ops._alignment.library_rows import RAGGED_ROWS, block_of_rows
from sparc_kernels.ops._alignment.loss_logits import GROUP_NORM, TOKEN_NORM
from sparc_kernels.ops._alignment.loss_plans import LossInputs, Results, mean_launches, stats_arguments
from sparc_kernels.ops._alignment.loss_tiled import tiled_grad_logits_kernel, tiled_loss_kernel
from sparc_kernels.ops._alignment.plans import Gradients
from sparc_kernels.ops._alignment.tiled import ROW_FACTORS, ROW_SCALARS
from sparc_kernels.ops._triton.launch import Step, strides
from sparc_kernels.ops._triton.products import LibraryProduct
from sparc_kernels.ops._triton.tiles import MIN_NORM, load_mask, load_tile
from sparc_kernels.ops._triton.workspaces import store_stat


@triton.jit
def row_norms(
    p_rows, o_r, m_r, stride_rn, stride_rd,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Norms [ROWS] over D channels, clamped."""
    b_square = tl.zeros([o_r.shape[0]], tl.float32)
    for o_chunk in range(0, D, BLOCK_D):
        b_rows = load_tile(p_rows, o_r, o_chunk + tl.arange(0, BLOCK_D), m_r, D, stride_rn, stride_rd, False)
        b_square += tl.sum(b_rows * b_rows, axis=1)
    return tl.maximum(tl.sqrt(b_square), MIN_NORM)


@triton.jit(do_not_specialize=[*RAGGED_ROWS, "stride_stat"])
def norms_kernel(
    p_groups,  # [N, R, D] float32 contiguous: C'
    p_rows,  # [N, R, D] float32: T
    p_mask,  # [N, R] bool or None
    p_stats,  # [STATS, B, R] float32: takes |C'| and |t|
    stride_rb, stride_rn, stride_rd, stride_mb, stride_mn, stride_stat,
    R,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    o_b, o_r = block_of_rows(R, BLOCK)
    m_r = load_mask(p_mask, o_b, o_r, R, stride_mb, stride_mn)
    b_group_norm = row_norms(p_groups + o_b * R * D, o_r, m_r, D, 1, D, BLOCK_D)
    b_token_norm = row_norms(p_rows + o_b * stride_rb, o_r, m_r, stride_rn, stride_rd, D, BLOCK_D)
    store_stat(p_stats, b_group_norm, o_b, o_r, m_r, stride_stat, R, GROUP_NORM)
    store_stat(p_stats, b_token_norm, o_b, o_r, m_r, stride_stat, R, TOKEN_NORM)


def library_forward(inputs: LossInputs, results: Results, config: LibraryConfig) -> list[Step]:
    """Three products and three passes per part of the batch, and one for each mean.

    Workspace per pair: L (P + D + L + 5) floats. Tokens are read as they are: what stands in a padded one stays in its
    own row of S and C' and in its own row and column of Z, which nobody reads.
    """
    _, l, p, d = inputs.shape
    steps: list[Step] = [*mean_launches(inputs, results, config)]
    shapes = {"p_weights": (l, width(p)), "p_groups": (l, d), "p_z": (l, l), "p_scalars": (len(ROW_SCALARS), l)}
    for pairs, part in by_library(config, inputs, shapes):
        tokens, mask = part.inputs.tokens, part.inputs.token_mask
        weights, groups, z = (part.workspaces[name] for name in ("p_weights", "p_groups", "p_z"))
        patches, cleaning = part.clean_patches()
        stats = stats_arguments(results.stats[:, pairs])
        of_tokens = {"p_rows": tokens, **strides(tokens, "stride_rb", "stride_rn", "stride_rd")}
        steps += [
            *cleaning,
            LibraryProduct(weights[..., :p], tokens, patches.mT),
            part.weights(weights, weights, normalize=False),
            LibraryProduct(groups, weights[..., :p], patches),
            LibraryProduct(z, groups, tokens.mT),
            part.along_channels(norms_kernel, tokens, mask, **of_tokens, **stats),
            part.launch_squares(tiled_loss_kernel, "L", p_loss=results.token_loss[pairs], **stats),
        ]
    return steps


def library_backward(
    grad_token_loss: Tensor, inputs: LossInputs, stats: Tensor, out: Gradients, config: LibraryConfig
) -> list[Step]:
    """Eight products and five passes per part of the batch, one of each less for a gradient that nobody wants.

    dU = dZ S - diag(alpha) C' V^T, and dV = X^T T - U^T diag(alpha) C' as one product of X above -diag(alpha) U with T
    above C'. Workspace per pair: L (4 P + 2 D + 2 L + 8) floats.
    """
    _, l, p, d = inputs.shape
    shapes = {
        "p_similarities": (l, width(p)),
        "p_weights": (l, width(p)),
        "p_grads": (2 * l, width(p)),
        "p_rows": (2 * l, d),
        "p_z": (l, l),
        "p_dz": (l, l),
        "p_scalars": (len(ROW_SCALARS), l),
        "p_factors": (len(ROW_FACTORS), l),
        "p_pair_factor": (1,),
    }
    steps: list[Step] = []
    for pairs, part in by_library(config, inputs, shapes):
        similarities, weights, grads, rows, z, dz = (part.workspaces[name] for name in list(shapes)[:6])
        tokens, groups = rows[:, :l], rows[:, l:]
        x, scaled = grads[:, :l], grads[:, l:]  # dZ S, then dS, then X; C' V^T, then -diag(alpha) U
        patches, cleaning = part.clean_patches()
        grad_loss = {"p_grad_loss": grad_token_loss[pairs], **strides(grad_token_loss, "stride_gb", "stride_gl")}
        steps += [
            *cleaning,
            part.copy(part.inputs.tokens, part.inputs.token_mask, tokens),
            LibraryProduct(similarities[..., :p], tokens, patches.mT),
            part.weights(similarities, weights, normalize=False),
            LibraryProduct(groups, weights[..., :p], patches),
            LibraryProduct(z, groups, tokens.mT),
            part.launch_squares(tiled_grad_logits_kernel, "", **grad_loss, **stats_arguments(stats[:, pairs])),
            LibraryProduct(x[..., :p], dz, similarities[..., :p]),
            LibraryProduct(scaled[..., :p], groups, patches.mT),
            part.grad_weights(similarities, x, scaled, x, scaled),
            LibraryProduct(x[..., :p], dz.mT, weights[..., :p], add=True),
        ]
        wanted = out.of(pairs)
        if wanted.patches is not None:
            steps.append(LibraryProduct(wanted.patches, grads[..., :p].mT, rows))
            steps += part.finish(wanted.patches, part.inputs.patch_mask, None, wanted.mean_patches)
        if wanted.tokens is not None:
            steps.append(LibraryProduct(wanted.tokens, x[..., :p], patches))
            steps += part.finish(wanted.tokens, part.inputs.token_mask, tokens, wanted.mean_tokens)
    return steps

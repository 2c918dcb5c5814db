# mypy: disable-error-code="no-untyped-def"
"""Kernels of the tiled path that only ``grouping`` needs; the workspaces are those of ``ops/_alignment/tiled.py``."""

import triton
import triton.language as tl

from sparc_kernels.ops._alignment.tiled import WEIGHT_SUM, load_scalar, load_weights
from sparc_kernels.ops._triton.tiles import load_mask, load_tile, store_tile
from sparc_kernels.ops._triton.workspaces import locate, workspace_offsets


@triton.jit
def tiled_weights_kernel(
    p_heights,  # [N, L, P] float32
    p_scalars,  # [N, ROW_SCALARS, L] float32
    p_weights,  # [N, L, P], contiguous
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, tile_p = locate(TILES_L, TILES_P)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    b_weight_sum = load_scalar(p_scalars, o_b, o_l, L, WEIGHT_SUM)
    b_inverse = tl.where(b_weight_sum == 0.0, float("nan"), 1.0 / tl.where(b_weight_sum == 0.0, 1.0, b_weight_sum))
    b_a = load_weights(p_heights, p_scalars, o_b, o_l, o_p, L, P) * b_inverse[:, None]
    store_tile(p_weights + o_b * L * P, b_a, o_l, o_p, o_l < L, P, P, UPCAST)


@triton.jit
def tiled_given_grads_kernel(
    p_grad,  # [N, L, P] gradient of the weights
    p_patch_mask,  # [N, P] bool or None
    p_grads,  # [N, L, P] float32: dA, 0 at masked patches
    stride_gb, stride_gl, stride_gd, stride_pb, stride_pp,
    L, P,
    TILES_L: tl.constexpr,
    TILES_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_l, tile_p = locate(TILES_L, TILES_P)
    o_l = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)
    o_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = load_mask(p_patch_mask, o_b, o_p, P, stride_pb, stride_pp)
    b_da = load_tile(p_grad + o_b * stride_gb, o_l, o_p, o_l < L, P, stride_gl, stride_gd, UPCAST)
    o_out, m_out = workspace_offsets(o_b, o_l, o_p, L, P)
    tl.store(p_grads + o_out, tl.where(m_p[None, :], b_da.to(tl.float32), 0.0), mask=m_out)

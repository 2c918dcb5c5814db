# mypy: disable-error-code="no-untyped-def"
"""Matrix products, batched by a kernel or by a library, and a masked mean, for any number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparc_kernels.ops._triton.launch import Launch, cdiv, strides, upcast
from sparc_kernels.ops._triton.tiles import load_mask, load_tile, rows_product, store_mean
from sparc_kernels.ops._triton.workspaces import locate, workspace_offsets


@triton.jit
def product_kernel(
    p_left,  # [B, M, D]
    p_right,  # [B, N, D]
    p_left_mask,  # [B, M] bool or None
    p_right_mask,  # [B, N] bool or None
    p_product,  # [B, M, N] float32, contiguous: left @ right^T, 0 at masked rows and columns
    stride_ab, stride_am, stride_ad, stride_bb, stride_bn, stride_bd, stride_lb, stride_lm, stride_rb, stride_rn,
    M, N,
    D: tl.constexpr,
    TILES_M: tl.constexpr,
    TILES_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_m, tile_n = locate(TILES_M, TILES_N)
    o_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = load_mask(p_left_mask, o_b, o_m, M, stride_lb, stride_lm)
    m_n = load_mask(p_right_mask, o_b, o_n, N, stride_rb, stride_rn)
    b_product = rows_product(
        p_left + o_b * stride_ab, p_right + o_b * stride_bb, o_m, o_n, m_m, m_n, stride_am, stride_ad, stride_bn,
        stride_bd, D, BLOCK_D, PRECISION, UPCAST
    )  # fmt: skip
    o_out, m_out = workspace_offsets(o_b, o_m, o_n, M, N)
    tl.store(p_product + o_out, b_product, mask=m_out)


@triton.jit
def mean_kernel(
    p_rows,  # [B, N, D]
    p_mask,  # [B, N] bool or None
    p_mean,  # [B, D] contiguous
    stride_rb, stride_rn, stride_rd, stride_mb, stride_mn,
    N,
    D: tl.constexpr,
    TILES_N: tl.constexpr,
    TILES_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    o_b, tile_d, _ = locate(TILES_D, 1)
    o_d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    count = 0
    b_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for tile in range(TILES_N):
        o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = load_mask(p_mask, o_b, o_n, N, stride_mb, stride_mn)
        count += tl.sum(m_n.to(tl.int32), axis=0)
        b_sum += load_tile(p_rows + o_b * stride_rb, o_n, o_d, m_n, D, stride_rn, stride_rd, UPCAST).to(tl.float32)
    store_mean(p_mean + o_b * D, b_sum, count, o_d, D, UPCAST)


@dataclass(frozen=True)
class ProductTiles:
    """A product's [m, n] results per program, whose channels come d at a time, and its compile options."""

    m: int
    n: int
    d: int
    num_warps: int
    num_stages: int

    def channels(self, n_channels: int) -> int:
        """How many at a time where there are ``n_channels``."""
        return min(self.d, max(16, triton.next_power_of_2(n_channels)))


def product_launch(
    left: Tensor,
    right: Tensor,
    left_mask: Tensor | None,
    right_mask: Tensor | None,
    product: Tensor,
    tiles: ProductTiles,
    precision: str,
) -> Launch:
    """product [B, M, N] of float32 = left [B, M, D] @ right [B, N, D]^T, 0 at masked rows [B, M] and columns [B, N]."""
    b, m, n = product.shape
    tiles_m, tiles_n = cdiv(m, tiles.m), cdiv(n, tiles.n)
    arguments = {
        "p_left": left,
        "p_right": right,
        "p_left_mask": left_mask,
        "p_right_mask": right_mask,
        "p_product": product,
        **strides(left, "stride_ab", "stride_am", "stride_ad"),
        **strides(right, "stride_bb", "stride_bn", "stride_bd"),
        **strides(left_mask, "stride_lb", "stride_lm"),
        **strides(right_mask, "stride_rb", "stride_rn"),
        "M": m,
        "N": n,
        "D": left.shape[2],
        "TILES_M": tiles_m,
        "TILES_N": tiles_n,
        "BLOCK_M": tiles.m,
        "BLOCK_N": tiles.n,
        "BLOCK_D": tiles.channels(left.shape[2]),
        "PRECISION": precision,
        "UPCAST": upcast(left.dtype),
    }
    return Launch(product_kernel, (b * tiles_m * tiles_n,), arguments, tiles.num_warps, tiles.num_stages)


@dataclass(frozen=True)
class Product:
    """result [a, b] of float32 = left [a, k] @ right [k, b], added to what it holds where ``add``.

    The sums are float32 whatever the operands: on CUDA in one library call; elsewhere, which is the interpreter, of
    operands made float32. ``addmm`` takes a float32 addend beside half operands since PyTorch 2.10 (its pull request
    167931).
    """

    result: Tensor
    left: Tensor
    right: Tensor
    add: bool = False

    def run(self) -> None:
        """Queue it on the current stream."""
        left, right = self.left, self.right
        if left.dtype != torch.float32 and left.is_cuda and torch.version.hip is None:
            if self.add:
                torch.addmm(self.result, left, right, out_dtype=torch.float32, out=self.result)
            else:
                torch.mm(left, right, out_dtype=torch.float32, out=self.result)
        elif self.add:
            torch.addmm(self.result, left.float(), right.float(), out=self.result)
        else:
            torch.mm(left.float(), right.float(), out=self.result)


@dataclass(frozen=True)
class LibraryProduct:
    """result [B, M, N] = left [B, M, K] @ right [B, K, N], float32, added to what it holds where ``add``.

    A library's, with the precision that ``torch.set_float32_matmul_precision`` asks for when it runs, as PyTorch's own
    products. Nothing is copied where each matrix has its rows, or its columns, dense in memory.
    """

    result: Tensor
    left: Tensor
    right: Tensor
    add: bool = False

    def run(self) -> None:
        """Queue it on the current stream."""
        if self.add:
            torch.baddbmm(self.result, self.left, self.right, out=self.result)
        else:
            torch.bmm(self.left, self.right, out=self.result)


@dataclass(frozen=True)
class BatchedProduct:
    """result [B, m, n] = left [B, m, k] @ right [B, k, n], added to what it holds where ``add``; sums are float32.

    The right side is taken in the dtype of the left one.
    """

    result: Tensor
    left: Tensor
    right: Tensor
    add: bool = False

    def run(self) -> None:
        """Queue it on the current stream."""
        left, right, result = self.left, self.right.to(self.left.dtype), self.result
        if left.is_cuda and torch.version.hip is None and left.dtype != torch.float32 == result.dtype:
            if self.add:
                torch.baddbmm(result, left, right, out_dtype=torch.float32, out=result)
            else:
                torch.bmm(left, right, out_dtype=torch.float32, out=result)
        elif left.is_cuda and left.dtype == result.dtype:
            assert not self.add or result.dtype == torch.float32
            torch.baddbmm(result, left, right, beta=float(self.add), out=result)
        else:
            product = left.float() @ right.float()
            result.copy_(result + product if self.add else product)


def mean_launch(rows: Tensor, mask: Tensor | None, mean: Tensor, tiles: ProductTiles) -> Launch:
    """mean [B, D] of the valid ones of rows [B, N, D], m rows at a time."""
    b, n, d = rows.shape
    block_d = tiles.channels(d)
    arguments = {
        "p_rows": rows,
        "p_mask": mask,
        "p_mean": mean,
        **strides(rows, "stride_rb", "stride_rn", "stride_rd"),
        **strides(mask, "stride_mb", "stride_mn"),
        "N": n,
        "D": d,
        "TILES_N": cdiv(n, tiles.m),
        "TILES_D": cdiv(d, block_d),
        "BLOCK_N": tiles.m,
        "BLOCK_D": block_d,
        "UPCAST": upcast(rows.dtype),
    }
    programs = b * cdiv(d, block_d)
    return Launch(mean_kernel, (programs,), arguments, tiles.num_warps, tiles.num_stages)

"""Launches of the tiled kernels that both rooms use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from sparc_kernels.ops._alignment.config import TiledConfig, next_power_of_2, tiles
from sparc_kernels.ops._alignment.tiled import (
    tiled_grad_patches_kernel,
    tiled_grad_rows_kernel,
    tiled_grad_tokens_kernel,
    tiled_groups_kernel,
    tiled_mean_kernel,
    tiled_rows_kernel,
    tiled_similarities_kernel,
)
from sparc_kernels.ops._triton.launch import Launch, interpreted, product_precision, strides

_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True)
class Inputs:
    """What the kernels of both rooms read: patches [B, P, D], tokens [B, L, D], their masks, sigma []."""

    patches: Tensor
    tokens: Tensor
    token_mask: Tensor | None
    patch_mask: Tensor | None
    threshold: Tensor | None
    float32_precision: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, L, P, D)"""
        b, l, d = self.tokens.shape
        return b, l, self.patches.shape[1], d

    @property
    def upcast(self) -> bool:
        """The interpreter computes wrongly in bfloat16: it casts to float32 after each load."""
        return interpreted() and self.tokens.dtype == torch.bfloat16

    @property
    def precision(self) -> str:
        """``input_precision`` of the products."""
        return product_precision(self.tokens.dtype, self.float32_precision)

    def of(self, pairs: slice) -> Inputs:
        """Those of some pairs."""
        token_mask = None if self.token_mask is None else self.token_mask[pairs]
        patch_mask = None if self.patch_mask is None else self.patch_mask[pairs]
        return replace(
            self, patches=self.patches[pairs], tokens=self.tokens[pairs], token_mask=token_mask, patch_mask=patch_mask
        )

    def arguments(self) -> dict[str, Any]:
        """Arguments of a kernel that holds all patches of a pair: all but the token mask and the blocks."""
        _, l, p, d = self.shape
        return {
            "p_patches": self.patches,
            "p_tokens": self.tokens,
            "p_patch_mask": self.patch_mask,
            "p_threshold": self.threshold,
            **strides(self.patches, "stride_vb", "stride_vp", "stride_vd"),
            **strides(self.tokens, "stride_tb", "stride_tl", "stride_td"),
            **strides(self.patch_mask, "stride_pb", "stride_pp"),
            "L": l,
            "P": p,
            "D": d,
            "PRECISION": self.precision,
            "UPCAST": self.upcast,
        }


def tiled_groups(
    config: TiledConfig, inputs: Inputs, shapes: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[slice, Tiled, list[Tensor]]]:
    """Groups of pairs that fit into the workspace: (which pairs, their tensors, workspaces [N, *shape] of float32).

    All groups share one set of workspaces: they run one after the other on one stream.
    """
    workspaces: list[Tensor] = []
    for pairs in config.groups(inputs.shape[0], sum(math.prod(shape) for shape in shapes)):
        n = pairs.stop - pairs.start
        if not workspaces:
            workspaces = [inputs.tokens.new_empty((n, *shape), dtype=torch.float32) for shape in shapes]
        yield pairs, Tiled(inputs.of(pairs), config), [workspace[:n] for workspace in workspaces]


@dataclass(frozen=True)
class Gradients:
    """Gradients to be written, None where nobody wants them, and the gradients of the means that flow into them."""

    patches: Tensor | None  # [B, P, D]
    tokens: Tensor | None  # [B, L, D]
    mean_patches: Tensor | None = None  # [B, D], contiguous
    mean_tokens: Tensor | None = None  # [B, D], contiguous

    def of(self, pairs: slice) -> Gradients:
        """Those of some pairs."""
        return Gradients(*(x if x is None else x[pairs] for x in vars(self).values()))


def mean_launch(config: TiledConfig, rows: Tensor, mask: Tensor | None, mean: Tensor) -> Launch:
    """mean [B, D] of the valid ones of rows [B, N, D]."""
    b, n, d = rows.shape
    block_n, block_d = config.block_l, min(config.block_d, max(16, next_power_of_2(d)))
    arguments = {
        "p_rows": rows,
        "p_mask": mask,
        "p_mean": mean,
        **strides(rows, "stride_rb", "stride_rn", "stride_rd"),
        **strides(mask, "stride_mb", "stride_mn"),
        "N": n,
        "D": d,
        "TILES_N": tiles(n, block_n),
        "TILES_D": tiles(d, block_d),
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "UPCAST": interpreted() and rows.dtype == torch.bfloat16,
    }
    return Launch(tiled_mean_kernel, (b * tiles(d, block_d),), arguments, config.num_warps, config.num_stages)


@dataclass(frozen=True)
class Tiled:
    """Some pairs of a batch on the tiled path."""

    inputs: Inputs
    config: TiledConfig

    @property
    def n_pairs(self) -> int:
        """N"""
        return self.inputs.shape[0]

    @property
    def operand(self) -> tl.dtype:
        """The dtype of the operands of matrix products."""
        return tl.float32 if self.inputs.upcast else _DTYPES[self.inputs.tokens.dtype]

    @property
    def is_half(self) -> bool:
        """float16: range is scarce, so operands are scaled."""
        return self.inputs.tokens.dtype == torch.float16

    @property
    def shrink(self) -> float:
        """What C' is multiplied with: in float16 a mean over patches stands for the sum."""
        return 1.0 / next_power_of_2(self.inputs.shape[2]) if self.is_half else 1.0

    def sizes(self, *names: str) -> dict[str, Any]:
        """Kernel arguments for tiles: L, P and D, their blocks and numbers of tiles, as named."""
        _, l, p, d = self.inputs.shape
        c = self.config
        block_d = min(c.block_d, max(16, next_power_of_2(d)))
        every = {
            "L": l,
            "P": p,
            "D": d,
            "BLOCK_L": c.block_l,
            "BLOCK_P": c.block_p,
            "BLOCK_D": block_d,
            "TILES_L": tiles(l, c.block_l),
            "TILES_P": tiles(p, c.block_p),
            "TILES_D": tiles(d, block_d),
            "PRECISION": self.inputs.precision,
            "UPCAST": self.inputs.upcast,
        }
        return {name: every[name] for name in names}

    def square_sizes(self) -> dict[str, int]:
        """Kernel arguments for the passes over [L, L]."""
        l, block = self.inputs.shape[1], self.config.square_l
        return {"L": l, "BLOCK_L": block, "TILES_L": tiles(l, block)}

    def row_sizes(self) -> dict[str, int]:
        """Kernel arguments for the passes over rows."""
        _, l, p, _ = self.inputs.shape
        c = self.config
        row_tiles = {"TILES_L": tiles(l, c.row_l), "TILES_P": tiles(p, c.row_p)}
        return {"L": l, "P": p, "BLOCK_L": c.row_l, "BLOCK_P": c.row_p, **row_tiles}

    def launch(self, kernel: Any, programs: int, **arguments: Any) -> Launch:
        """A launch of a matrix product."""
        return Launch(kernel, (programs,), arguments, self.config.num_warps, self.config.num_stages)

    def launch_pass(self, kernel: Any, programs: int, **arguments: Any) -> Launch:
        """A launch of a pass over rows or squares."""
        return Launch(kernel, (programs,), arguments, self.config.pass_warps, self.config.num_stages)

    def similarities(self, left: Tensor, left_mask: Tensor | None, square: Tensor) -> Launch:
        """square [N, L, P] = left [N, L, D] @ patches^T."""
        sizes = self.sizes("L", "P", "D", "TILES_L", "TILES_P", "BLOCK_L", "BLOCK_P", "BLOCK_D", "PRECISION", "UPCAST")
        return self.launch(
            tiled_similarities_kernel,
            self.n_pairs * sizes["TILES_L"] * sizes["TILES_P"],
            p_left=left,
            p_patches=self.inputs.patches,
            p_left_mask=left_mask,
            p_patch_mask=self.inputs.patch_mask,
            p_square=square,
            **strides(left, "stride_ab", "stride_al", "stride_ad"),
            **strides(self.inputs.patches, "stride_vb", "stride_vp", "stride_vd"),
            **strides(left_mask, "stride_lb", "stride_ll"),
            **strides(self.inputs.patch_mask, "stride_pb", "stride_pp"),
            **sizes,
        )

    def heights(self, heights: Tensor, rows: Tensor, stats: Tensor | None = None) -> list[Launch]:
        """heights [N, L, P], rows [N, 5, L] and, if given, stats [3, N, L] of ``grouping`` from the embeddings."""
        sizes = self.row_sizes()
        rows_launch = self.launch_pass(
            tiled_rows_kernel,
            self.n_pairs * sizes["TILES_L"],
            p_heights=heights,
            p_rows=rows,
            p_stats=stats,
            p_patch_mask=self.inputs.patch_mask,
            p_threshold=self.inputs.threshold,
            stride_stat=stats.stride(0) if stats is not None else 0,
            **strides(self.inputs.patch_mask, "stride_pb", "stride_pp"),
            **sizes,
            OPERAND=self.operand,
        )
        return [self.similarities(self.inputs.tokens, self.inputs.token_mask, heights), rows_launch]

    def groups(self, heights: Tensor, rows: Tensor, groups: Tensor, normalize: bool) -> Launch:
        """groups [N, L, D] = U V (times ``shrink``), or A V."""
        sizes = self.sizes(
            "L", "P", "D", "TILES_L", "TILES_P", "TILES_D", "BLOCK_L", "BLOCK_P", "BLOCK_D", "PRECISION", "UPCAST"
        )
        return self.launch(
            tiled_groups_kernel,
            self.n_pairs * sizes["TILES_L"] * sizes["TILES_D"],
            p_heights=heights,
            p_rows=rows,
            p_patches=self.inputs.patches,
            p_patch_mask=self.inputs.patch_mask,
            p_groups=groups,
            **strides(self.inputs.patches, "stride_vb", "stride_vp", "stride_vd"),
            **strides(self.inputs.patch_mask, "stride_pb", "stride_pp"),
            **sizes,
            SHRINK=self.shrink,
            NORMALIZE=normalize,
        )

    def grad_rows(self, grads: Tensor, heights: Tensor, rows: Tensor, tops: Tensor | None, normalize: bool) -> Launch:
        """grads [N, L, P]: dS from dU, or from dA."""
        sizes = self.row_sizes()
        return self.launch_pass(
            tiled_grad_rows_kernel,
            self.n_pairs * sizes["TILES_L"],
            p_grads=grads,
            p_heights=heights,
            p_rows=rows,
            p_tops=tops,
            **sizes,
            NORMALIZE=normalize,
        )

    def grads(
        self,
        grads: Tensor,
        tops: Tensor | None,
        heights: Tensor,
        rows: Tensor,
        groups: Tensor | None,
        factors: Tensor | None,
        pair_factor: Tensor | None,
        out: Gradients,
    ) -> list[Launch]:
        """The gradients that are wanted, from X and what flows through the groups."""
        sizes = self.sizes(
            "L", "P", "D", "TILES_L", "TILES_P", "TILES_D", "BLOCK_L", "BLOCK_P", "BLOCK_D", "PRECISION", "UPCAST"
        )
        shared = {
            "p_grads": grads,
            "p_tops": tops,
            "p_tokens": self.inputs.tokens,
            "p_token_mask": self.inputs.token_mask,
            "p_patch_mask": self.inputs.patch_mask,
            "p_factors": factors,
            **strides(self.inputs.tokens, "stride_tb", "stride_tl", "stride_td"),
            **strides(self.inputs.token_mask, "stride_lb", "stride_ll"),
            **strides(self.inputs.patch_mask, "stride_pb", "stride_pp"),
            **sizes,
            "TOPS": tops.shape[1] if tops is not None else 1,
            "BLOCK_TOPS": next_power_of_2(tops.shape[1]) if tops is not None else 1,
        }
        tokens = lambda: self.launch(  # noqa: E731
            tiled_grad_tokens_kernel,
            self.n_pairs * sizes["TILES_L"] * sizes["TILES_D"],
            p_patches=self.inputs.patches,
            p_grad_mean=out.mean_tokens,
            p_grad_tokens=out.tokens,
            **strides(self.inputs.patches, "stride_vb", "stride_vp", "stride_vd"),
            SHRINK=self.shrink if factors is not None else 1.0,
            **shared,
        )
        patches = lambda: self.launch(  # noqa: E731
            tiled_grad_patches_kernel,
            self.n_pairs * sizes["TILES_P"] * sizes["TILES_D"],
            p_heights=heights,
            p_rows=rows,
            p_groups=groups,
            p_pair_factor=pair_factor,
            p_grad_mean=out.mean_patches,
            p_grad_patches=out.patches,
            **strides(groups, "stride_cb", "stride_cl", "stride_cd"),
            **shared,
        )
        return [build() for build, wanted in ((tokens, out.tokens), (patches, out.patches)) if wanted is not None]

"""Launches over patches and tokens: what the kernels know of the inputs, and the tiled path that rooms share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparc_kernels.ops._alignment.config import Config, PairConfig, TiledConfig, choose
from sparc_kernels.ops._alignment.softmax import tiled_grad_softmax_kernel, tiled_softmax_kernel
from sparc_kernels.ops._alignment.tiled import (
    tiled_grad_patches_kernel,
    tiled_grad_similarities_kernel,
    tiled_grad_tokens_kernel,
    tiled_groups_kernel,
    tiled_min_max_kernel,
)
from sparc_kernels.ops._triton.launch import (
    Launch,
    batch_slices,
    capability,
    cdiv,
    describable,
    product_precision,
    strides,
    upcast,
)
from sparc_kernels.ops._triton.products import product_launch

_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True)
class Inputs:
    """What every kernel reads: patches [B, P, D], tokens [B, L, D], masks [B, L] and [B, P], sigma [].

    ``arguments`` are the kernel parameters that stand for them; a launch passes those that its kernel names.
    """

    patches: Tensor
    tokens: Tensor
    token_mask: Tensor | None
    patch_mask: Tensor | None
    threshold: Tensor | None
    float32_precision: str
    attention: Tensor | None = field(default=None, kw_only=True)
    """[]: weights are the softmax of similarities times this; None: min-max similarities above the threshold."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, L, P, D)"""
        b, l, d = self.tokens.shape
        return b, l, self.patches.shape[1], d

    @property
    def precision(self) -> str:
        """``input_precision`` of the products."""
        return product_precision(self.tokens.dtype, self.float32_precision)

    @property
    def is_half(self) -> bool:
        """float16: range is scarce, so operands are scaled."""
        return self.tokens.dtype == torch.float16

    def of(self, pairs: slice) -> Inputs:
        """Those of some pairs."""
        token_mask = None if self.token_mask is None else self.token_mask[pairs]
        patch_mask = None if self.patch_mask is None else self.patch_mask[pairs]
        return replace(
            self, patches=self.patches[pairs], tokens=self.tokens[pairs], token_mask=token_mask, patch_mask=patch_mask
        )

    @property
    def described(self) -> bool:
        """Whether kernels can copy patches by tensor descriptors, which know no mask."""
        return self.patch_mask is None and self.patches.element_size() == 2 and describable(self.patches)

    def arguments(self) -> dict[str, Any]:
        """Kernel arguments."""
        _, l, p, d = self.shape
        return {
            "p_patches": self.patches,
            "p_tokens": self.tokens,
            "p_token_mask": self.token_mask,
            "p_patch_mask": self.patch_mask,
            "p_threshold": self.threshold,
            "p_attention": self.attention,
            **strides(self.patches, "stride_vb", "stride_vp", "stride_vd"),
            **strides(self.tokens, "stride_tb", "stride_tl", "stride_td"),
            **strides(self.token_mask, "stride_lb", "stride_ll"),
            **strides(self.patch_mask, "stride_pb", "stride_pp"),
            "L": l,
            "P": p,
            "D": d,
            "PRECISION": self.precision,
            "UPCAST": upcast(self.tokens.dtype),
        }

    def choose(self, most_tokens: int | None = None) -> Config:
        """The path and its tiles; ``most_tokens``: a program need not hold more of a pair at once."""
        _, l, p, d = self.shape
        size = self.tokens.element_size()
        return choose(min(l, most_tokens or l), p, d, size, capability(self.tokens))

    def launch(self, kernel: Any, programs: int, config: PairConfig, **own: Any) -> Launch:
        """A launch of the pair path."""
        blocks = {"BLOCK_L": config.block_l, "BLOCK_P": config.block_p, "BLOCK_D": config.block_d}
        return Launch.of(kernel, programs, self.arguments() | blocks, own, config.num_warps, config.num_stages)


def wanted(*outputs: Tensor) -> tuple[Tensor | None, ...]:
    """None for an output that nobody asked for, which an op returns as [0]."""
    return tuple(None if x.dim() == 1 else x for x in outputs)


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

    def apart(self) -> list[Gradients]:
        """Those of patches and those of tokens, as far as they are wanted."""
        parts = (replace(self, tokens=None), replace(self, patches=None))
        return [part for part in parts if part.patches is not None or part.tokens is not None]

    def arguments(self) -> dict[str, Tensor | None]:
        """Kernel arguments."""
        return {
            "p_grad_patches": self.patches,
            "p_grad_tokens": self.tokens,
            "p_grad_mean_patches": self.mean_patches if self.patches is not None else None,
            "p_grad_mean_tokens": self.mean_tokens if self.tokens is not None else None,
        }


@dataclass(frozen=True)
class Tiled:
    """Some pairs of a batch on the tiled path, and their workspaces by the names that kernels have for them."""

    inputs: Inputs
    config: TiledConfig
    workspaces: dict[str, Tensor]

    @property
    def n_pairs(self) -> int:
        """N"""
        return self.inputs.shape[0]

    @cached_property
    def known(self) -> dict[str, Any]:
        """What kernels know, whatever their tiles."""
        known = self.inputs.arguments()
        block_d = self.config.product.channels(known["D"])
        return known | {
            "BLOCK_D": block_d,
            "TILES_D": cdiv(known["D"], block_d),
            # the dtype of the operands of matrix products
            "OPERAND": tl.float32 if known["UPCAST"] else _DTYPES[self.inputs.tokens.dtype],
            # what C' is multiplied with: in float16 a mean over patches stands for the sum
            "SHRINK": 1.0 / triton.next_power_of_2(known["P"]) if self.inputs.is_half else 1.0,
            **dict.fromkeys(("p_amax", "p_factors", "p_pair_factor")),  # in workspaces where they are needed
            **self.workspaces,
        }

    def launch(self, kernel: Any, axes: str, **own: Any) -> Launch:
        """A matrix product, with a program for each tile of ``axes``, such as "LD", of each pair."""
        c = self.config
        return self._launch(kernel, axes, c.block_l, c.block_p, c.num_warps, own)

    def launch_pass(self, kernel: Any, axes: str, **own: Any) -> Launch:
        """A pass over the tiles of matrix products."""
        c = self.config
        return self._launch(kernel, axes, c.block_l, c.block_p, c.pass_warps, own)

    def launch_rows(self, kernel: Any, **own: Any) -> Launch:
        """A pass along rows over patches."""
        c = self.config
        return self._launch(kernel, "L", c.pass_l, c.pass_p, c.pass_warps, own)

    def launch_squares(self, kernel: Any, axes: str, **own: Any) -> Launch:
        """A pass over [L, L]."""
        c = self.config
        return self._launch(kernel, axes, c.square_l, c.pass_p, c.square_warps, own)

    def _launch(self, kernel: Any, axes: str, block_l: int, block_p: int, warps: int, own: dict[str, Any]) -> Launch:
        known = self.known | {"BLOCK_L": block_l, "BLOCK_P": block_p}
        known |= {"TILES_L": cdiv(known["L"], block_l), "TILES_P": cdiv(known["P"], block_p)}
        programs = self.n_pairs * math.prod(known[f"TILES_{axis}"] for axis in axes)
        return Launch.of(kernel, programs, known, own, warps, self.config.num_stages)

    def similarities(self, left: Tensor, left_mask: Tensor | None, product: Tensor) -> Launch:
        """product [N, L, P] = left [N, L, D] @ patches^T."""
        patches, patch_mask = self.inputs.patches, self.inputs.patch_mask
        tiles, precision = self.config.product, self.inputs.precision
        return product_launch(left, patches, left_mask, patch_mask, product, tiles, precision)

    def min_max(
        self, row_min: Tensor | None = None, row_max: Tensor | None = None, weight_sum: Tensor | None = None
    ) -> list[Launch]:
        """heights and scalars from the embeddings; minimum, maximum and sum of U of each row [N, L] if wanted."""
        tokens, token_mask = self.inputs.tokens, self.inputs.token_mask
        similarities = self.similarities(tokens, token_mask, self.workspaces["p_heights"])
        if self.inputs.attention is not None:
            return [similarities, self.launch_rows(tiled_softmax_kernel)]
        return [
            similarities,
            self.launch_rows(tiled_min_max_kernel, p_row_min=row_min, p_row_max=row_max, p_weight_sum=weight_sum),
        ]

    def groups(self, groups: Tensor, normalize: bool) -> Launch:
        """groups [N, L, D] = U V (times ``SHRINK``), or A V."""
        return self.launch(tiled_groups_kernel, "LD", p_groups=groups, NORMALIZE=normalize)

    def grad_similarities(self, amax: Tensor | None, normalize: bool) -> Launch:
        """In grads [N, L, P], dS from dU, or from dA."""
        if self.inputs.attention is not None:
            return self.launch_rows(tiled_grad_softmax_kernel)
        return self.launch_rows(tiled_grad_similarities_kernel, p_amax=amax, NORMALIZE=normalize)

    def grad_inputs(self, out: Gradients, groups: Tensor | None) -> list[Launch]:
        """The gradients that are wanted, from X in grads and what flows through groups [N, L, D].

        Where ``factors`` are a workspace, groups are C'; elsewhere the gradient of C, or None.
        """
        amax = self.workspaces.get("p_amax")
        n_amax = amax.shape[1] if amax is not None else 1
        own = {"N_AMAX": n_amax, "BLOCK_AMAX": triton.next_power_of_2(n_amax)}
        launches = []
        if out.tokens is not None:
            shrink = {} if "p_factors" in self.workspaces else {"SHRINK": 1.0}
            grads = {"p_grad_tokens": out.tokens, "p_grad_mean_tokens": out.mean_tokens}
            launches.append(self.launch(tiled_grad_tokens_kernel, "LD", **grads, **shrink, **own))
        if out.patches is not None:
            grads = {"p_grad_patches": out.patches, "p_grad_mean_patches": out.mean_patches}
            own |= {"p_groups": groups, **strides(groups, "stride_cb", "stride_cl", "stride_cd")}
            launches.append(self.launch(tiled_grad_patches_kernel, "PD", **grads, **own))
        return launches


Workspaces = dict[str, Tensor]


def in_workspaces(
    config: TiledConfig, inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[slice, Inputs, Workspaces]]:
    """Parts of the batch that fit into the workspace: (which pairs, their tensors, workspaces [N, *shape] by name).

    All share one set of workspaces of float32: they run one after the other on one stream.
    """
    workspaces: Workspaces = {}
    pair_bytes = 4 * sum(map(math.prod, shapes.values()))
    for pairs in batch_slices(inputs.shape[0], pair_bytes, config.workspace_bytes):
        n = pairs.stop - pairs.start
        if not workspaces:
            new = inputs.tokens.new_empty
            workspaces = {name: new((n, *shape), dtype=torch.float32) for name, shape in shapes.items()}
        yield pairs, inputs.of(pairs), {name: x[:n] for name, x in workspaces.items()}


def micro_batches(
    config: TiledConfig, inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[slice, Tiled]]:
    """``in_workspaces``, on the tiled path."""
    for pairs, of_pairs, workspaces in in_workspaces(config, inputs, shapes):
        yield pairs, Tiled(of_pairs, config, workspaces)

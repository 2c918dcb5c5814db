"""The path whose products are a library's: what its rooms share.

Each product is one ``torch.bmm`` over some pairs; passes of ``library_rows.py`` do what stands between. A library knows
no masks: where rows that are masked would meet zeros in a product, they are copied as zeros, since NaN may stand there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from sparc_kernels.ops._alignment.config import LibraryConfig
from sparc_kernels.ops._alignment.library_rows import (
    copy_rows_kernel,
    finish_grads_kernel,
    row_grad_similarities_kernel,
    row_weights_kernel,
)
from sparc_kernels.ops._alignment.plans import Inputs, Tiled, in_workspaces
from sparc_kernels.ops._alignment.softmax import row_grad_softmax_kernel, row_softmax_kernel
from sparc_kernels.ops._triton.launch import Launch, Step, cdiv, strides

_ROWS = ("stride_rb", "stride_rn", "stride_rd")
LANES = 16  # rows of similarities start at multiples of it, so that they are read 16 bytes at a time


def width(n_patches: int) -> int:
    """Numbers from row to row of similarities in a workspace."""
    return cdiv(n_patches, LANES) * LANES


@dataclass(frozen=True)
class ByLibrary(Tiled):
    """Some pairs of a batch and their workspaces."""

    config: LibraryConfig

    def clean_patches(self) -> tuple[Tensor, list[Step]]:
        """Patches [N, P, D] with zeros where they are masked, and what makes them."""
        patches, mask = self.inputs.patches, self.inputs.patch_mask
        if mask is None:
            return patches, []
        clean = self.workspaces["p_clean"]
        return clean, [self.copy(patches, mask, clean)]

    def copy(self, rows: Tensor, mask: Tensor | None, copy: Tensor) -> Launch:
        """copy [N, R, D] = rows [N, R, D], 0 where masked."""
        own = {"p_rows": rows, "p_copy": copy, "stride_yb": copy.stride(0)}
        return self.along_channels(copy_rows_kernel, copy, mask, **own, **strides(rows, *_ROWS))

    def weights(self, similarities: Tensor, weights: Tensor, normalize: bool, **wanted: Tensor | None) -> Launch:
        """weights [N, L, P] = U (or A) of similarities [N, L, P]; numbers per row by the kernel's names for them."""
        own = {"p_similarities": similarities, "stride_s": similarities.stride(0)}
        own |= {"p_weights": weights, "stride_u": weights.stride(0)}
        known: dict[str, Any] = {"NORMALIZE": normalize}
        known |= dict.fromkeys(("p_scalars", "p_row_min", "p_row_max", "p_weight_sum")) | self.workspaces | wanted
        kernel = row_weights_kernel if self.inputs.attention is None else row_softmax_kernel
        return self._along_patches(kernel, weights.stride(1), known, own)

    def grad_weights(
        self, similarities: Tensor, grad: Tensor, products: Tensor | None, grads: Tensor, weights: Tensor | None
    ) -> Launch:
        """In grads dS, in weights A, of the gradient of A; with products C' V^T that of U, and U times its factor.

        All [N, L, P], in a workspace [N, L, W]. What is read may be overwritten.
        """
        own: dict[str, Any] = {"p_similarities": similarities, "p_grad": grad, "p_products": products}
        own |= {"p_grads": grads, "p_weights": weights}
        own |= {"stride_s": similarities.stride(0), "stride_x": grads.stride(0)}
        own |= {"stride_u": 0 if weights is None else weights.stride(0)}
        own |= {"stride_c": 0 if products is None else products.stride(0)}
        own |= strides(grad, "stride_gb", "stride_gl", "stride_gd")
        known = {"G": grad.shape[2], "NORMALIZE": products is None}
        kernel = row_grad_similarities_kernel if self.inputs.attention is None else row_grad_softmax_kernel
        return self._along_patches(kernel, grads.stride(1), known, own)

    def _along_patches(self, kernel: Any, pitch: int, known: dict[str, Any], own: dict[str, Any]) -> Launch:
        every = self.known | known
        block_p = triton.next_power_of_2(pitch)
        block_l = self.config.rows(block_p)
        every |= {"W": pitch, "BLOCK_L": block_l, "BLOCK_P": block_p}
        programs = self.n_pairs * cdiv(every["L"], block_l)
        warps = min(16, max(self.config.pass_warps, block_p // 512))
        return Launch.of(kernel, programs, every, own, warps, self.config.num_stages)

    def along_channels(self, kernel: Any, like: Tensor, mask: Tensor | None, **own: Any) -> Launch:
        """A pass over rows as those of ``like`` [N, R, D], some to a program, under a mask [N, R]."""
        n_rows, d = like.shape[1:]
        block_d = min(512, triton.next_power_of_2(d))
        block = self.config.rows(block_d)
        known = self.known | {"p_mask": mask, **strides(mask, "stride_mb", "stride_mn")}
        known |= {"R": n_rows, "BLOCK": block, "BLOCK_D": block_d}
        programs = self.n_pairs * cdiv(n_rows, block)
        return Launch.of(kernel, programs, known, own, self.config.pass_warps, self.config.num_stages)

    def finish(self, grads: Tensor, mask: Tensor | None, rows: Tensor | None, grad_mean: Tensor | None) -> list[Launch]:
        """In grads [N, R, D]: what is along rows [N, R, D], by their factors, and the share of the mean's gradient."""
        if rows is None and grad_mean is None:
            return []
        own = {"p_grads": grads, "p_rows": rows, "p_grad_mean": grad_mean, "stride_rb": strides(rows, *_ROWS)[_ROWS[0]]}
        own["BLOCK_R"] = triton.next_power_of_2(grads.shape[1])
        return [self.along_channels(finish_grads_kernel, grads, mask, **own)]


def by_library(
    config: LibraryConfig, inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[slice, ByLibrary]]:
    """Parts of the batch with workspaces [N, *shape] of float32, and room for patches without the masked ones."""
    _, _, p, d = inputs.shape
    clean = {} if inputs.patch_mask is None else {"p_clean": (p, d)}
    for pairs, of_pairs, workspaces in in_workspaces(config, inputs, {**shapes, **clean}):
        yield pairs, ByLibrary(of_pairs, config, workspaces)

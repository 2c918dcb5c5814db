"""Launchers of the Triton kernels of ``optimal_transport``, behind ``sparc_kernels::transport_*_triton``.

They take the arguments of ``schema.py`` in its order and, for tests and tuning, a ``config``. Their plans build outputs
and launches and run nothing: compile-time tests use them on meta tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import (
    Launch,
    Step,
    batch_slices,
    capability,
    cdiv,
    product_precision,
    strides,
    upcast,
)
from sparc_kernels.ops._triton.products import ProductTiles, product_launch
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.optimal_transport.config import Config, PairConfig, TiledConfig, choose
from sparc_kernels.ops.optimal_transport.schema import fake_backward, fake_forward
from sparc_kernels.ops.optimal_transport.triton_pair import held_kernel, pair_backward_kernel, pair_forward_kernel
from sparc_kernels.ops.optimal_transport.triton_tiled import (
    inverse_norms_kernel,
    tiled_gradient_kernel,
    tiled_iterations_kernel,
    tiled_weights_kernel,
)

__all__ = ["backward", "backward_plan", "forward", "forward_plan"]

Outputs = tuple[Tensor, ...]
Workspaces = dict[str, Tensor]


@dataclass(frozen=True)
class Side:
    """The images or the texts of some pairs."""

    tokens: Tensor  # [N, R, D]
    mask: Tensor | None  # [N, R]

    def of(self, pairs: slice) -> Side:
        """Those of some pairs."""
        return Side(self.tokens[pairs], None if self.mask is None else self.mask[pairs])


@dataclass(frozen=True)
class Inputs:
    """What every kernel reads. ``arguments`` are the kernel parameters that stand for it; a launch passes those that
    its kernel names."""

    images: Side
    texts: Side
    beta: Tensor
    iterations: int
    proximal: bool
    float32_precision: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, L, P, D)"""
        b, l, d = self.texts.tokens.shape
        return b, l, self.images.tokens.shape[1], d

    @property
    def precision(self) -> str:
        """``input_precision`` of the products."""
        return product_precision(self.texts.tokens.dtype, self.float32_precision)

    def of(self, pairs: slice) -> Inputs:
        """Those of some pairs."""
        return replace(self, images=self.images.of(pairs), texts=self.texts.of(pairs))

    def arguments(self) -> dict[str, Any]:
        """Kernel arguments."""
        _, l, p, d = self.shape
        return {
            "p_images": self.images.tokens,
            "p_texts": self.texts.tokens,
            "p_image_mask": self.images.mask,
            "p_text_mask": self.texts.mask,
            "p_beta": self.beta,
            **strides(self.images.tokens, "stride_vb", "stride_vp", "stride_vd"),
            **strides(self.texts.tokens, "stride_tb", "stride_tl", "stride_td"),
            **strides(self.images.mask, "stride_pb", "stride_pp"),
            **strides(self.texts.mask, "stride_lb", "stride_ll"),
            "L": l,
            "P": p,
            "D": d,
            "ITERATIONS": self.iterations,
            "PROXIMAL": self.proximal,
            "PRECISION": self.precision,
            "UPCAST": upcast(self.texts.tokens.dtype),
        }

    def choose(self) -> Config:
        """The path and its tiles."""
        _, l, p, d = self.shape
        return choose(l, p, d, self.texts.tokens.element_size(), capability(self.texts.tokens))


@dataclass(frozen=True)
class Tiled:
    """Some pairs of a batch on the tiled path, and their workspaces by the names that kernels have for them."""

    inputs: Inputs
    config: TiledConfig
    workspaces: Workspaces

    def launch(self, kernel: Any, programs: int, warps: int, **own: Any) -> Launch:
        """A launch of so many programs for each pair."""
        b, l, p, _ = self.inputs.shape
        c = self.config
        tiles = {"BLOCK_L": c.block_l, "BLOCK_P": c.block_p, "BLOCK_D": c.block_d}
        tiles |= {"TILES_L": cdiv(l, c.block_l), "TILES_P": cdiv(p, c.block_p)}
        known = self.inputs.arguments() | self.workspaces | tiles
        return Launch.of(kernel, b * programs, known | own, {}, warps, c.num_stages)

    def similarities(self) -> list[Step]:
        """Inverse norms of both sides, and raw products."""
        i, c = self.inputs, self.config
        steps: list[Step] = []
        for side, name in ((i.texts, "p_text_inverse"), (i.images, "p_image_inverse")):
            rows = side.tokens.shape[1]
            own = {"p_rows": side.tokens, "p_mask": side.mask, "p_inverse": self.workspaces[name], "R": rows}
            own |= strides(side.tokens, "stride_rb", "stride_rr", "stride_rd")
            own |= strides(side.mask, "stride_mb", "stride_mr")
            own |= {"BLOCK_R": c.block_l, "TILES_R": cdiv(rows, c.block_l)}
            steps.append(self.launch(inverse_norms_kernel, cdiv(rows, c.block_l), c.num_warps, **own))
        tiles = ProductTiles(c.block_l, c.block_p, c.block_d, c.num_warps, c.num_stages)
        products = self.workspaces["p_products"]
        product = (i.texts.tokens, i.images.tokens, i.texts.mask, i.images.mask, products, tiles, i.precision)
        return [*steps, product_launch(*product)]

    def gradient(self, side: Side, other: Side, shares: Tensor, weights: Tensor, grad: Tensor) -> Launch:
        """grad [N, R, D] from weights [N, R, K]."""
        c, (n_rows, n_others) = self.config, weights.shape[1:]
        block = 64
        own: dict[str, Any] = {
            "p_weights": weights,
            "p_shares": shares,
            "p_rows": side.tokens,
            "p_others": other.tokens,
            "p_row_mask": side.mask,
            "p_other_mask": other.mask,
            "p_grad": grad,
            **strides(weights, "stride_wb", "stride_wr", "stride_wk"),
            **strides(side.tokens, "stride_rb", "stride_rr", "stride_rd"),
            **strides(other.tokens, "stride_kb", "stride_kk", "stride_kd"),
            **strides(side.mask, "stride_mb", "stride_mr"),
            **strides(other.mask, "stride_nb", "stride_nk"),
            "R": n_rows,
            "K": n_others,
            "TILES_R": cdiv(n_rows, c.block_l),
            "TILES_K": cdiv(n_others, c.block_l),
            "TILES_D": cdiv(grad.shape[2], block),
            "BLOCK_R": c.block_l,
            "BLOCK_K": c.block_l,
            "BLOCK_D": block,
        }
        return self.launch(tiled_gradient_kernel, own["TILES_R"] * own["TILES_D"], c.num_warps, **own)


def _tiled_parts(
    config: TiledConfig, inputs: Inputs, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[slice, Tiled]]:
    """Parts of the batch, which share one set of workspaces of float32: they run one after the other on one stream."""
    workspaces: Workspaces = {}
    pair_bytes = 4 * sum(map(math.prod, shapes.values()))
    for pairs in batch_slices(inputs.shape[0], pair_bytes, config.workspace_bytes):
        n = pairs.stop - pairs.start
        if not workspaces:
            new = inputs.texts.tokens.new_empty
            workspaces = {name: new((n, *shape), dtype=torch.float32) for name, shape in shapes.items()}
        yield pairs, Tiled(inputs.of(pairs), config, {name: x[:n] for name, x in workspaces.items()})


def _workspaces(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    _, l, p, _ = inputs.shape
    return {"p_products": (l, p), "p_text_inverse": (l,), "p_image_inverse": (p,)}


def _pair_launch(kernel: Any, inputs: Inputs, config: PairConfig, **own: Any) -> Launch:
    blocks = {"BLOCK_L": config.block_l, "BLOCK_P": config.block_p, "BLOCK_D": config.block_d}
    known = inputs.arguments() | blocks | own
    return Launch.of(kernel, inputs.shape[0], known, {}, config.num_warps, config.num_stages)


def forward_plan(*args: Any, config: Config | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The outputs of ``forward``, not yet computed, and the steps that compute them."""
    images, texts, image_mask, text_mask, beta, iterations, proximal, with_plan, precision = args
    inputs = Inputs(Side(images, image_mask), Side(texts, text_mask), beta, iterations, proximal, precision)
    results = fake_forward(*args)
    config = config or inputs.choose()
    names = ("p_costs", "p_potentials", "p_plan")
    if isinstance(config, PairConfig):
        wanted = [*results[:2], results[2] if with_plan else None]
        return results, [_pair_launch(pair_forward_kernel, inputs, config, **dict(zip(names, wanted)))]
    shapes = _workspaces(inputs) | ({} if config.held else {"p_before": inputs.shape[1:2]})
    steps: list[Step] = []
    for pairs, tiled in _tiled_parts(config, inputs, shapes):
        own: dict[str, Any] = {name: x[pairs] if x.dim() > 1 else None for name, x in zip(names, results)}
        steps += tiled.similarities()
        if config.held:
            own |= dict(zip(("HELD_L", "HELD_P"), config.held))
            steps.append(tiled.launch(held_kernel, 1, config.held_warps, **own))
        else:
            steps.append(tiled.launch(tiled_iterations_kernel, 1, config.pass_warps, **own))
    return results, steps


def backward_plan(*args: Any, config: Config | None = None) -> tuple[Outputs, Sequence[Step]]:
    """The gradients of ``backward``, not yet computed, and the steps that compute them."""
    grad, images, texts, image_mask, text_mask, beta, potentials, iterations, proximal, *needed, precision = args
    inputs = Inputs(Side(images, image_mask), Side(texts, text_mask), beta, iterations, proximal, precision)
    results = fake_backward(*args)
    grad_images, grad_texts = (x if need else None for x, need in zip(results, needed))
    if grad_images is None and grad_texts is None:
        return results, []
    config = config or inputs.choose()
    own = {"p_grad_costs": grad, "p_potentials": potentials, **strides(grad, "stride_gb", "stride_gl")}
    if isinstance(config, PairConfig):
        own |= {"p_grad_images": grad_images, "p_grad_texts": grad_texts}
        return results, [_pair_launch(pair_backward_kernel, inputs, config, **own)]
    _, l, p, _ = inputs.shape
    shapes = _workspaces(inputs) | {"p_weights": (l, p), "text_shares": (l,), "image_shares": (p,)}
    steps: list[Step] = []
    for pairs, tiled in _tiled_parts(config, inputs, shapes):
        own |= {"p_grad_costs": grad[pairs], "p_potentials": potentials[pairs]}
        steps += tiled.similarities()
        shares = {}
        for name, rows, block in (("text", l, config.block_l), ("image", p, config.block_p)):
            shares[name] = tiled.workspaces[f"{name}_shares"]
            given: dict[str, Any] = {"p_shares": shares[name], "p_inverse": tiled.workspaces[f"p_{name}_inverse"]}
            given["TEXTS"] = name == "text"
            steps.append(tiled.launch(tiled_weights_kernel, cdiv(rows, block), config.num_warps, **own, **given))
        i, weights = tiled.inputs, tiled.workspaces["p_weights"]
        if grad_texts is not None:
            steps.append(tiled.gradient(i.texts, i.images, shares["text"], weights, grad_texts[pairs]))
        if grad_images is not None:
            transposed = weights.transpose(1, 2)
            steps.append(tiled.gradient(i.images, i.texts, shares["image"], transposed, grad_images[pairs]))
    return results, steps


def forward(*args: Any, config: Config | None = None) -> Outputs:
    """Costs [B, L], potentials [B, L + P] and, where wanted, the plan [B, L, P], else [0]."""
    with without_autocast(args[0].device.type):
        return run_plan(forward_plan, args, args[0], config)


def backward(*args: Any, config: Config | None = None) -> Outputs:
    """Gradients of image_tokens [B, P, D] and text_tokens [B, L, D], or [0] for one that is not needed."""
    with without_autocast(args[1].device.type):
        return run_plan(backward_plan, args, args[1], config)

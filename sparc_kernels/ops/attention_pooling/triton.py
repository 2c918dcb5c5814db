"""Launchers of the Triton kernels of ``attention_pooling``, behind ``sparc_kernels::attention_pooled_*_triton``.

They take the arguments of ``schema.py`` in its order and, for tests and tuning, a ``config``. Their plans build outputs
and launches and run nothing: compile-time tests use them on meta tensors. Nothing is read back from the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Launch, Step, cdiv, interpreted
from sparc_kernels.ops._triton.products import BatchedProduct, Product
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.attention_pooling.config import TileConfig, Tiles, pieces
from sparc_kernels.ops.attention_pooling.schema import fake_backward, fake_forward
from sparc_kernels.ops.attention_pooling.triton_fused import fused_cosines_kernel
from sparc_kernels.ops.attention_pooling.triton_fused_gradient import fused_gradient_kernel
from sparc_kernels.ops.attention_pooling.triton_plans import Options, Power, Problem
from sparc_kernels.ops.attention_pooling.triton_rows import pooled_scores_kernel, sum_over_images_kernel
from sparc_kernels.ops.attention_pooling.triton_sums import OwnSums, Sums, by_image
from sparc_kernels.ops.attention_pooling.triton_weights import (
    cosines_kernel,
    gradient_kernel,
    weights_kernel,
    word_gradient_kernel,
    word_levels_kernel,
)

__all__ = ["backward", "backward_plan", "forward", "forward_plan"]

Steps = list[Step]

ROUND = {  # PTX that rounds two numbers into one register
    torch.bfloat16: "cvt.rn.bf16x2.f32 $0, $2, $1;",
    torch.float16: "cvt.rn.f16x2.f32 $0, $2, $1;",
}


class Matrices:
    """What a library's products and our passes hand to each other: [tokens, patches of images], of some of both.

    S, E, H; and the logarithms of sums over words [J, patches of images].
    """

    def __init__(self, problem: Problem, n_tokens: int, n_images: int) -> None:
        self.problem = problem
        width = pitch(n_images * problem.padded)
        self.products = problem.new(n_tokens, width)
        self.weights = problem.new(n_tokens, width, dtype=problem.images.dtype)
        self.forms = problem.new(n_tokens, width)
        self.levels = problem.new(problem.n_captions, width) if problem.options.words else None
        self.row_sums = problem.new(3, n_images, problem.n_tokens)

    def steps(self, gram: Tensor, tokens: slice, images: slice, known: dict[str, Any]) -> tuple[dict[str, Any], Steps]:
        """S, E and H of a block; and the arguments of kernels that take them."""
        problem, tiles = self.problem, self.problem.config
        n_tokens, n_images = tokens.stop - tokens.start, images.stop - images.start
        width = n_images * problem.padded
        products, weights, forms = (x[:n_tokens, :width] for x in (self.products, self.weights, self.forms))
        patches, words = problem.copies[0][images].view(width, -1), problem.copies[1][tokens]
        own = {
            "p_products": products,
            "p_word_levels": self.levels,
            "p_weights": weights,
            "p_forms": forms,
            "p_row_sums": self.row_sums,
            "stride_w": self.products.stride(0),
            "stride_l": 0 if self.levels is None else self.levels.stride(0),
            "IMAGES": n_images,
            "FIRST": images.start,
            "FIRST_ROW": tokens.start,
            "LAST_ROW": tokens.stop,
            "BLOCK_R": tiles.block_r,
            "BLOCK_P": min(tiles.block_p, max(16, 1 << (problem.padded - 1).bit_length())),
            "BLOCK": 256,
        }
        known = known | own
        steps: Steps = [Product(products, words, patches.T)]
        if self.levels is not None:
            programs = problem.n_captions * cdiv(width, known["BLOCK"])
            steps.append(Launch.of(word_levels_kernel, programs, known, {}, 4, 2))
        steps.append(Launch.of(weights_kernel, self.programs(tokens, images), known, {}, 4, 2))
        steps.append(BatchedProduct(by_image(forms, n_images), by_image(weights, n_images), gram[:n_images]))
        return known, steps

    def programs(self, tokens: slice, images: slice) -> int:
        """Of a kernel whose programs take some tokens and an image."""
        return cdiv(tokens.stop - tokens.start, self.problem.config.block_r) * (images.stop - images.start)


def pitch(width: int) -> int:
    """Of the rows of a matrix: what Triton takes for aligned."""
    return cdiv(width, 16) * 16


def slices(n: int, step: int) -> list[slice]:
    """Runs of ``step``, the last one perhaps shorter."""
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]


def forward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``forward``, not yet computed, and the steps that compute them."""
    results = fake_forward(*args)
    scores, stats, levels = results
    problem = Problem.of_arguments(args[:6], stats, Options(*args[6:]), config)
    steps: Steps = [problem.norms()]
    if 0 in (problem.n_images, problem.n_captions):
        return results, steps
    steps += problem.placed()
    tiles = problem.config
    padded, itemsize = problem.padded, problem.images.element_size()
    if tiles.library:
        tokens_step, images_step = block_of(problem, 8 + itemsize)
        matrices = Matrices(problem, tokens_step, images_step)
    else:
        tokens_step = max(1, problem.n_tokens)
        images_step = tiles.images(problem.n_images, max(padded * padded * itemsize, 4 * problem.n_tokens))
        matrices = None
    gram = problem.gram(images_step)
    cosines = problem.new(images_step, problem.n_tokens)
    for images in slices(problem.n_images, images_step):
        n_images = images.stop - images.start
        steps.append(problem.gram_product(gram, images))
        known = problem.arguments() | {"p_gram": gram, "p_cosines": cosines, "IMAGES": n_images, "FIRST": images.start}
        if matrices is None:
            runs = tiles.runs(n_images, cdiv(problem.n_tokens, tiles.forward.block_r), waves=4)
            steps.append(fused(problem, fused_cosines_kernel, tiles.forward, runs, known))
        else:
            for tokens in slices(problem.n_tokens, tokens_step):
                found, more = matrices.steps(gram, tokens, images, known)
                steps += more
                steps.append(Launch.of(cosines_kernel, matrices.programs(tokens, images), found, {}, 4, 2))
        known |= {
            "p_scores": scores,
            "p_levels": levels if problem.options.pooling == "logsumexp" else None,
            "BLOCK": 64,
        }
        programs = n_images * cdiv(problem.n_captions, known["BLOCK"])
        steps.append(Launch.of(pooled_scores_kernel, programs, known, {}, 2, 2))
    return results, steps


def fused(problem: Problem, kernel: Any, tiles: Tiles, runs: int, known: dict[str, Any]) -> Launch:
    """The launch of a fused kernel, ``runs`` programs for each image."""
    own: dict[str, Any] = {
        "RUNS": runs,
        "BLOCK_R": tiles.block_r,
        "BLOCK_D": tiles.block_d,
        "DESCRIBED": problem.described,
    }
    own["ROUND"] = None if interpreted() or torch.version.hip else ROUND[problem.images.dtype]
    own |= dict(zip(("W_0", "W_1", "W_2"), pieces(problem.n_patches)))
    return Launch.of(kernel, known["IMAGES"] * runs, known | own, {}, tiles.num_warps, tiles.num_stages)


def block_of(problem: Problem, entry_bytes: int) -> tuple[int, int]:
    """Tokens and images at a time, of matrices with so many bytes per token and patch."""
    n_tokens, n_images, padded, tiles = problem.n_tokens, problem.n_images, problem.padded, problem.config
    if problem.options.words:  # whole captions, whose ends the host does not know
        return n_tokens, tiles.images(n_images, n_tokens * padded * entry_bytes)
    return tiles.block(n_tokens, n_images, padded, entry_bytes)


def backward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``backward``, not yet computed, and the steps that compute them."""
    grad_scores, *tensors = args[:6]
    stats, levels, max_tokens, *flags, need_images, need_texts, precision = args[6:]
    options = Options(*(*flags, precision))
    results = fake_backward(*args)
    grad_images, grad_texts = results
    problem = Problem.of_arguments((*tensors, max_tokens), stats, options, config)
    if 0 in (problem.n_images, problem.n_captions, problem.n_tokens) or not (need_images or need_texts):
        for grad in results:
            grad.zero_()
        return results, []
    steps: Steps = problem.placed()
    tiles, padded = problem.config, problem.padded
    itemsize = problem.images.element_size()
    tokens_step, images_step = block_of(problem, itemsize * (1 + 2 * need_images) + (8 + itemsize) * tiles.library)
    matrices = Matrices(problem, tokens_step, images_step) if tiles.library else None
    new, width = problem.new, pitch(images_step * padded)
    needed = need_images, need_texts
    own = tiles.own if matrices is None and problem.described else None
    sums = Sums(problem, (tokens_step, images_step), needed)
    if own is not None:
        sums = OwnSums(problem, (tokens_step, images_step), needed, own)
    weights = weights_grad = radial = radial_sum = power = None
    similarity_grad = new(tokens_step, width, dtype=problem.images.dtype)
    if need_images:
        weights_grad = new(tokens_step, width, dtype=problem.images.dtype)
        weights = new(tokens_step, width, dtype=problem.images.dtype) if matrices is None else matrices.weights
    if need_texts and not options.normalize:
        radial, radial_sum = new(images_step, problem.n_tokens), new(problem.n_tokens)
    if problem.images.dtype == torch.float16:
        power = new(2)
        largest = 1.0 if options.pooling == "mean" else options.pooling_scale
        steps.append(Power(grad_scores, power, largest * (1.0 + 2.0 * options.attention_scale)))
    gram = problem.gram(images_step)
    known = problem.arguments() | {
        "p_gram": gram,
        "p_grad_scores": grad_scores,
        "p_levels": levels if options.pooling == "logsumexp" else None,
        "p_power": power,
        "p_radial": radial,
        "p_similarity_grad": similarity_grad,
        "p_weights": weights,
        "p_weights_grad": weights_grad,
        "stride_w": width,
        "FILL": own is None,
        "AGAIN": tiles.again,
    }
    for images in slices(problem.n_images, images_step):
        steps.append(problem.gram_product(gram, images))
        n_images = images.stop - images.start
        columns = n_images * padded
        for tokens in slices(problem.n_tokens, tokens_step):
            n_tokens = tokens.stop - tokens.start
            known |= {"FIRST": images.start, "IMAGES": n_images, "FIRST_ROW": tokens.start, "LAST_ROW": tokens.stop}
            if matrices is None:
                runs = tiles.runs(n_images, cdiv(n_tokens, tiles.backward.block_r))
                steps.append(fused(problem, fused_gradient_kernel, tiles.backward, runs, known))
            else:
                found, more = matrices.steps(gram, tokens, images, known)
                steps += more
                steps.append(Launch.of(gradient_kernel, matrices.programs(tokens, images), found, {}, 4, 2))
                if options.words:
                    programs = problem.n_captions * cdiv(columns, found["BLOCK"])
                    steps.append(Launch.of(word_gradient_kernel, programs, found, {}, 4, 2))
            steps += sums.block(known, tokens, images)
        steps += sums.of_images(images)
        if radial is not None:
            found = known | {"p_sum": radial_sum, "ADD": images.start > 0, "BLOCK": 256}
            steps.append(Launch.of(sum_over_images_kernel, cdiv(problem.n_tokens, 256), found, {}, 4, 2))
    steps += sums.of_texts()
    if sums.text_product is not None:
        grad_texts.zero_()
        steps.append(problem.grad(problem.text_rows(), sums.text_product, power, radial_sum, grad_texts))
    if sums.image_product is not None:
        steps.append(problem.grad(problem.image_rows(), sums.image_product, power, None, grad_images))
    return results, steps


def forward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """scores, stats, levels; [0] for what the pooling has none of."""
    with without_autocast(args[0].device.type):  # products of float32 stay such
        return run_plan(forward_plan, args, args[0], config)


def backward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """Gradients of image_tokens and text_tokens; [0] for one that is not needed."""
    with without_autocast(args[1].device.type):
        return run_plan(backward_plan, args, args[1], config)

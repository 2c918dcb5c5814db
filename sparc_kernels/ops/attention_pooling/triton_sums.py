"""Sums of the backward pass over blocks of tokens and images: by a library's products, or by ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._triton.launch import Launch, Step, cdiv, interpreted
from sparc_kernels.ops._triton.products import BatchedProduct, Product
from sparc_kernels.ops.attention_pooling.config import OwnProducts
from sparc_kernels.ops.attention_pooling.triton_plans import Problem
from sparc_kernels.ops.attention_pooling.triton_products import gram_gradient_kernel, product_kernel

Steps = list[Step]


def by_image(matrix: Tensor, n_images: int) -> Tensor:
    """[tokens, images' patches] as [images, tokens, patches]."""
    return matrix.unflatten(1, (n_images, -1)).transpose(0, 1)


@dataclass(frozen=True)
class SumOfParts:
    """result = parts.sum(0)"""

    result: Tensor
    parts: Tensor

    def run(self) -> None:
        """Queue it on the current stream."""
        torch.sum(self.parts, 0, out=self.result)


class Sums:
    """dS V of all tokens and dS^T T + dG V of all images, of which one that is not wanted is None.

    Here a library multiplies, all rows of a block: it reads 0 where a token is not valid.
    """

    def __init__(self, problem: Problem, block: tuple[int, int], needed: tuple[bool, bool]) -> None:
        self.problem = problem
        self.n_tokens, self.n_images = block
        new, padded, d = problem.new, problem.padded, problem.images.shape[2]
        self.image_product = new(problem.n_images, padded, d) if needed[0] else None
        self.text_product = new(problem.n_tokens, d) if needed[1] else None
        self.gram_grad = new(self.n_images, padded, padded) if needed[0] else None

    def block(self, known: dict[str, Any], tokens: slice, images: slice) -> Steps:
        """Adds a block, whose matrices are among the ``known`` arguments of kernels."""
        n_tokens, n_images = tokens.stop - tokens.start, images.stop - images.start
        columns = n_images * self.problem.padded
        patches, words = self.problem.copies
        part = known["p_similarity_grad"][:n_tokens, :columns]
        steps: Steps = []
        if self.text_product is not None:
            steps.append(Product(self.text_product[tokens], part, patches[images].flatten(0, 1), add=images.start > 0))
        if self.image_product is not None and self.gram_grad is not None:
            add = tokens.start > 0
            steps.append(Product(self.image_product[images].flatten(0, 1), part.T, words[tokens], add=add))
            left, right = (by_image(known[x][:n_tokens, :columns], n_images) for x in ("p_weights", "p_weights_grad"))
            steps.append(BatchedProduct(self.gram_grad[:n_images], left.transpose(1, 2), right, add=add))
        return steps

    def of_images(self, images: slice) -> Steps:
        """After all blocks of some images."""
        if self.image_product is None or self.gram_grad is None:
            return []
        gram_grad = self.gram_grad[: images.stop - images.start]
        return [BatchedProduct(self.image_product[images], gram_grad, self.problem.copies[0][images], add=True)]

    def of_texts(self) -> Steps:
        """After all blocks."""
        return []


class OwnSums(Sums):
    """The same by products that stop behind the last valid token."""

    def __init__(self, problem: Problem, block: tuple[int, int], needed: tuple[bool, bool], tiles: OwnProducts) -> None:
        super().__init__(problem, block, needed)
        new, padded, d = problem.new, problem.padded, problem.images.shape[2]
        assert padded <= 2 * tiles.block_p  # a Gram matrix has up to four blocks
        self.tiles = tiles
        self.block_n = min(tiles.block_n, max(16, 1 << (d - 1).bit_length()))
        self.columns = cdiv(d, self.block_n)
        self.text_tiles = cdiv(self.n_tokens, tiles.block_m) * self.columns
        self.image_tiles = cdiv(self.n_images * padded, tiles.block_m) * self.columns
        multiprocessors = problem.config.programs
        self.text_parts, self.image_parts, self.gram_parts = (
            tiles.parts(n, multiprocessors, most)
            for n, most in ((self.text_tiles, 2), (self.image_tiles, 8), (self.n_images, 8))
        )
        self.texts = self.image_sums = self.gram_sums = None
        if self.text_product is not None:
            self.texts = new(self.text_parts, problem.n_tokens, d)
        if self.image_product is not None:
            self.image_sums = new(self.image_parts * self.n_images * padded * d)
            self.gram_sums = new(self.gram_parts * self.n_images * padded * padded)

    def block(self, known: dict[str, Any], tokens: slice, images: slice) -> Steps:
        """As of ``Sums``."""
        tiles, n_images = self.tiles, images.stop - images.start
        known = known | {
            "p_gram_grad": self.gram_sums,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_P": tiles.block_p,
            "BLOCK_K": tiles.block_k,
        }

        def launch(kernel: Any, programs: int, parts: int, depth: int, add: bool, **rest: Any) -> Launch:
            steps = cdiv(cdiv(depth, parts), tiles.block_k) if interpreted() else None
            own = {"PARTS": parts, "STEPS": steps, "ADD": add, **rest}
            return Launch.of(kernel, programs * parts, known, own, tiles.num_warps, tiles.num_stages)

        n_tokens, columns = tokens.stop - tokens.start, n_images * self.problem.padded
        more, later = images.start > 0, tokens.start > 0
        steps: Steps = []
        if self.texts is not None:
            programs = cdiv(n_tokens, tiles.block_m) * self.columns
            ends = {"p_operand": known["p_images"], "p_product": self.texts, "TRANSPOSED": False}
            steps.append(launch(product_kernel, programs, self.text_parts, columns, more, **ends))
        if self.image_sums is not None:
            programs = cdiv(columns, tiles.block_m) * self.columns
            ends = {"p_operand": known["p_texts"], "p_product": self.image_sums, "TRANSPOSED": True}
            steps.append(launch(product_kernel, programs, self.image_parts, n_tokens, later, **ends))
            steps.append(launch(gram_gradient_kernel, n_images, self.gram_parts, n_tokens, later))
        return steps

    def of_images(self, images: slice) -> Steps:
        """As of ``Sums``."""
        if self.image_product is None or self.image_sums is None or self.gram_sums is None or self.gram_grad is None:
            return []
        steps: Steps = []
        gram_grad = self.gram_grad[: images.stop - images.start]
        for result, parts, n in (
            (self.image_product[images], self.image_sums, self.image_parts),
            (gram_grad, self.gram_sums, self.gram_parts),
        ):
            steps.append(SumOfParts(result, parts[: n * result.numel()].view(n, *result.shape)))
        return steps + super().of_images(images)

    def of_texts(self) -> Steps:
        """As of ``Sums``."""
        if self.text_product is None or self.texts is None:
            return []
        return [SumOfParts(self.text_product, self.texts)]

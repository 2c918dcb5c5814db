"""What the launches of this room have in common: the inputs as kernels know them, copies, Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._captions.triton_plans import Sides, exponent_of, write_powers
from sparc_kernels.ops._captions.triton_rows import count_valid_kernel, inverse_norms_kernel
from sparc_kernels.ops._triton.launch import Launch, Step, capability, cdiv, describable, strides, upcast
from sparc_kernels.ops._triton.products import BatchedProduct
from sparc_kernels.ops.attention_pooling import triton_rows
from sparc_kernels.ops.attention_pooling.config import TileConfig, choose

MULTIPLE = 8  # of patches in copies and matrices: 16 bytes in half precision


@dataclass(frozen=True)
class Options:
    """Of the op, as in ``schema.py``."""

    normalize: bool
    weights: str
    attention_scale: float
    pooling: str
    pooling_scale: float
    float32_precision: str

    @property
    def words(self) -> bool:
        """Whether the weights of a token depend on the other tokens of its caption."""
        return self.weights == "words_softmax"


@dataclass(frozen=True)
class Units:
    """Powers of two that bring raw vectors below a norm of 1, for float16; and what makes up for them in S.

    image_units [I], text_unit [1], scales [2, I]: factors of the logits' argument, and of S.
    """

    image_inverse: Tensor
    text_inverse: Tensor
    image_units: Tensor
    text_unit: Tensor
    scales: Tensor
    attention_scale: float
    words: bool

    def run(self) -> None:
        """Queue it on the current stream."""

        def exponent(inverse: Tensor) -> Tensor:
            norms = torch.where(inverse > 0, 1 / inverse, 0).nan_to_num(0.0)
            return exponent_of(norms.amax(-1))

        images = exponent(self.image_inverse.view(self.image_units.shape[0], -1))
        texts = exponent(self.text_inverse.view(1, -1))
        one = torch.ones_like(self.scales[0])
        self.image_units.copy_(torch.ldexp(one, -images))
        self.text_unit.copy_(torch.ldexp(one[:1], -texts))
        unit = torch.ldexp(one, images + texts)
        self.scales[0].copy_(self.attention_scale * (one if self.words else unit))
        self.scales[1].copy_(unit)


@dataclass(frozen=True)
class Power:
    """power [2]: a power of two in front of gradients, so that float16 holds them, and its inverse."""

    grad: Tensor
    power: Tensor
    factor: float

    def run(self) -> None:
        """Queue it on the current stream."""
        bound = (self.grad.abs().amax() * self.factor).nan_to_num(1.0, 1.0)
        write_powers(self.power, bound, 8)


@dataclass(frozen=True)
class Problem(Sides):
    """The inputs of a pass. ``arguments`` are the kernel parameters that stand for them."""

    options: Options
    given: TileConfig | None

    @property
    def padded(self) -> int:
        """Rows of an image in copies and matrices."""
        return cdiv(self.n_patches, MULTIPLE) * MULTIPLE

    @cached_property
    def config(self) -> TileConfig:
        """Tiles."""
        chosen = self.given or choose(
            self.images.element_size(), capability(self.images), self.n_patches, self.options.words
        )
        return chosen.cut(self.images.shape[2])

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A workspace."""
        return self.images.new_empty(shape, dtype=dtype)

    @cached_property
    def copies(self) -> tuple[Tensor, Tensor]:
        """Of images [I, padded, D] and texts [N, D]."""
        d, dtype = self.images.shape[2], self.images.dtype
        return self.new(self.n_images, self.padded, d, dtype=dtype), self.new(self.n_tokens, d, dtype=dtype)

    @cached_property
    def gamma(self) -> Tensor:
        """[N]: inverse norms of the copies of tokens."""
        return self.new(self.n_tokens)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """starts [J + 1], rows [N] and owners [N]."""
        sizes = (self.n_captions + 1, self.n_tokens, self.n_tokens)
        starts, rows, owners = (self.new(n, dtype=torch.int32) for n in sizes)
        return starts, rows, owners

    @cached_property
    def patch_counts(self) -> Tensor | None:
        """[I]"""
        return None if self.image_mask is None else self.new(self.n_images, dtype=torch.int32)

    @cached_property
    def units(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of images, of texts, and scales: as in ``Units``."""
        if self.options.normalize or self.images.dtype != torch.float16:
            return None
        return self.new(self.n_images), self.new(1), self.new(2, self.n_images)

    @property
    def described(self) -> bool:
        """Whether kernels read the copies by tensor descriptors."""
        images, texts = self.copies
        return describable(images.view(-1, images.shape[2])) and describable(texts)

    def arguments(self) -> dict[str, Any]:
        """Kernel arguments."""
        images, texts = self.copies
        starts, rows, owners = self.places
        return {
            "p_images": images,
            "p_texts": texts,
            "p_gamma": self.gamma,
            "p_starts": starts,
            "p_rows": rows,
            "p_owners": owners,
            "p_image_mask": self.image_mask,
            "p_patch_counts": self.patch_counts,
            "p_scales": None if self.units is None else self.units[2],
            **strides(self.image_mask, "stride_vi", "stride_vp"),
            "scale": self.options.attention_scale,
            "pooling_scale": self.options.pooling_scale,
            "I": self.n_images,
            "J": self.n_captions,
            "N": self.n_tokens,
            "P": self.n_patches,
            "PADDED": self.padded,
            "D": self.images.shape[2],
            "SIGMOID": self.options.weights == "sigmoid",
            "SINK": self.options.weights == "softmax_sink",
            "WORDS": self.options.words,
            "UPCAST": upcast(self.images.dtype),
        }

    def norms(self) -> Launch:
        """Into the statistics."""
        known = {
            "p_images": self.images,
            "p_texts": self.texts,
            "p_image_mask": self.image_mask,
            "p_text_mask": self.text_mask,
            "p_stats": self.stats,
            **strides(self.images, "stride_ii", "stride_ip", "stride_id"),
            **strides(self.texts, "stride_tj", "stride_tl", "stride_td"),
            **strides(self.image_mask, "stride_vi", "stride_vp"),
            **strides(self.text_mask, "stride_mj", "stride_ml"),
            "N_PATCHES": self.n_images * self.n_patches,
            "N_TOKENS": self.n_tokens,
            "P": self.n_patches,
            "L": self.texts.shape[1],
            "NORMALIZE": True,
            **_row_blocks(self.images),
        }
        programs = sum(cdiv(known[name], known["BLOCK"]) for name in ("N_PATCHES", "N_TOKENS"))
        return Launch.of(inverse_norms_kernel, programs, known, {}, 4, 2)

    def placed(self) -> list[Step]:
        """Which tokens are valid, and copies of both sides."""
        starts, rows, owners = self.places
        counts = self.new(self.n_captions, dtype=torch.int32)
        known = {
            "p_mask": self.text_mask,
            "p_offsets": self.offsets,
            "p_counts": counts,
            "p_starts": starts,
            "p_rows": rows,
            "p_owners": owners,
            **strides(self.text_mask, "stride_mj", "stride_ml"),
            "J": self.n_captions,
            "L": self.longest,
            "N": self.n_tokens,
            "BLOCK": _vector_block(self.longest),
        }
        steps: list[Step] = [
            Launch.of(triton_rows.caption_counts_kernel, self.n_captions, known, {}, 1, 2),
            Launch.of(triton_rows.starts_kernel, 1, known | {"BLOCK": 1024}, {}, 4, 2),
            Launch.of(triton_rows.caption_rows_kernel, self.n_captions, known, {}, 1, 2),
        ]
        if self.image_mask is not None:
            known = {"p_mask": self.image_mask, "p_counts": self.patch_counts}
            known |= strides(self.image_mask, "stride_mj", "stride_ml")
            known |= {"L": self.n_patches, "BLOCK": _vector_block(self.n_patches)}
            steps.append(Launch.of(count_valid_kernel, self.n_images, known, {}, 1, 2))
        if self.units is not None:
            options = self.options
            images, texts = self.stats.split([self.n_images * self.n_patches, self.n_tokens])
            steps.append(Units(images, texts, *self.units, options.attention_scale, options.words))
        for side in (self.image_rows(), self.text_rows()):
            steps.append(Launch.of(triton_rows.copy_rows_kernel, cdiv(side["N_ROWS"], side["BLOCK"]), side, {}, 4, 2))
        return steps

    def image_rows(self) -> dict[str, Any]:
        """Arguments of kernels along the rows of the images' copy."""
        return {
            "p_tokens": self.images,
            "p_inverse": self.stats[: self.n_images * self.n_patches],
            "p_mask": self.image_mask,
            "p_rows": None,
            "p_starts": None,
            "p_units": None if self.units is None else self.units[0],
            "p_copy": self.copies[0],
            "p_gamma": None,
            **strides(self.images, "stride_tj", "stride_tl", "stride_td"),
            **strides(self.image_mask, "stride_mj", "stride_ml"),
            "N_ROWS": self.n_images * self.padded,
            "J": 0,
            "L": self.n_patches,
            "PADDED": self.padded,
            "NORMALIZE": self.options.normalize,
            **_row_blocks(self.images),
        }

    def text_rows(self) -> dict[str, Any]:
        """The same of the texts' copy."""
        starts, rows, _ = self.places
        return {
            "p_tokens": self.texts,
            "p_inverse": self.stats[self.n_images * self.n_patches :],
            "p_mask": None,
            "p_rows": rows,
            "p_starts": starts,
            "p_units": None if self.units is None else self.units[1],
            "p_copy": self.copies[1],
            "p_gamma": self.gamma,
            **strides(self.texts, "stride_tj", "stride_tl", "stride_td"),
            "stride_mj": 0,
            "stride_ml": 0,
            "N_ROWS": self.n_tokens,
            "J": self.n_captions,
            "L": self.texts.shape[1],
            "PADDED": 1,
            "NORMALIZE": self.options.normalize,
            **_row_blocks(self.texts),
        }

    def gram(self, n_images: int) -> Tensor:
        """[n_images, padded, padded]"""
        return self.new(n_images, self.padded, self.padded, dtype=self.images.dtype)

    def gram_product(self, gram: Tensor, images: slice) -> BatchedProduct:
        """The Gram matrices of some images."""
        patches = self.copies[0][images]
        return BatchedProduct(gram[: len(patches)], patches, patches.transpose(1, 2))

    def grad(self, known: dict[str, Any], product: Tensor, power: Tensor | None, radial: Any, grad: Tensor) -> Launch:
        """The gradient of a side, from that of its copy."""
        known = known | {"p_product": product, "p_power": power, "p_radial": radial, "p_grad": grad}
        return Launch.of(triton_rows.grad_rows_kernel, cdiv(known["N_ROWS"], known["BLOCK"]), known, {}, 4, 2)


def _row_blocks(tokens: Tensor) -> dict[str, Any]:
    d = tokens.shape[-1]
    block_d = min(512, max(16, 1 << (d - 1).bit_length()))
    return {"D": d, "BLOCK": 8, "BLOCK_D": block_d, "UPCAST": upcast(tokens.dtype)}


def _vector_block(n: int) -> int:
    return min(1024, max(16, 1 << (n - 1).bit_length()))

"""What the launches of this room have in common: the inputs as kernels know them, slots, products of a library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._captions.triton_plans import Sides, write_powers
from sparc_kernels.ops._captions.triton_rows import count_valid_kernel, inverse_norms_kernel
from sparc_kernels.ops._triton.launch import (
    Launch,
    Step,
    capability,
    cdiv,
    describable,
    interpreted,
    product_precision,
    strides,
    upcast,
)
from sparc_kernels.ops.late_interaction import native, triton_resident, triton_rows
from sparc_kernels.ops.late_interaction.config import TileConfig, choose, choose_faster_native, choose_resident
from sparc_kernels.ops.late_interaction.schema import none_index

GRANULE = triton_rows.GRANULE.value


@dataclass(frozen=True)
class Power:
    """power [2]: a power of two that brings the largest possible entry of W below 2^15, and its inverse; for float16.

    The norms of zero vectors do not count: what is clamped belongs to them.
    """

    grad_image: Tensor | None
    grad_text: Tensor | None
    image_inverse: Tensor
    text_inverse: Tensor
    power: Tensor

    def run(self) -> None:
        """Queue it on the current stream."""
        bound = self.power.new_zeros(())
        for grad in (self.grad_image, self.grad_text):
            if grad is not None:
                bound = bound + grad.abs().amax()
        for inverse in (self.image_inverse, self.text_inverse):
            bound = bound * torch.where(inverse < 1e12, inverse, 0).amax()
        write_powers(self.power, bound, 14)


@dataclass(frozen=True)
class Slots:
    """Where the tokens of captions, and the patches of images with a mask, stand in tiles; and what finds it out."""

    steps: list[Step]
    arguments: dict[str, Any]
    runs: int
    granules: int  # of all runs


@dataclass(frozen=True)
class Problem(Sides):
    """The inputs of a pass. ``arguments`` are the kernel parameters that stand for them."""

    normalize: bool
    float32_precision: str
    given: TileConfig | None

    @property
    def image_inverse(self) -> Tensor:
        """[I * P], of the norms."""
        return self.stats[: self.n_images * self.n_patches]

    @property
    def text_inverse(self) -> Tensor:
        """[J * L], packed [N]."""
        return self.stats[self.n_images * self.n_patches :]

    @property
    def exact(self) -> bool:
        """Whether keys need 64 bits: values that are no cosines, or that are told apart to the last bit."""
        return not self.normalize or self.images.element_size() == 4

    @cached_property
    def config(self) -> TileConfig:
        """Tiles."""
        chosen = self.given or self._resident_config()
        chosen = chosen or choose(self.images.element_size(), capability(self.images), self.exact)
        return chosen.cut(self.n_patches, self.images.shape[2])

    def _resident_config(self) -> TileConfig | None:
        """None where patches cannot stay in shared memory. Where they can, the kernel in CUDA C++ finds what Triton's
        does, bit for bit, so that which of them is there decides about time alone."""
        d, size = self.images.shape[2], self.images.element_size()
        copied = self.image_mask is not None and d * size % 16 == 0 and capability(self.images) >= 90
        fits = self.longest <= triton_resident.RANKS.value and d * size % 16 == 0 and self.n_images > 0
        if self.exact or not fits or capability(self.images) >= 100 or not (copied or describable(self.images)):
            return None
        tiles = choose_faster_native(self.n_patches, d)
        return tiles if tiles is not None and native.missing(self.images) is None else choose_resident(d)

    def native_refusal(self, images: Tensor) -> str | None:
        """Why the kernel in CUDA C++ cannot serve the problem, with these images or copies of them; or None."""
        if self.exact or self.longest > triton_resident.RANKS.value:
            most = triton_resident.RANKS.value
            return (
                f"the native kernel of late interaction takes cosines in half precision and captions of at most {most} "
                f"tokens, not {self.images.dtype} with normalize={self.normalize} and captions of {self.longest}"
            )
        if not describable(images):
            return "the native kernel of late interaction takes image_tokens whose rows start at multiples of 16 bytes"
        return native.refusal(images, self.n_patches, self.config.block_p)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A workspace."""
        return self.images.new_empty(shape, dtype=dtype)

    @cached_property
    def caption_counts(self) -> Tensor | None:
        """[J]"""
        return None if self.text_mask is None else self.new(self.n_captions, dtype=torch.int32)

    @cached_property
    def patch_counts(self) -> Tensor | None:
        """[I]"""
        return None if self.image_mask is None else self.new(self.n_images, dtype=torch.int32)

    def arguments(self) -> dict[str, Any]:
        """Kernel arguments."""
        return {
            "p_images": self.images,
            "p_texts": self.texts,
            "p_image_mask": self.image_mask,
            "p_text_mask": self.text_mask,
            "p_offsets": self.offsets,
            "p_stats": self.stats,
            "p_image_inverse": self.image_inverse,
            "p_text_inverse": self.text_inverse,
            "p_patch_counts": self.patch_counts,
            "p_counts": self.caption_counts,
            **strides(self.images, "stride_ii", "stride_ip", "stride_id"),
            **strides(self.texts, "stride_tj", "stride_tl", "stride_td"),
            **strides(self.image_mask, "stride_vi", "stride_vp"),
            **strides(self.text_mask, "stride_mj", "stride_ml"),
            "J": self.n_captions,
            "P": self.n_patches,
            "L": self.texts.shape[1],
            "N": self.n_tokens,
            "N_PATCHES": self.n_images * self.n_patches,
            "N_TOKENS": self.n_tokens,
            "NORMALIZE": self.normalize,
            "D": self.images.shape[2],
            "PARTS": self.config.parts,
            "BLOCK_P": self.config.block_p,
            "BLOCK_D": self.config.block_d,
            "EXACT": self.exact,
            "PRECISION": product_precision(self.images.dtype, self.float32_precision),
            "UPCAST": upcast(self.images.dtype),
            "INTERPRETED": interpreted(),
        }

    def norms(self) -> Launch:
        """Into the statistics."""
        known = self.arguments() | _row_blocks(self.images)
        programs = sum(cdiv(known[name], known["BLOCK"]) for name in ("N_PATCHES", "N_TOKENS"))
        return Launch.of(inverse_norms_kernel, programs, known, {}, 4, 2)

    def counts(self) -> list[Step]:
        """Valid ones of each item that has a mask; those of images are counted with their slots, too."""
        steps: list[Step] = []
        for mask, counts in ((self.image_mask, self.patch_counts), (self.text_mask, self.caption_counts)):
            if mask is not None and counts is not None:
                known = {"p_mask": mask, "p_counts": counts, **strides(mask, "stride_mj", "stride_ml")}
                known |= {"L": mask.shape[1], "BLOCK": vector_block(mask.shape[1])}
                steps.append(Launch.of(count_valid_kernel, mask.shape[0], known, {}, 1, 2))
        return steps

    def fills(self, indices: tuple[Tensor, ...]) -> list[Step]:
        """Indices of "none", where there may be any."""
        steps: list[Step] = []
        if self.image_mask is not None or self.text_mask is not None or self.offsets is not None:
            for each in indices:
                known = {"p_values": each, "N": each.numel(), "VALUE": none_index(each.dtype), "BLOCK": 4096}
                steps.append(Launch.of(triton_rows.fill_kernel, cdiv(each.numel(), 4096), known, {}, 4, 2))
        return steps

    def slots(self) -> Slots:
        """Of captions and images."""
        tile, run = self.config.granules, self.config.captions(self.n_images, self.n_captions)
        runs = cdiv(self.n_captions, run)
        run_granules = cdiv(run * cdiv(self.longest, GRANULE), tile) * tile
        granules = runs * run_granules
        table = self.new(granules, dtype=torch.int32)
        arguments = {
            "p_slots": self.new(granules * GRANULE, dtype=torch.int32),
            "p_captions": table,
            "p_codes": self.new(granules, dtype=torch.int32),
            "p_starts": self.new(self.n_captions, dtype=torch.int32),
            "p_run_lengths": self.new(runs, dtype=torch.int32),
            "RUN_GRANULES": run_granules,
            "GRANULES": granules,
            "RUN": run,
            "TILE": tile,
            "p_patch_slots": None,
            "PATCH_SLOTS": 0,
            "HOLES": self.text_mask is not None,
        }
        known = self.arguments() | arguments | {"p_mask": self.text_mask, "L": self.longest}
        known |= {"BLOCK": vector_block(self.longest)}
        steps: list[Step] = [Launch.of(triton_rows.caption_slots_kernel, self.n_captions, known, {}, 1, 2)]
        if self.image_mask is not None:
            patch_slots = cdiv(self.n_patches, self.config.block_p) * self.config.block_p
            place = self.new(self.n_images, patch_slots, dtype=torch.int32)
            known = {"p_mask": self.image_mask, "p_slots": place, "p_counts": self.patch_counts}
            known |= strides(self.image_mask, "stride_vi", "stride_vp")
            known |= {"P": self.n_patches, "PATCH_SLOTS": patch_slots, "BLOCK": vector_block(self.n_patches)}
            steps.append(Launch.of(triton_rows.patch_slots_kernel, self.n_images, known, {}, 1, 2))
            arguments |= {"p_patch_slots": place, "PATCH_SLOTS": patch_slots}
        return Slots(steps, arguments, runs, granules)

    def dense_images(self, slots: Slots) -> tuple[Tensor, list[Step]]:
        """[I, P, D], or a copy [I, PATCH_SLOTS, D] where patches have slots."""
        if self.image_mask is None:
            return self.images, []
        n_slots = slots.arguments["PATCH_SLOTS"]
        copy = self.new(self.n_images, n_slots, self.images.shape[2], dtype=self.images.dtype)
        known = self.arguments() | slots.arguments | {"p_copy": copy, "BLOCK": 64}
        programs = self.n_images * cdiv(n_slots, 64)
        return copy, [Launch.of(triton_resident.copy_patches_kernel, programs, known, {}, 4, 2)]

    def products_at_a_time(self) -> tuple[int, int]:
        """Rows of a library's products, 0 without them; and how many images a launch is over."""
        if not self.config.library or not self.n_tokens:
            return 0, self.n_images
        rows = max(1, self.config.library_bytes // (4 * self.n_tokens))
        images = min(self.n_images, max(1, rows // self.n_patches))
        return images * self.n_patches, images

    def flat_images(self) -> Tensor:
        """[I * P, D]"""
        return self.images.reshape(-1, self.images.shape[2])

    def flat_texts(self) -> Tensor:
        """[J * L, D], packed [N, D]"""
        return self.texts.reshape(-1, self.texts.shape[2])

    def owners(self) -> tuple[Tensor | None, list[Step]]:
        """[N] captions of packed tokens, negative for none; None where captions are not packed."""
        if self.offsets is None:
            return None, []
        owners = self.new(self.n_tokens, dtype=torch.int32)
        known = self.arguments() | {"p_values": owners, "VALUE": -1, "BLOCK": 4096}
        steps: list[Step] = [Launch.of(triton_rows.fill_kernel, cdiv(self.n_tokens, 4096), known, {}, 4, 2)]
        known |= {"p_owners": owners, "L": self.longest, "BLOCK": vector_block(self.longest)}
        return owners, [*steps, Launch.of(triton_rows.owners_kernel, self.n_captions, known, {}, 1, 2)]

    def valid_images(self) -> tuple[Tensor, list[Step]]:
        """[I * P, D] with zeros in what is not valid."""
        known = {"p_tokens": self.images, "p_mask": self.image_mask, "p_owners": None, "L": self.n_patches}
        known |= strides(self.images, "stride_tj", "stride_tl", "stride_td")
        known |= strides(self.image_mask, "stride_mj", "stride_ml")
        return self._valid(known, self.flat_images)

    def valid_texts(self, owners: Tensor | None) -> tuple[Tensor, list[Step]]:
        """[J * L, D], packed [N, D], with zeros in what is not valid."""
        known = self.arguments() | {"p_tokens": self.texts, "p_mask": self.text_mask, "p_owners": owners}
        return self._valid(known, self.flat_texts)

    def _valid(self, known: dict[str, Any], flat: Any) -> tuple[Tensor, list[Step]]:
        if known["p_mask"] is None and known["p_owners"] is None:
            return flat(), []
        tokens = known["p_tokens"]
        n, d = tokens.shape[0] * tokens.shape[1], tokens.shape[2]
        copy = self.new(n, d, dtype=tokens.dtype)
        known |= _row_blocks(tokens) | {"p_copy": copy, "N": n}
        return copy, [Launch.of(triton_rows.valid_tokens_kernel, cdiv(n, known["BLOCK"]), known, {}, 4, 2)]

    def one_hot(self, kernel: Any, known: dict[str, Any], tokens: slice, image: int, n_images: int) -> Launch:
        """The launch for a block of W."""
        whole = max(16, 1 << (self.n_patches - 1).bit_length())
        block_p = min(whole, max(64, min(256, whole // 4)))
        tiles = min(4, cdiv(self.n_patches, block_p))
        own = {"FIRST_TOKEN": tokens.start, "LAST_TOKEN": tokens.stop, "FIRST_IMAGE": image, "N_IMAGES": n_images}
        own |= {"BLOCK_N": self.config.block_n, "BLOCK_P": block_p, "TILES": tiles}
        if self.offsets is not None:
            own["L"] = self.longest
        groups = cdiv(self.n_patches, tiles * block_p)
        programs = cdiv(tokens.stop - tokens.start, self.config.block_n) * n_images * groups
        return Launch.of(kernel, programs, known | own, {}, 4, 2)

    def finish(self, tokens: Tensor, product: Tensor, inverse: Tensor, power: Tensor | None, grad: Tensor) -> Launch:
        """grad [n, D] of tokens [n, D], from their product with W."""
        known = _row_blocks(tokens) | {
            "p_tokens": tokens,
            "p_product": product,
            "p_inverse": inverse,
            "p_power": power,
            "p_grad": grad,
            **strides(tokens, "stride_n", "stride_d"),
            "N": tokens.shape[0],
            "NORMALIZE": self.normalize,
        }
        return Launch.of(triton_rows.grad_tokens_kernel, cdiv(tokens.shape[0], known["BLOCK"]), known, {}, 4, 2)


def _row_blocks(tokens: Tensor) -> dict[str, Any]:
    d = tokens.shape[-1]
    block_d = min(512, max(16, 1 << (d - 1).bit_length()))
    return {"D": d, "BLOCK": 8, "BLOCK_D": block_d, "UPCAST": upcast(tokens.dtype)}


def vector_block(n: int, most: int = 1024) -> int:
    """A power of two."""
    return min(most, max(16, 1 << (n - 1).bit_length()))

"""Launchers of the Triton kernels of ``late_interaction``, behind ``sparc_kernels::max_similarity_*_triton``.

They take the arguments of ``schema.py`` in its order and, for tests and tuning, a ``config``. Their plans build outputs
and launches and run nothing: compile-time tests use them on meta tensors. Nothing is read back from the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import without_autocast
from sparc_kernels.ops._triton.launch import Launch, Step, cdiv, strides
from sparc_kernels.ops._triton.products import Product
from sparc_kernels.ops._triton.replay import run_plan
from sparc_kernels.ops.late_interaction.config import TileConfig
from sparc_kernels.ops.late_interaction.native import Maxima
from sparc_kernels.ops.late_interaction.schema import fake_backward, fake_forward
from sparc_kernels.ops.late_interaction.triton_backward import one_hot_kernel
from sparc_kernels.ops.late_interaction.triton_forward import INDEX_BITS, maxima_kernel
from sparc_kernels.ops.late_interaction.triton_keys import patch_maxima_kernel, token_maxima_kernel
from sparc_kernels.ops.late_interaction.triton_plans import GRANULE, Power, Problem, Slots, vector_block
from sparc_kernels.ops.late_interaction.triton_resident import copy_tokens_kernel, resident_maxima_kernel
from sparc_kernels.ops.late_interaction.triton_rows import merge_scores_kernel

__all__ = ["backward", "backward_plan", "forward", "forward_plan"]

Steps = list[Step]


def forward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The results of ``forward``, not yet computed, and the steps that compute them."""
    inputs, (normalize, average, by_image, by_text, keep, precision) = args[:6], args[6:]
    results = fake_forward(*args)
    image_scores, stats, best_token, best_patch, text_scores = results
    problem = Problem.of_arguments(inputs, stats, normalize, precision, config)
    steps: Steps = [problem.norms(), *problem.counts()]
    if 0 in (problem.n_images, problem.n_captions):
        return results, steps
    if keep:
        steps += problem.fills((best_token, best_patch))
    slots = problem.slots()
    steps += slots.steps
    tiles, new = problem.config, problem.new
    if tiles.resident:
        return results, [*steps, *_resident_steps(problem, slots, results, args[6:])]
    chunks = cdiv(problem.n_patches, tiles.block_p)
    length, step = problem.products_at_a_time()
    image_partials = new(problem.n_images, problem.n_captions, chunks) if by_image else None
    text_partials = new(problem.n_images, slots.granules) if by_text else None
    programs = step * slots.runs
    key = torch.int64 if problem.exact else torch.int32
    own = {
        "p_best_token": best_token if by_image and keep else None,
        "p_best_patch": best_patch if by_text and keep else None,
        "p_image_partials": image_partials,
        "p_text_partials": text_partials,
        "p_token_keys": new(programs, chunks, tiles.granules * GRANULE, dtype=key),
        "p_open_keys": new(programs, chunks, tiles.block_p, dtype=key),
        "p_open_ranks": new(programs, chunks, tiles.block_p, dtype=torch.int32),
        "CHUNKS": chunks,
        "unit": 2**INDEX_BITS.value,
    }
    products = new(length, problem.n_tokens) if length else None
    for first in range(0, problem.n_images, step):
        n_images = min(step, problem.n_images - first)
        if products is not None:
            rows = slice(first * problem.n_patches, (first + n_images) * problem.n_patches)
            part = products[: rows.stop - rows.start]
            steps.append(Product(part, problem.flat_images()[rows], problem.flat_texts().T))
        own |= {"FIRST": first, "RUNS": slots.runs, "p_products": products}
        own |= {"stride_p": 0 if products is None else products.stride(0)}
        known = problem.arguments() | slots.arguments
        steps.append(
            Launch.of(maxima_kernel, n_images * slots.runs, known | own, {}, tiles.num_warps, tiles.num_stages)
        )
    block = 256
    known = problem.arguments() | slots.arguments | own | {
        "p_image_scores": image_scores if by_image else None,
        "p_text_scores": text_scores if by_text else None,
        "AVERAGE": average,
        "L": problem.longest,
        "BLOCK": block,
    }  # fmt: skip
    programs = problem.n_images * cdiv(problem.n_captions, block)
    return results, [*steps, Launch.of(merge_scores_kernel, programs, known, {}, 4, 2)]


def _resident_steps(problem: Problem, slots: Slots, results: tuple[Tensor, ...], flags: tuple[Any, ...]) -> Steps:
    """Those of the forward pass behind norms and slots, where patches stay in shared memory."""
    image_scores, _, best_token, best_patch, text_scores = results
    _, average, by_image, by_text, keep, _ = flags
    tiles, new = problem.config, problem.new
    d, chunks, n_slots = problem.images.shape[2], cdiv(problem.n_patches, tiles.block_p), slots.granules * GRANULE
    images, steps = problem.dense_images(slots)
    if tiles.native and (reason := problem.native_refusal(images)) is not None:
        raise NotImplementedError(reason)
    token_keys, patch_keys = chunks * n_slots * by_text, problem.n_captions * problem.n_patches * by_image
    step = min(problem.n_images, max(1, tiles.workspace_bytes // (4 * max(1, token_keys + patch_keys))))
    known = problem.arguments() | slots.arguments | {
        "p_images": images,
        **strides(images, "stride_ii", "stride_ip"),
        "p_slotted": new(n_slots, d, dtype=images.dtype),
        "p_slot_inverse": new(n_slots),
        "p_token_keys": new(step, chunks, n_slots, dtype=torch.int32) if by_text else None,
        "p_patch_keys": new(step, problem.n_captions, problem.n_patches, dtype=torch.int32) if by_image else None,
        "p_best_token": best_token if keep else None,
        "p_best_patch": best_patch if keep else None,
        "p_image_partials": None,
        "p_text_partials": new(problem.n_images, slots.granules) if by_text else None,
        "p_image_scores": image_scores,
        "p_text_scores": text_scores,
        "I": problem.n_images,
        "RUNS": slots.runs,
        "SLOTS": n_slots,
        "CHUNKS": chunks,
        "AVERAGE": average,
        "unit": 2**INDEX_BITS.value,
        "STAGES": tiles.num_stages,
    }  # fmt: skip
    steps.append(Launch.of(copy_tokens_kernel, slots.granules // tiles.granules, known, {}, 4, 2))
    longest = {"L": problem.longest}
    for first in range(0, problem.n_images, step):
        n_images = min(step, problem.n_images - first)
        own = known | {"FIRST": first}
        programs = n_images * chunks * slots.runs
        if tiles.native:
            steps.append(Maxima.of(own, n_images))
        else:
            kernel = resident_maxima_kernel
            steps.append(Launch.of(kernel, programs, own, {}, tiles.num_warps, tiles.num_stages))
        if by_text:
            kernel, block = token_maxima_kernel, {"BLOCK": 8}
            steps.append(Launch.of(kernel, n_images * slots.runs, own | block, {}, 4, 2))
        if by_image:
            kernel, rows = patch_maxima_kernel, 8
            block = {"ROWS": rows, "BLOCK": vector_block(problem.n_patches, 256)}
            programs = n_images * cdiv(problem.n_captions, rows)
            steps.append(Launch.of(kernel, programs, own | block | longest, {}, 4, 2))
    if by_text:
        known |= longest | {"p_image_scores": None, "BLOCK": 256}
        programs = problem.n_images * cdiv(problem.n_captions, 256)
        steps.append(Launch.of(merge_scores_kernel, programs, known, {}, 4, 2))
    return steps


def backward_plan(*args: Any, config: TileConfig | None = None) -> tuple[tuple[Tensor, ...], Steps]:
    """The gradients of ``backward``, not yet computed, and the steps that compute them."""
    grad_image, grad_text, *tensors = args[:7]
    stats, best_token, best_patch, max_tokens, normalize, average, need_images, need_texts, precision = args[7:]
    results = fake_backward(*args)
    grad_images, grad_texts = results
    problem = Problem.of_arguments((*tensors, max_tokens), stats, normalize, precision, config)
    n_images, n_patches, n_tokens = problem.n_images, problem.n_patches, problem.n_tokens
    empty = 0 in (n_images, problem.n_captions, n_tokens)
    if empty or (grad_image is None and grad_text is None) or not (need_images or need_texts):
        for grad in results:
            grad.zero_()
        return results, []
    steps: Steps = problem.counts()
    owners, of_owners = problem.owners()
    steps += of_owners
    images, of_images = problem.valid_images()
    texts, of_texts = problem.valid_texts(owners)
    steps += [*of_images, *of_texts]
    tokens_step, images_step = problem.config.block(n_tokens, n_images, n_patches, images.element_size())
    width = cdiv(images_step * n_patches, GRANULE) * GRANULE
    matrix = problem.new(tokens_step, width, dtype=images.dtype)
    image_product = problem.new(n_images * n_patches, images.shape[1]) if need_images else None
    text_product = problem.new(tokens_step, images.shape[1]) if need_texts else None
    power = problem.new(2) if images.dtype == torch.float16 else None
    if power is not None:
        steps.append(Power(grad_image, grad_text, problem.image_inverse, problem.text_inverse, power))
    known = problem.arguments() | {
        "p_grad_image": grad_image,
        "p_grad_text": grad_text,
        "p_best_token": best_token,
        "p_best_patch": best_patch,
        "p_owners": owners,
        "p_power": power,
        "p_matrix": matrix,
        "stride_w": width,
        "AVERAGE": average,
    }
    for token in range(0, n_tokens, tokens_step):
        some_tokens = slice(token, min(token + tokens_step, n_tokens))
        many = some_tokens.stop - token
        for image in range(0, n_images, images_step):
            some_images = min(images_step, n_images - image)
            some_patches = slice(image * n_patches, (image + some_images) * n_patches)
            steps.append(problem.one_hot(one_hot_kernel, known, some_tokens, image, some_images))
            part = matrix[:many, : some_images * n_patches]
            if text_product is not None:
                steps.append(Product(text_product[:many], part, images[some_patches], add=image > 0))
            if image_product is not None:
                steps.append(Product(image_product[some_patches], part.T, texts[some_tokens], add=token > 0))
        if text_product is not None:
            grad = grad_texts.view(-1, images.shape[1])[some_tokens]
            inverse = problem.text_inverse[some_tokens]
            steps.append(problem.finish(texts[some_tokens], text_product[:many], inverse, power, grad))
    if image_product is not None:
        steps.append(problem.finish(images, image_product, problem.image_inverse, power, grad_images))
    for need, grad in ((need_images, grad_images), (need_texts, grad_texts)):
        assert need or not grad.numel()
    return results, steps


def forward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """image_scores, stats, best_token, best_patch, text_scores; [0] for what is not asked for."""
    with without_autocast(args[0].device.type):  # products of float32 stay such
        return run_plan(forward_plan, args, args[0], config)


def backward(*args: Any, config: TileConfig | None = None) -> tuple[Tensor, ...]:
    """Gradients of image_tokens and text_tokens; [0] for one that is not needed."""
    with without_autocast(args[2].device.type):
        return run_plan(backward_plan, args, args[2], config)

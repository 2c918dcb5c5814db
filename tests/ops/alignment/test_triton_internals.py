"""All paths of the Triton kernels against float64, on shapes that the choice of path would not give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparc_kernels.ops._alignment.config import Config, LibraryConfig, PairConfig, TiledConfig, choose
from sparc_kernels.ops._triton import replay
from sparc_kernels.ops._triton.launch import Launch
from sparc_kernels.ops.fine_grained import triton as fine_grained
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.fine_grained.schema import STATS
from sparc_kernels.ops.grouping import triton as grouping
from sparc_kernels.ops.grouping.reference import (
    alignment_weights_reference,
    grouped_embeddings_reference,
)
from tests.tolerance import FLOOR, errors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILED = TiledConfig(32, 16, 16, pass_l=32, pass_p=32, workspace_bytes=1)  # one pair at a time: they share workspaces
PAIR = PairConfig(32, 64, 16)
APART = PairConfig(32, 64, 16, grads_together=False)
# The loss's three pairs in parts of two and one, forward, and one at a time, backward; blocks of rows do not fill up.
LIBRARY = LibraryConfig(workspace_bytes=24_000)
SCALE = 14.0


def paths(*configs: Config) -> list[Any]:
    """Each with the dtypes that it serves."""
    served = [(config, dtype) for config in configs for dtype in (torch.bfloat16, torch.float16)]
    served.append((LIBRARY, torch.float32))
    return [pytest.param(*each, id=f"{type(each[0]).__name__}-{each[1]}") for each in served]


def tensors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """patches [3, 37, 24] (not contiguous), tokens [3, 21, 24], their masks [3, 21] and [3, 37]; NaN in padding."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(37, 3, 24, generator=generator).transpose(0, 1)
    tokens = torch.randn(3, 21, 24, generator=generator)
    token_mask = torch.rand(3, 21, generator=generator) > 0.3
    patch_mask = torch.rand(3, 37, generator=generator) > 0.3
    token_mask[1] = False
    patches = patches.masked_fill(~patch_mask[..., None], torch.nan)
    tokens = tokens.masked_fill(~token_mask[..., None], torch.nan)
    patches[2] = torch.arange(24) == 5  # flat rows, exactly
    return patches.to(DEVICE, dtype), tokens.to(DEVICE, dtype), token_mask.to(DEVICE), patch_mask.to(DEVICE)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    assert errors(actual, expected).l2 <= FLOOR[dtype]


ONE_SIDE = ((True, False), (False, True))


def sides(dtype: torch.dtype) -> tuple[tuple[bool, bool], ...]:
    """Gradients to ask for alone: which ones are asked for and the dtype have nothing to do with each other."""
    return ONE_SIDE if dtype == torch.float32 else ()


def mean(rows: Tensor, mask: Tensor) -> Tensor:
    return rows.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize(("config", "dtype"), paths(PAIR, APART, TILED))
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_fine_grained_paths(config: Any, dtype: torch.dtype, threshold: float | None) -> None:
    patches, tokens, token_mask, patch_mask = tensors(dtype)
    scale = torch.tensor(SCALE, device=DEVICE)
    sigma = None if threshold is None else torch.tensor(threshold, device=DEVICE)
    weight = torch.rand(21, 3, device=DEVICE).t()
    inputs = (patches, tokens, token_mask, patch_mask, scale, sigma)
    loss, stats, *pooled = fine_grained.forward(*inputs, True, True, "highest", config=config)
    upstream = [torch.randn(3, 24, device=DEVICE).to(dtype) for _ in pooled]
    grads = fine_grained.backward(weight, *upstream, *inputs, stats, True, True, "highest", config=config)

    truth = [tensor.double().requires_grad_() for tensor in (patches, tokens, scale)]
    expected = fine_grained_reference(truth[0], truth[1], token_mask, patch_mask, truth[2], threshold)
    means = [mean(truth[0], patch_mask), mean(truth[1], token_mask)]
    total = (expected * weight).sum() + sum((x * g.double()).sum() for x, g in zip(means, upstream))
    expected_grads = torch.autograd.grad(total, truth)
    close(loss, expected, dtype)
    for found, wanted in zip((*pooled, *grads), (*means, *expected_grads)):
        assert found.dtype == dtype
        close(found, wanted, dtype)
    close((weight * stats[STATS.index("scale_derivative")]).sum(), expected_grads[2], dtype)

    bare = fine_grained.forward(*inputs, False, False, "highest", config=config)
    assert torch.equal(bare[0], loss)
    assert bare[2].numel() == bare[3].numel() == 0
    for needs in sides(dtype):
        some = fine_grained.backward(weight, *upstream, *inputs, stats, *needs, "highest", config=config)
        for found, whole, needed in zip(some, grads, needs):
            assert torch.equal(found, whole) if needed else found.numel() == 0


@pytest.mark.parametrize(("config", "dtype"), paths(PAIR, TILED))
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_grouping_paths(config: Any, dtype: torch.dtype, weights: bool, threshold: float | None) -> None:
    patches, tokens, _, patch_mask = tensors(dtype)
    tokens = tokens.nan_to_num(0.5)
    reference = alignment_weights_reference if weights else grouped_embeddings_reference
    truth = [tensor.double().requires_grad_() for tensor in (patches, tokens)]
    expected = reference(truth[0], truth[1], patch_mask, threshold)
    grad = torch.randn(expected.transpose(1, 2).shape, device=DEVICE).transpose(1, 2).to(dtype)
    sigma = None if threshold is None else torch.tensor(threshold, device=DEVICE)
    inputs = (patches, tokens, patch_mask, sigma)
    out, stats = grouping.forward(*inputs, "highest", weights=weights, config=config)
    grads = grouping.backward(grad, *inputs, stats, True, True, "highest", weights=weights, config=config)
    expected_grads = torch.autograd.grad((expected * grad).sum(), truth)
    close(out, expected, dtype)
    close(grads[0], expected_grads[0], dtype)
    close(grads[1], expected_grads[1], dtype)
    for needs in sides(dtype):
        some = grouping.backward(grad, *inputs, stats, *needs, "highest", weights=weights, config=config)
        for found, whole, needed in zip(some, grads, needs):
            assert torch.equal(found, whole) if needed else found.numel() == 0


def test_choice_of_path() -> None:
    """One program per pair at the paper's shapes; the tiled path for long captions and many patches; in float32 a
    library's products, whatever the shape."""
    for n_patches in (49, 196, 256):
        assert isinstance(choose(55, n_patches, 512, 2, 90), PairConfig)
    for n_tokens, n_patches in ((77, 196), (55, 257)):
        assert type(choose(n_tokens, n_patches, 512, 2, 90)) is TiledConfig
    for n_tokens, n_patches in ((5, 9), (55, 196), (256, 1024)):
        assert isinstance(choose(n_tokens, n_patches, 512, 4, 90), LibraryConfig)


@pytest.mark.parametrize("config", [TiledConfig(workspace_bytes=2**20), LibraryConfig(workspace_bytes=2**20)])
def test_workspaces_do_not_grow_with_the_batch(config: TiledConfig) -> None:
    """What these paths allocate beyond their outputs stays below their budget (or one pair's need)."""
    for n_pairs in (64, 256):
        patches = torch.empty(n_pairs, 300, 64, device="meta")
        tokens = torch.empty(n_pairs, 80, 64, device="meta")
        scale, weight, stats = (torch.empty(s, device="meta") for s in ((), (n_pairs, 80), (7, n_pairs, 80)))
        inputs = (patches, tokens, None, None, scale, None)
        grads, steps = fine_grained.backward_plan(
            weight, None, None, *inputs, stats, True, True, "highest", config=config
        )
        known = {id(t.untyped_storage()) for t in (patches, tokens, scale, weight, stats, *grads)}
        storages = {
            id(t.untyped_storage()): t.untyped_storage().nbytes()
            for step in steps
            for t in (step.arguments if isinstance(step, Launch) else vars(step)).values()
            if isinstance(t, Tensor)
        }
        assert sum(size for key, size in storages.items() if key not in known) <= 2**20


def test_autocast_leaves_products_of_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a plan and from its tape, which holds the library's products too."""
    monkeypatch.setattr(replay, "_tapes", {})
    patches, tokens, _, _ = (x[:1].nan_to_num(0.5) for x in tensors(torch.float32))
    expected = grouped_embeddings_reference(patches, tokens)
    for _ in range(2):
        with torch.autocast(DEVICE, torch.bfloat16):
            found, stats = grouping.embeddings_forward(patches, tokens, None, None, "highest")
            grouping.embeddings_backward(found, patches, tokens, None, None, stats, True, True, "highest")
        close(found, expected, torch.float32)
    assert [type(tape) for tape in replay._tapes.values()] == [replay.Tape] * 2

"""Both paths of the Triton kernels against float64, on shapes that the choice of path would not give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparc_kernels.ops._triton.config import TiledConfig
from sparc_kernels.ops.fine_grained import triton as fine_grained
from sparc_kernels.ops.fine_grained.config import PairConfig
from sparc_kernels.ops.fine_grained.config import choose as choose_pair
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.grouping import triton as grouping
from sparc_kernels.ops.grouping.config import RowConfig
from sparc_kernels.ops.grouping.reference import (
    alignment_weights_reference,
    grouped_embeddings_reference,
)
from tests.tolerance import FLOOR, errors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILED = TiledConfig(32, 16, 16, row_l=32, row_p=32, workspace_bytes=1)  # one pair at a time: they share workspaces
PAIR = PairConfig(32, 64, 16)
ROWS = RowConfig(32, 64, 16)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALE = 14.0


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [PAIR, TILED])
def test_fine_grained_paths(config: Any, dtype: torch.dtype) -> None:
    patches, tokens, token_mask, patch_mask = tensors(dtype)
    scale = torch.tensor(SCALE, device=DEVICE)
    weight = torch.rand(21, 1, device=DEVICE).expand(21, 3).t()
    inputs = (patches, tokens, token_mask, patch_mask, scale)
    loss, stats = fine_grained.forward(*inputs, None, config=config)
    grads = fine_grained.backward(weight, *inputs, stats, None, config=config)

    truth = [tensor.double().requires_grad_() for tensor in (patches, tokens, scale)]
    expected = fine_grained_reference(truth[0], truth[1], token_mask, patch_mask, truth[2], None)
    expected_grads = torch.autograd.grad((expected * weight).sum(), truth)
    close(loss, expected, dtype)
    close(grads[0], expected_grads[0], dtype)
    close(grads[1], expected_grads[1], dtype)
    close(grads[2].sum(), expected_grads[2], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [ROWS, TILED])
@pytest.mark.parametrize("weights", [False, True])
def test_grouping_paths(config: Any, dtype: torch.dtype, weights: bool) -> None:
    patches, tokens, _, patch_mask = tensors(dtype)
    tokens = tokens.nan_to_num(0.5)
    reference = alignment_weights_reference if weights else grouped_embeddings_reference
    truth = [tensor.double().requires_grad_() for tensor in (patches, tokens)]
    expected = reference(truth[0], truth[1], patch_mask, None)
    grad = torch.randn(expected.transpose(1, 2).shape, device=DEVICE).transpose(1, 2).to(dtype)
    out, stats = grouping.forward(patches, tokens, patch_mask, None, weights=weights, config=config)
    grads = grouping.backward(grad, patches, tokens, patch_mask, stats, None, weights=weights, config=config)
    expected_grads = torch.autograd.grad((expected * grad).sum(), truth)
    close(out, expected, dtype)
    close(grads[0], expected_grads[0], dtype)
    close(grads[1], expected_grads[1], dtype)


def test_choice_of_path() -> None:
    """One program per pair at the paper's shapes; the tiled path for long captions, many patches and float32."""
    for n_patches in (49, 196, 256):
        assert choose_pair(55, n_patches, 512, 2, 90) is not None
    assert choose_pair(77, 196, 512, 2, 90) is None
    assert choose_pair(55, 257, 512, 2, 90) is None
    assert choose_pair(55, 196, 512, 4, 90) is None


def test_workspaces_do_not_grow_with_the_batch() -> None:
    """What the tiled path allocates beyond its outputs stays below its budget (or one pair's need)."""
    config = TiledConfig(workspace_bytes=2**20)
    for n_pairs in (64, 256):
        patches = torch.empty(n_pairs, 300, 64, device="meta")
        tokens = torch.empty(n_pairs, 80, 64, device="meta")
        scale, weight, stats = (torch.empty(s, device="meta") for s in ((), (n_pairs, 80), (6, n_pairs, 80)))
        inputs = (patches, tokens, None, None, scale)
        outputs, launches = fine_grained.backward_plan(weight, *inputs, stats, None, config=config)
        known = {id(t.untyped_storage()) for t in (patches, tokens, scale, weight, stats, *outputs)}
        storages = {
            id(t.untyped_storage()): t.untyped_storage().nbytes()
            for launch in launches
            for t in launch.arguments.values()
            if isinstance(t, Tensor)
        }
        assert sum(size for key, size in storages.items() if key not in known) <= 2**20

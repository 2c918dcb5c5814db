"""What the Triton kernels do between tiles: pieces of patches, runs of tokens, blocks of matrices, units of float16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparc_kernels.ops.attention_pooling import triton
from sparc_kernels.ops.attention_pooling.config import OwnProducts, TileConfig, Tiles, pieces
from sparc_kernels.ops.attention_pooling.reference import attention_pooled_reference
from tests.conftest import device_of
from tests.ops.captions.problems import Shape, leaves_of, make
from tests.tolerance import assert_close

# Tiles of 16 tokens and 16 channels, blocks of 16 tokens and an image, passes over 16 patches at a time.
SMALL = TileConfig(Tiles(16, 16, 4, 2), Tiles(16, 16, 4, 2), block_p=16, workspace_bytes=3 * 2 * 16 * 24, programs=4)
LIBRARY = replace(SMALL, library=True, workspace_bytes=20 * 16 * 24)
# A Gram matrix of 100 patches in four blocks.
OWN = replace(SMALL, own=OwnProducts(16, 16, 64, 16), again=True, workspace_bytes=3 * 2 * 32 * 24)

MASKED, PACKED = Shape(3, 20, 3, 18, 24, "masked"), Shape(2, 20, 4, 12, 20, "packed")
Options = tuple[bool, str, float, str, float]
MEAN: Options = (True, "softmax", 4.0, "mean", 5.0)


class Call:
    """The op on a problem, as the launchers take it."""

    def __init__(
        self, shape: Shape, options: Options, dtype: torch.dtype, magnitude: float = 1.0, upstream: float = 1.0
    ):
        self.problem, self.options, self.dtype = make(shape, magnitude), options, dtype
        known = self.problem.masks(device_of("triton"))
        offsets, longest = known.get("cu_seqlens"), known.get("max_seqlen", 0)
        self.scope = (known.get("image_mask"), known.get("text_mask"), offsets, longest)
        self.upstream = (upstream * self.problem.upstream[0]).to(device_of("triton"), torch.float32)

    def found(self, config: TileConfig | None, needed: tuple[bool, bool] = (True, True)) -> tuple[Tensor, ...]:
        """Scores and gradients."""
        tokens = [x.detach() for x in leaves_of(self.problem, self.dtype, device_of("triton"))]
        *masks, longest = self.scope
        scores, *kept = triton.forward(*tokens, *self.scope, *self.options, "highest", config=config)
        rest: tuple[Any, ...] = (*masks, *kept, longest, *self.options, *needed, "highest")
        return (scores, *triton.backward(self.upstream, *tokens, *rest, config=config))

    def expected(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The same as eager PyTorch computes it in a dtype, of the tokens as they are."""
        rounded = [x.detach().to(self.dtype) for x in leaves_of(self.problem, self.dtype, device_of("triton"))]
        leaves = [x.to(dtype).requires_grad_() for x in rounded]
        arguments: tuple[Any, ...] = (*leaves, *self.scope, *self.options)
        scores = attention_pooled_reference(*arguments, compute_dtype=dtype)
        return (scores.detach(), *torch.autograd.grad(scores, leaves, self.upstream.to(scores.dtype)))

    def check(self, config: TileConfig | None) -> None:
        results = self.found(config), self.expected(torch.float64), self.expected(self.dtype)
        for name, one, truth, eager in zip(("scores", "images", "texts"), *results, strict=True):
            assert_close(name, one, truth, eager, self.dtype, 1e-3 * float(truth.abs().max()))


@pytest.mark.parametrize(
    "shape, options, dtype",
    [
        (MASKED, (True, "softmax", 4.0, "logsumexp", 5.0), torch.float16),
        (
            MASKED._replace(images=2, patches=100, captions=2, tokens=6),
            (True, "sigmoid", 4.0, "mean", 5.0),
            torch.float16,
        ),  # three pieces
        (PACKED, (False, "softmax_sink", 0.5, "mean", 5.0), torch.bfloat16),
        (PACKED._replace(layout="whole", tokens=1, captions=20), MEAN, torch.bfloat16),
    ],
    ids=["holes", "pieces", "packed", "one-token"],
)
def test_fused(shape: Shape, options: Options, dtype: torch.dtype) -> None:
    call = Call(shape, options, dtype)
    call.check(SMALL)
    call.check(OWN)


@pytest.mark.parametrize(
    "shape, options, dtype",
    [
        (MASKED, (False, "softmax_sink", 0.5, "logsumexp", 5.0), torch.float32),
        (PACKED, (True, "sigmoid", 4.0, "mean", 5.0), torch.float16),
        (MASKED._replace(tokens=6), (True, "words_softmax", 4.0, "logsumexp", 5.0), torch.float32),
        (PACKED._replace(tokens=6), (False, "words_softmax", 4.0, "mean", 5.0), torch.float16),
    ],
    ids=["holes", "packed", "words", "words-packed"],
)
def test_library(shape: Shape, options: Options, dtype: torch.dtype) -> None:
    Call(shape, options, dtype).check(LIBRARY)


@pytest.mark.parametrize(
    "magnitude, scale, upstream, config",
    [(256.0, 2.0**-14, 2.0**16, SMALL), (2.0**-8, 2.0**18, 2.0**-14, SMALL), (256.0, 2.0**-14, 2.0**16, LIBRARY)],
)
def test_range_of_float16(magnitude: float, scale: float, upstream: float, config: TileConfig) -> None:
    """Products of raw vectors, and gradients, would be infinite or vanish without powers of two in front."""
    Call(PACKED, (False, "softmax", scale, "mean", 5.0), torch.float16, magnitude, upstream).check(config)


@pytest.mark.parametrize("config", [SMALL, LIBRARY, OWN], ids=["fused", "library", "own"])
def test_one_gradient_alone_has_the_same_bits(config: TileConfig) -> None:
    call = Call(PACKED, (False, "softmax", 0.5, "mean", 5.0), torch.float16)
    _, images, texts = call.found(config)
    assert torch.equal(call.found(config, (True, False))[1], images)
    assert torch.equal(call.found(config, (False, True))[2], texts)


def test_pieces() -> None:
    """They hold all patches, in powers of two that a matrix instruction takes, and never more than the next one."""
    assert (pieces(196), pieces(96), pieces(49), pieces(1)) == ((128, 64, 16), (64, 32, 0), (64, 0, 0), (16, 0, 0))
    for n in range(1, 257):
        widths = pieces(n)
        assert n <= sum(widths) <= max(16, 1 << (n - 1).bit_length())
        assert all(x == 0 or (x >= 16 and x & (x - 1) == 0) for x in widths)


def test_small_tiles_are_small() -> None:
    """Several blocks of tokens and of images: else the tests above test less than they say."""
    assert SMALL.block(54, 3, 24, 6) == (16, 1)
    assert LIBRARY.block(54, 3, 24, 20) == (16, 1)
    assert SMALL.images(3, 24 * 24 * 2) == 2

"""What the Triton kernels do between tiles: runs of captions, captions over tiles, chunks of patches, blocks of W."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparc_kernels.ops._triton.launch import Launch
from sparc_kernels.ops.late_interaction import triton
from sparc_kernels.ops.late_interaction.config import TileConfig
from sparc_kernels.ops.late_interaction.reference import late_interaction_reference
from sparc_kernels.ops.late_interaction.schema import none_index
from tests.conftest import device_of
from tests.tolerance import assert_close

# Tiles of 16 patches and 64 tokens in two parts, runs of two captions, W in blocks of 32 tokens and an image.
SMALL = TileConfig(16, 4, 16, parts=2, most_captions=2, enough_programs=0, block_n=16, workspace_bytes=4 * 600)
# Patches that stay, 16 of an image, in slices of 32 channels; tiles of 32 tokens, keys of an image at a time.
RESIDENT = replace(SMALL, granules=2, block_d=32, resident=True)
# The same as the first with a library's products, an image at a time.
LIBRARY = replace(SMALL, library=True, library_bytes=4 * 1500)


@dataclass(frozen=True)
class Case:
    """Channels of -1 and 1, so that cosines are exact in every dtype and many of them tie; who is valid.

    As many as the greatest power of four among ``channels``, elsewhere zeros: norms are powers of two. Of 512 channels
    of -1 and 1 not even float64 has exact cosines, and what ties was told apart by its rounding.
    """

    name: str
    images: int = 2
    patches: int = 20
    captions: int = 3
    tokens: int = 18
    channels: int = 16
    size: float = 1.0  # of channels, a power of two
    upstream: float = 1.0
    image_holes: bool = False  # and an image without a valid patch
    text_holes: bool = False  # and a caption without a valid token
    packed: bool = False  # ends with two tokens of nobody
    normalize: bool = True
    average: bool = True
    wanted: tuple[bool, bool] = (True, True)

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("whole", tokens=37, captions=3),
    Case("holes", image_holes=True, text_holes=True),
    Case("packed", packed=True, captions=4),
    Case("sums", packed=True, image_holes=True, normalize=False, average=False),
    Case("many-patches", patches=260, captions=2, tokens=4, wanted=(False, True)),
    Case("long-captions", patches=5, captions=2, tokens=260, text_holes=True, wanted=(True, False)),
)
# One patch beside 15 rows of none: maxima that are negative.
FEW = Case("few-patches", patches=1, tokens=3, average=False)
SLICED = tuple(replace(case, channels=64) for case in (*CASES[:3], FEW))
HALF = (
    *CASES,
    # in float16, W without a power of two in front would be subnormal or infinite
    Case("long-vectors", size=64.0, upstream=8.0),
    Case("short-vectors", size=2.0**-6, upstream=2.0**14),
)


@dataclass(frozen=True)
class Inputs:
    """Tensors as the op takes them, and the mask of the captions when they are spread out."""

    tensors: tuple[Any, ...]
    flags: tuple[bool, bool]
    wanted: tuple[bool, bool]
    upstream: tuple[Tensor | None, ...]

    def forward(self, config: TileConfig | None = None, tensors: tuple[Any, ...] = ()) -> tuple[Tensor, ...]:
        return triton.forward(*(tensors or self.tensors), *self.flags, *self.wanted, True, "highest", config=config)

    def backward(self, results: tuple[Tensor, ...], config: TileConfig | None = None) -> tuple[Tensor, ...]:
        *tensors, longest = self.tensors
        rest = (longest, *self.flags, True, True, "highest")
        return triton.backward(*self.upstream, *tensors, *results[1:4], *rest, config=config)

    def reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Scores and gradients as eager PyTorch computes them in a dtype."""
        *tensors, longest = self.tensors
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in tensors[:2]]
        arguments: tuple[Any, ...] = (*leaves, *tensors[2:], longest, *self.flags, *self.wanted)
        scores = late_interaction_reference(*arguments, compute_dtype=dtype)
        pairs = [(x, g) for x, g in zip(scores, self.upstream) if x is not None and g is not None]
        grads = torch.autograd.grad([x for x, _ in pairs], leaves, [g.to(x.dtype) for x, g in pairs])
        return named(scores, grads)


def named(scores: Any, grads: Any) -> dict[str, Tensor]:
    found = zip(("image_scores", "text_scores", "grad_image_tokens", "grad_text_tokens"), (*scores, *grads))
    return {name: x.detach() for name, x in found if x is not None}


def make(case: Case, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(len(case.name))
    device = device_of("triton")

    def signs(*shape: int) -> Tensor:
        found = case.size * (2.0 * torch.randint(0, 2, shape, generator=generator) - 1.0)
        n, own = shape[-1], 4 ** ((shape[-1].bit_length() - 1) // 2)
        if own < n:
            found *= torch.rand(shape, generator=generator).argsort(-1) < own
        return found.to(device, dtype)

    def mask(n: int, size: int, nobody: int) -> Tensor:
        found = torch.rand(n, size, generator=generator) < 0.6
        found[nobody] = False
        return found.to(device)

    image_mask = mask(case.images, case.patches, 0) if case.image_holes else None
    text_mask = mask(case.captions, case.tokens, 1) if case.text_holes else None
    d = case.channels
    images, texts, offsets = signs(case.images, case.patches, d), signs(case.captions, case.tokens, d), None
    if case.packed:
        lengths = torch.tensor([case.tokens, 0, *torch.arange(case.captions - 2) + 1])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
        texts = signs(int(lengths.sum()) + 2, d)
        texts[-2:] = torch.nan
    for x, valid in ((images, image_mask), (texts, text_mask)):
        if valid is not None:
            x[~valid] = torch.nan
    random = (case.upstream * torch.randn(case.images, case.captions, generator=generator) for _ in range(2))
    upstream = (x.to(device) if wanted else None for x, wanted in zip(random, case.wanted))
    tensors = (images, texts, image_mask, text_mask, offsets, case.tokens if case.packed else 0)
    return Inputs(tensors, (case.normalize, case.average), case.wanted, tuple(upstream))


def expected_indices(x: Inputs) -> tuple[Tensor, Tensor]:
    """Lowest indices of the maxima of exact similarities, -1 for none: [I, J, P] and [I, J, L] or packed [I, N]."""
    images, texts, image_mask, text_mask, offsets, longest = x.tensors
    if offsets is not None:
        place = torch.arange(longest, device=texts.device)
        text_mask = place < offsets.diff()[:, None]
        texts = texts[torch.where(text_mask, offsets[:-1, None] + place, 0)]
    ones = (torch.ones(t.shape[:2], dtype=torch.bool, device=t.device) for t in (images, texts))
    m_p, m_l = (one if m is None else m for one, m in zip(ones, (image_mask, text_mask)))
    products = torch.einsum("ipd,jld->ijpl", images.double().nan_to_num(), texts.double().nan_to_num())
    products = products.masked_fill(~(m_p[:, None, :, None] & m_l[None, :, None, :]), -torch.inf)
    best = []
    for dim in (3, 2):
        top = products.amax(dim, keepdim=True)
        n = products.shape[dim]
        order = torch.arange(n, device=images.device).view(n, *(1,) * (3 - dim))
        index = torch.where(products == top, order, n).amin(dim)
        best.append(torch.where(top.squeeze(dim) > -torch.inf, index, -1))
    if offsets is not None:
        packed = torch.full((len(images), x.tensors[1].shape[0]), -1, device=images.device)
        for j, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist())):
            packed[:, start:end] = best[1][:, j, : end - start]
        best[1] = packed
    return best[0], best[1]


def check(x: Inputs, dtype: torch.dtype, config: TileConfig | None) -> None:
    results = x.forward(config)
    for wanted, indices, expected in zip(x.wanted, results[2:4], expected_indices(x)):
        if wanted:
            assert torch.equal(torch.where(indices == none_index(indices.dtype), -1, indices.long()), expected)
        else:
            assert indices.numel() == 0
    truth, eager = x.reference(torch.float64), x.reference(dtype)
    scores = (s if w else None for s, w in zip((results[0], results[4]), x.wanted))
    for name, found in named(scores, x.backward(results, config)).items():
        assert_close(name, found, truth[name], eager[name], dtype)


@pytest.mark.parametrize(
    "case, dtype, config",
    [
        *(pytest.param(case, torch.float16, SMALL, id=f"{case}-fused") for case in HALF),
        *(pytest.param(case, torch.float16, RESIDENT, id=f"{case}-resident") for case in SLICED),
        *(pytest.param(case, torch.float32, LIBRARY, id=f"{case}-library") for case in CASES[1:4]),
        pytest.param(CASES[1], torch.bfloat16, SMALL, id="bfloat16"),
    ],
)
def test_between_tiles(case: Case, dtype: torch.dtype, config: TileConfig) -> None:
    check(make(case, dtype), dtype, config)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_direction_of_resident_patches(wanted: tuple[bool, bool]) -> None:
    check(make(replace(SLICED[1], wanted=wanted), torch.float16), torch.float16, RESIDENT)


@pytest.mark.parametrize(
    ("sizes", "dtype", "normalize", "stays"),
    [
        ((196, 77, 256), torch.bfloat16, True, True),
        ((300, 32, 200), torch.float16, True, True),
        ((196, 257, 256), torch.bfloat16, True, False),  # ranks of tokens have 8 bits
        ((196, 77, 1024), torch.bfloat16, True, False),
        ((196, 77, 100), torch.bfloat16, True, False),  # rows of 200 bytes
        ((196, 77, 256), torch.bfloat16, False, False),
        ((196, 77, 256), torch.float32, True, False),
    ],
)
def test_where_patches_stay(sizes: tuple[int, int, int], dtype: torch.dtype, normalize: bool, stays: bool) -> None:
    patches, tokens, channels = sizes
    tensors = (torch.empty(2, n, channels, dtype=dtype, device="meta") for n in (patches, tokens))
    _, steps = triton.forward_plan(*tensors, None, None, None, 0, normalize, True, True, True, True, "highest")
    assert ("resident_maxima_kernel" in [x.kernel.__name__ for x in steps if isinstance(x, Launch)]) == stays


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_chosen_tiles(dtype: torch.dtype) -> None:
    """From a tape, as ``recorded_at_once`` has it."""
    check(make(Case("chosen", patches=9, tokens=5, text_holes=True), dtype), dtype, None)


def test_exact_keys() -> None:
    """Values that differ in the last bit are told apart where they are no cosines of half precision."""
    x = make(Case("close", images=1, patches=3, captions=1, tokens=1, normalize=False), torch.float32)
    x.tensors[0][0, :, 0] = torch.tensor([1.0, 1.0 + 2.0**-23, 1.0])
    x.tensors[1].zero_()[0, 0, 0] = 1.0
    assert x.forward(SMALL)[3].item() == 1


@pytest.mark.parametrize(
    "dtype, config",
    [(torch.bfloat16, SMALL), (torch.float16, RESIDENT), (torch.float32, SMALL)],
    ids=("bfloat16", "resident", "float32"),
)
def test_nan_stays_where_it_belongs(dtype: torch.dtype, config: TileConfig) -> None:
    x = make(Case("nan", channels=64 if config.resident else 16), dtype)
    images, texts, *rest = x.tensors
    spoiled = images.clone(), texts.clone(), *rest
    spoiled[0][1, 17, 3] = spoiled[1][2, 16, 0] = torch.nan
    before, after = x.forward(config), x.forward(config, spoiled)
    for one, other in ((before[0], after[0]), (before[4], after[4])):
        one[1] = one[:, 2] = torch.nan
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)
    assert after[3][1, 0].tolist() == [17] * 18
    assert after[2][0, 2].tolist() == [16] * 20


def test_small_tiles_are_small() -> None:
    """Several runs, tiles, chunks and blocks: else the tests above test less than they say."""
    assert SMALL.captions(2, 3) == 2
    assert SMALL.cut(20, 16) == SMALL
    assert SMALL.block(54, 2, 20, 4) == (32, 1)
    assert LIBRARY.library_bytes // (4 * 54) < 2 * 20
    assert RESIDENT.cut(20, 64) == RESIDENT
    assert RESIDENT.workspace_bytes // 4 < 2 * 3 * 48 * 2 + 2 * 3 * 20  # keys of two images

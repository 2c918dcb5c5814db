"""Keys of maxima by products of warpgroups (csrc/late_interaction), in the emulator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from sparc_kernels.ops.late_interaction.config import TileConfig, choose_native
from sparc_kernels.ops.late_interaction.native import Maxima
from tests.emulation.host import build
from tests.emulation.host.backend import _packed
from tests.emulation.host.run import server

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

GRANULE, RANKS, SHRINK = 16, 256, 0.984375
UNWRITTEN = -1


@dataclass(frozen=True)
class Case:
    """``runs``: granules of the captions of each run."""

    channels: int
    patches: int
    columns: int
    runs: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...] | None = None  # valid patches of an image
    dtype: torch.dtype = torch.bfloat16
    images: int = 2
    by_text: bool = True
    by_image: bool = True

    def __str__(self) -> str:
        return f"{self.channels}x{self.patches}"


# Eight warps share a run's granules: three of each in the first runs, where one caption has nine, others begin or end
# in the middle of a warp's or have none.
RAGGED = (1, 3, 9, 1, 0, 2, 4)
CASES = (
    Case(64, 97, 104, (RAGGED, (1, 1), (0, 0, 16)), images=1),
    Case(440, 196, 200, ((5, 5, 5, 5), (3,)), dtype=torch.float16, images=1),  # three stages of tokens
    Case(384, 150, 200, ((2, 1),), dtype=torch.float16, images=1),  # four
    Case(256, 256, 256, ((16, 7),), images=1),
    Case(512, 200, 104, ((2, 3),), counts=(200, 0, 30), images=3),
    Case(328, 128, 128, ((1, 2),), dtype=torch.float16, images=1, by_image=False),
)


@dataclass(frozen=True)
class Batch:
    """Channels are -1 and 1 and inverse norms powers of two, so that keys are exact, and many of them tie."""

    given: dict[str, Any]
    codes: Tensor


def make(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(case.channels + case.patches)
    draw = lambda *sizes: torch.randint(0, 2, sizes, generator=generator).mul_(2).sub_(1)  # noqa: E731
    power = lambda *sizes: torch.exp2(-5.0 - torch.randint(0, 3, sizes, generator=generator))  # noqa: E731
    most = max(map(sum, case.runs)) + 1  # a granule beyond the longest run
    codes, captions = torch.full((2, len(case.runs) * most), -1, dtype=torch.int32)
    caption = 0
    for run, lengths in enumerate(case.runs):
        granule = run * most
        for length in lengths:
            for rank in range(length):
                codes[granule + rank], captions[granule + rank] = 2 * rank + (rank == length - 1), caption
            granule, caption = granule + length, caption + 1
    held = -(-case.patches // case.columns) * case.columns if case.counts else case.patches
    images, slotted = draw(case.images, held, case.channels), draw(len(codes) * GRANULE, case.channels)
    # Equal tokens and equal patches, the first of which wins; a token that is like none of the patches.
    common = draw(case.channels)
    images = torch.where(torch.rand(images.shape, generator=generator) < 0.25, -common, common)
    slotted[1:4], images[:, 2:5], slotted[5] = slotted[:1], images[:, 1:2], -common
    image_inverse, slot_inverse = power(case.images * case.patches), power(len(codes) * GRANULE)
    patch_slots = torch.stack([torch.randperm(case.patches, generator=generator).int() for _ in range(case.images)])
    patch_slots = torch.nn.functional.pad(patch_slots, (0, held - case.patches))
    slotted = slotted.to(case.dtype)
    slotted.view(-1, GRANULE, case.channels)[codes < 0] = torch.nan  # nobody's
    tokens = torch.full((case.images, -(-case.patches // case.columns), len(codes) * GRANULE), UNWRITTEN)
    given = {
        "images": images.to(case.dtype),
        "slotted": slotted,
        "image_inverse": image_inverse,
        "patch_slots": patch_slots if case.counts else None,
        "patch_counts": torch.tensor(case.counts, dtype=torch.int32) if case.counts else None,
        "slot_inverse": slot_inverse,
        "captions": captions,
        "codes": codes,
        "run_lengths": torch.tensor([sum(run) for run in case.runs], dtype=torch.int32),
        "token_keys": tokens.int() if case.by_text else None,
        "patch_keys": torch.full((case.images, caption, case.patches), UNWRITTEN).int() if case.by_image else None,
        "columns": case.columns,
        "first_image": 0,
        "n_images": case.images,
        "n_captions": caption,
    }
    return Batch(given, codes)


def values_of(given: dict[str, Any]) -> Tensor:
    """[images, slots, patch slots] float32, as in keys."""
    inverse = given["image_inverse"].view(given["n_images"], -1)
    if given["patch_slots"] is not None:
        inverse = inverse.gather(1, given["patch_slots"].long())
    products = torch.einsum("ipd,sd->isp", given["images"].double(), given["slotted"].double())
    return (products * inverse[:, None].double() * SHRINK * given["slot_inverse"][:, None].double() + 3.0).float()


def expected(case: Case, batch: Batch) -> tuple[Tensor, Tensor]:
    """Keys by the definition, where somebody writes them; in 64 bits."""
    steps = (values_of(batch.given).view(torch.int32).long() << 8) & 0xFFFFFFFF
    owners, codes = batch.given["captions"], batch.codes
    chunks = -(-case.patches // case.columns)
    tokens = torch.full((case.images, chunks, steps.shape[1]), UNWRITTEN).long()
    patches = torch.full((case.images, batch.given["n_captions"], case.patches), UNWRITTEN).long()
    taken = (codes >= 0).repeat_interleave(GRANULE)
    rank = (codes.long() >> 1).repeat_interleave(GRANULE) * GRANULE + torch.arange(len(taken)) % GRANULE
    for image, valid in enumerate(case.counts or (case.patches,) * case.images):
        for chunk in range(chunks):
            first, end = chunk * case.columns, min(valid, (chunk + 1) * case.columns)
            if first < end:
                keys = steps[image, :, first:end] + (case.columns - 1 - torch.arange(end - first))
                tokens[image, chunk] = torch.where(taken, keys.amax(1), UNWRITTEN)
        for caption in owners[owners >= 0].unique():
            own = (owners == caption).repeat_interleave(GRANULE)
            keys = steps[image, own, :valid] + (RANKS - 1 - rank[own])[:, None]
            patches[image, caption, :valid] = keys.amax(0)
    return tokens, patches


def _unsigned(name: str, x: Any) -> Any:
    return x.to(torch.uint32) if name.endswith("_keys") and x is not None else x


def found(case: Case, batch: Batch, seed: int = 0) -> tuple[Tensor | None, Tensor | None]:
    """Keys that the kernel has written."""
    source = Path(__file__).with_name("emulated.cpp")
    given = {name: _packed(_unsigned(name, x)) for name, x in batch.given.items()}
    made = server(source).call("resident_maxima", given=given, bfloat16=case.dtype == torch.bfloat16, seed=seed)
    keys = zip(("token_keys", "patch_keys"), made.unwrap())
    one, other = (None if x is None else torch.from_numpy(x).view(batch.given[name].shape) for name, x in keys)
    return one, other


@pytest.mark.parametrize("case", CASES, ids=str)
def test_keys_are_those_of_the_definition(case: Case) -> None:
    batch = make(case)
    for keys, exact in zip(found(case, batch), expected(case, batch)):
        if keys is not None:
            assert torch.equal(keys.long() & 0xFFFFFFFF, exact & 0xFFFFFFFF)


def test_a_column_without_a_patch_is_never_the_best() -> None:
    """It has the chunk's first patch once more: equal cosines, only negative ones, a NaN, one patch of many columns."""
    case = Case(64, 208, 104, ((1, 2),), counts=(105, 97, 105, 105, 1), images=5)
    batch = make(case)
    images, slotted = batch.given["images"], batch.given["slotted"]
    images[0] = images[0, :1]
    images[1] = slotted[0]
    slotted[: 3 * GRANULE] = -slotted[0]
    images[2, 104] = torch.nan
    images[3, 0] = torch.nan
    for keys, exact in zip(found(case, batch), expected(case, batch)):
        assert keys is not None
        assert torch.equal(keys.long() & 0xFFFFFFFF, exact & 0xFFFFFFFF)


def test_keys_do_not_depend_on_the_order_of_threads() -> None:
    """And a product that is not finite is above all."""
    case = Case(64, 97, 104, (RAGGED,), images=1)
    batch = make(case)
    batch.given["images"][0, 7, 3] = torch.nan
    first, again = (found(case, batch, seed) for seed in (1, 2))
    for one, other in zip(first, again):
        assert one is not None
        assert other is not None
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    tokens, patches = first
    assert tokens is not None
    assert patches is not None
    taken = (batch.codes >= 0).repeat_interleave(GRANULE)
    assert ((tokens.long()[0, 0, taken] & 0xFFFFFFFF) >> 31).all()
    ended = torch.tensor(RAGGED) > 0
    assert ((patches.long()[0, ended] & 0xFFFFFFFF) >> 31).sum(0).bool().nonzero().flatten().tolist() == [7]


@pytest.fixture
def played_step() -> Iterator[list[int]]:
    """The step in the emulator where there is no GPU, as if the kernel were there, beside Triton's steps in its
    interpreter; how many images each call is for. On a GPU the step is run there."""
    pytest.importorskip("triton")
    from sparc_kernels.ops.late_interaction import native

    ran: list[int] = []
    on_a_gpu = native.run_maxima

    def run_maxima(**arguments: Any) -> None:
        ran.append(arguments["n_images"])
        if arguments["images"].is_cuda:
            on_a_gpu(**arguments)
            return
        given = {name: _packed(_unsigned(name, x)) for name, x in arguments.items()}
        source = Path(__file__).with_name("emulated.cpp")
        made = server(source).call("resident_maxima", given=given, bfloat16=True, seed=0).unwrap()
        for name, keys in zip(("token_keys", "patch_keys"), made):
            arguments[name].view(-1).copy_(torch.from_numpy(keys.view("int32")))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(native, "run_maxima", run_maxima))
        if not torch.cuda.is_available():
            stack.enter_context(mock.patch.object(native, "missing", return_value=None))
        yield ran


@pytest.fixture
def no_tapes() -> Iterator[None]:
    """None from before, and none of a played kernel after."""
    from sparc_kernels.ops._triton import replay

    with mock.patch.object(replay, "_tapes", {}):
        yield


def test_the_plan_with_it(played_step: list[int]) -> None:
    """Scores, indices and gradients of a case with masks."""
    from sparc_kernels.ops.late_interaction import native
    from tests.ops.late_interaction import test_triton

    config = TileConfig(104, 2, resident=True, native=True, most_captions=2, enough_programs=0, block_n=16)
    x = test_triton.make(test_triton.Case("native", channels=64, image_holes=True, text_holes=True), torch.bfloat16)
    if (reason := native.refusal(x.tensors[0], 20, 104)) is not None:
        pytest.skip(reason)
    test_triton.check(x, torch.bfloat16, config)
    assert played_step == [2]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("patches", "channels", "dtype", "image_holes"),
    [
        (196, 256, torch.bfloat16, False),
        (196, 512, torch.bfloat16, False),
        (256, 256, torch.float16, True),
        (257, 64, torch.bfloat16, True),
    ],
)
def test_the_plan_with_it_at_size(
    patches: int, channels: int, dtype: torch.dtype, image_holes: bool, played_step: list[int]
) -> None:
    from sparc_kernels.ops.late_interaction import native
    from tests.ops.late_interaction import test_triton

    config = choose_native(patches, channels)
    assert config is not None
    case = test_triton.Case("sized", 3, patches, 300, 77, channels, image_holes=image_holes, text_holes=True)
    x = test_triton.make(case, dtype)
    if (reason := native.refusal(x.tensors[0], patches, config.block_p)) is not None:
        pytest.skip(reason)
    test_triton.check(x, dtype, config)
    assert played_step == [3]


def test_a_tape_with_it(played_step: list[int], no_tapes: None) -> None:
    """Taken unasked, and run from the tape of the first call on tensors of the second."""
    from sparc_kernels.ops._triton import replay
    from sparc_kernels.ops.late_interaction import native
    from tests.ops.late_interaction import test_triton

    cases = (test_triton.Case(name, patches=65, channels=64, tokens=9, image_holes=True) for name in ("one", "other"))
    first, second = (test_triton.make(case, torch.bfloat16) for case in cases)
    if (reason := native.missing(first.tensors[0])) is not None:
        pytest.skip(reason)
    test_triton.check(first, torch.bfloat16, None)
    made = [tape for tape in replay._tapes.values() if isinstance(tape, replay.Tape)]
    assert [step.make for step in made[0].steps if isinstance(step, replay._FrozenStep)] == [Maxima]
    test_triton.check(second, torch.bfloat16, None)
    assert played_step == [2, 2]
    assert len(made) == len(replay._tapes) == 2  # forward and backward


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [104, 128, 200, 256])
def test_a_product_is_the_same_in_every_column(columns: int) -> None:
    """Of an image that is one patch many times over, the first column is every token's best one; so it is where columns
    without a patch have the first one's."""
    from sparc_kernels.ops.late_interaction import native

    case = Case(256, columns + 1, columns, ((1, 3, 9),))
    batch = make(case)
    given = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in batch.given.items()}
    if (reason := native.missing(given["images"])) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    for name in ("images", "slotted"):
        given[name] = torch.randn(given[name].shape, device="cuda").to(case.dtype)
    given["images"] = given["images"][:, :1].expand_as(given["images"]).contiguous()
    given["image_inverse"].fill_(1 / 17)
    given["slot_inverse"].fill_(1 / 17)
    native.run_maxima(**given)
    taken = (batch.codes >= 0).repeat_interleave(GRANULE).cuda()
    assert (given["token_keys"][..., taken] & 0xFF == columns - 1).all()


@pytest.mark.gpu
def test_it_in_a_graph(played_step: list[int]) -> None:
    """A graph finds what is in its inputs when it runs; Triton's kernel finds the same, bit for bit."""
    from sparc_kernels.ops.late_interaction import native
    from sparc_kernels.ops.late_interaction.config import choose_resident
    from tests.ops.late_interaction import test_triton

    cases = (test_triton.Case(name, 3, 196, 40, 77, 256, text_holes=True) for name in ("graph", "others"))
    x, others = (test_triton.make(case, torch.bfloat16) for case in cases)
    if (reason := native.missing(x.tensors[0])) is not None:
        pytest.skip(reason)
    x.forward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = x.forward()
    assert played_step == [3, 3]
    for mine, other in zip(x.tensors[:4], others.tensors[:4]):
        if mine is not None:
            mine.copy_(other)
    graph.replay()
    for mine, other in zip(found, others.forward(choose_resident(256))):
        assert torch.equal(mine, other)

"""Cases of ranks: what the losses exchange, multiply and keep is counted, and held against the scale model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import sparc_kernels as sk
from benchmarks.measure.peers import part_of
from benchmarks.scale_model import traffic, work
from benchmarks.scale_model.modes import GATHER, OPEN_CLIP, RING, Mode
from benchmarks.scale_model.problem import BACKWARD, FORWARD, PHASES, SIGMOID, SOFTMAX, Problem
from benchmarks.scale_model.traffic import ALL_GATHER, ALL_TO_ALL, REDUCE_SCATTER, SEND
from sparc_kernels.functional import _streamed
from tests.distributed.world import Cases, Here

CASES = Cases()
SIZE, WIDTH = 64, 256
UNEVEN = (5, 9, 3, 7)
LOSSES = ((SOFTMAX, "float32"), (SOFTMAX, "float64"), (SOFTMAX, "bfloat16"), (SIGMOID, "float32"), (SIGMOID, "float64"))
Loss = Callable[[], Tensor]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


class Counted(TorchDispatchMode):
    """Every collective that reaches PyTorch's dispatcher: the pass, its kind, and the bytes that leave this rank.

    They are taken from arguments and results: what has come beside the rank's own, or what others have got of it.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.phase = ranks, FORWARD
        self.found: list[tuple[str, str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name.startswith(("_c10d_functional::", "c10d::")):
            self._count(name.partition("::")[2], args, result)
        return result

    def _count(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "all_gather_into_tensor":
            found = ALL_GATHER, _bytes(result) - _bytes(args[0])
        elif name == "reduce_scatter_tensor":
            found = REDUCE_SCATTER, _bytes(args[0]) - _bytes(result)
        elif name == "all_to_all_single":
            row = _bytes(args[0]) // args[0].shape[0]
            found = ALL_TO_ALL, row * (sum(args[2]) - args[2][dist.get_rank()])
        elif name == "allgather_":
            found = ALL_GATHER, sum(map(_bytes, args[0][0])) - _bytes(args[1][0])
        elif name == "scatter_" and args[3] == dist.get_rank():
            # Gloo has no reduce-scatter of lists: PyTorch then scatters from every rank in turn, and sums.
            found = REDUCE_SCATTER, sum(map(_bytes, args[1][0])) - _bytes(args[0][0])
        elif name in ("scatter_", "wait_tensor"):
            return
        else:
            raise AssertionError(f"a collective that nobody counts: {name}")
        self.found.append((self.phase, *found))


@contextlib.contextmanager
def streamed() -> Iterator[None]:
    """No matrix is kept, as on a GPU."""
    usual, _streamed.KEEP_BYTES = _streamed.KEEP_BYTES, 0
    try:
        yield
    finally:
        _streamed.KEEP_BYTES = usual


@contextlib.contextmanager
def sends_counted(counter: Counted) -> Iterator[dict[str, int]]:
    """Bytes sent to a neighbour in each pass, by their tensors: the dispatcher does not look into the ops that send."""
    found, real = dict.fromkeys(PHASES, 0), dist.batch_isend_irecv

    def counting(operations: list[dist.P2POp]) -> Any:
        found[counter.phase] += sum(_bytes(each.tensor) for each in operations if each.op is dist.isend)
        return real(operations)

    with mock.patch.object(dist, "batch_isend_irecv", counting):
        yield found


class Counts(NamedTuple):
    exchanges: list[tuple[str, str, int]]
    sends: dict[str, int]
    flop: dict[str, int]
    kept: int
    """Bytes between the passes."""


def counted(loss: Loss, ranks: int) -> Counts:
    flop, kept = {}, {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with streamed(), Counted(ranks) as counter, sends_counted(counter) as sends:
        with FlopCounterMode(display=False) as products, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            value = loss()
        flop[FORWARD] = products.get_total_flops()
        counter.phase = BACKWARD
        with FlopCounterMode(display=False) as products:
            value.backward()
        flop[BACKWARD] = products.get_total_flops()
    return Counts(counter.found, sends, flop, sum(kept.values()))


def embeddings(size: int, dtype: str) -> tuple[Tensor, Tensor]:
    kind = getattr(torch, dtype)
    images, texts = (torch.randn(size, WIDTH).to(kind).requires_grad_() for _ in range(2))
    return images, texts


def of_ours(loss: str, dtype: str, size: int, here: Here, exchange: str = "gather") -> Loss:
    images, texts = embeddings(size, dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32
    scale, bias = (torch.tensor(value, dtype=wide, requires_grad=True) for value in (10.0, -5.0))
    options: dict[str, Any] = {"logit_scale": scale, "group": here.group, "backend": "cpu", "exchange": exchange}
    if loss == SOFTMAX:
        return lambda: sk.contrastive_loss(images, texts, **options)
    return lambda: sk.sigmoid_loss(images, texts, logit_bias=bias, **options)


def of_open_clip(mode: Mode, here: Here) -> Loss:
    module: Any = part_of("open_clip", "loss")
    flags = {"local_loss": "local" in mode.name, "gather_with_grad": "with gradient" in mode.name}
    loss = module.ClipLoss(**flags, rank=here.rank, world_size=here.size)
    images, texts = (F.normalize(x.detach(), dim=-1).requires_grad_() for x in embeddings(SIZE, "float32"))
    scale = torch.tensor(10.0, requires_grad=True)
    return lambda: loss(images, texts, scale)


def problem_of(here: Here, loss: str = SOFTMAX, dtype: str = "float32", local: int = SIZE) -> Problem:
    return Problem(local * here.size, WIDTH, here.size, dtype, loss)


def exchanges_of(exchanges: list[traffic.Exchange], problem: Problem) -> list[tuple[str, str, int]]:
    """The collectives as they are counted; their order is that of the calls."""
    return [(x.phase, x.collective, x.sent(problem.ranks)) for x in exchanges if x.collective != SEND]


def sends_of(exchanges: list[traffic.Exchange], problem: Problem) -> dict[str, int]:
    sends = [each for each in exchanges if each.collective == SEND]
    return {phase: sum(each.sent(problem.ranks) for each in sends if each.phase == phase) for phase in PHASES}


def flop_of(mode: Mode, problem: Problem) -> dict[str, float]:
    flop = {phase: each.flop for phase, each in mode.work(problem).items()}
    if mode in (GATHER, RING):  # the cosines of the positives, row by row, and their two gradients
        for phase, products in zip(PHASES, (1, 2)):
            flop[phase] += 2 * products * problem.local * problem.width
    return flop


# If one of these fails, ``group=`` exchanges, multiplies or keeps something else now: see benchmarks/scale_model.


def _as_modelled(mode: Mode, kept: Callable[[Problem], int], loss: str, dtype: str, here: Here) -> None:
    problem, counts = problem_of(here, loss, dtype), counted(of_ours(loss, dtype, SIZE, here, mode.name), here.size)
    assert counts.exchanges == exchanges_of(mode.exchanges(problem), problem)
    assert counts.sends == sends_of(mode.exchanges(problem), problem)
    assert counts.flop == flop_of(mode, problem)
    own = 2 * problem.local * problem.width * problem.itemsize
    expected = own + kept(problem)
    assert abs(counts.kept - expected) < 0.01 * expected, (counts.kept, expected)


for _loss, _dtype in LOSSES:
    CASES.add(f"{_loss} {_dtype}")(partial(_as_modelled, GATHER, work.gather_kept, _loss, _dtype))


@CASES.add("ring")
def ring(here: Here) -> None:
    for loss, dtype in ((SOFTMAX, "bfloat16"), (SOFTMAX, "float64"), (SIGMOID, "float32")):
        _as_modelled(RING, work.ring_kept, loss, dtype, here)


@CASES.add("uneven batches travel as the largest")
def uneven(here: Here) -> None:
    counts = counted(of_ours(SOFTMAX, "float32", UNEVEN[here.rank], here), here.size)
    problem = problem_of(here, local=max(UNEVEN[: here.size]))
    assert counts.exchanges == exchanges_of(traffic.gather(problem), problem)


def _open_clip(mode: Mode, here: Here) -> None:
    problem, counts = problem_of(here), counted(of_open_clip(mode, here), here.size)
    assert counts.exchanges == exchanges_of(mode.exchanges(problem), problem)
    assert counts.flop == flop_of(mode, problem)


if part_of("open_clip", "loss") is not None:
    for _mode in OPEN_CLIP:
        CASES.add(_mode.name)(partial(_open_clip, _mode))


# A model that is wrong is seen to be.


def _wrong_models(problem: Problem) -> Iterator[list[traffic.Exchange]]:
    right, ranks = traffic.gather(problem), problem.ranks
    yield [dataclasses.replace(each, each=2 * each.each) for each in right]
    yield [dataclasses.replace(each, each=each.each * ranks // (ranks - 1)) for each in right]  # W for W - 1
    narrow = {REDUCE_SCATTER: 2}  # float32 gradients that travel rounded
    yield [dataclasses.replace(each, each=each.each // narrow.get(each.collective, 1)) for each in right]
    yield right[1:]
    yield right[::-1]
    yield [*right, right[-1]]


@CASES.add("wrong models are seen")
def faults(here: Here) -> None:
    problem = problem_of(here)
    counts = counted(of_ours(SOFTMAX, "float32", SIZE, here), here.size)
    assert counts.exchanges == exchanges_of(traffic.gather(problem), problem)
    for wrong in _wrong_models(problem):
        assert counts.exchanges != exchanges_of(wrong, problem)
    usual = work.GATHER_PRODUCTS[SOFTMAX]
    assert counts.flop == flop_of(GATHER, problem)
    for products in (work.ONE_SWEEP, {FORWARD: 2, BACKWARD: 3}):
        work.GATHER_PRODUCTS[SOFTMAX] = products
        assert counts.flop != flop_of(GATHER, problem)
    work.GATHER_PRODUCTS[SOFTMAX] = usual

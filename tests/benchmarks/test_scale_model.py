"""The scale model: its bytes and products against those of real runs with gloo, and the page against the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks.scale_model import page, traffic
from benchmarks.scale_model.command import main
from benchmarks.scale_model.modes import GATHER, MODES, OPEN_CLIP_BOTH, RING, SCATTERED, SWAPPED, Mode
from benchmarks.scale_model.problem import FORWARD, SIGMOID, SOFTMAX, Problem
from benchmarks.scale_model.rates import H200, HELD, LOGARITHMIC, ONE_LINK, RAILS
from benchmarks.scale_model.times import step
from sparc_kernels.distributed import collectives
from tests.distributed import world

CASES_OF_RANKS = "tests.benchmarks.exchanges"
COMMAND = "python -m benchmarks.scale_model --write"


@pytest.fixture(scope="module", params=(2, 4), ids="{}-ranks".format)
def found(request: pytest.FixtureRequest) -> dict[str, str]:
    return world.run(request.param, CASES_OF_RANKS)


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo"
)
@pytest.mark.parametrize("name", world.cases_of(CASES_OF_RANKS))
def test_real_runs_exchange_and_multiply_what_the_model_says(name: str, found: dict[str, str]) -> None:
    assert not found[name], found[name]


@pytest.mark.parametrize("loss", (SOFTMAX, SIGMOID))
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32", "float64"))
def test_formulas_say_what_is_counted(mode: Mode, loss: str, dtype: str) -> None:
    p = Problem(96, 40, 4, dtype, loss)
    letters = {"b": p.local, "D": p.width, "i": p.itemsize, "w": p.wide}
    for each in mode.exchanges(p):
        assert eval(each.formula, {}, letters) == each.each, each.what


# Times and memory


@pytest.mark.parametrize("loss", HELD)
def test_one_rank_takes_what_was_measured(loss: str) -> None:
    """The larger batch gave the rates; the smaller one was measured beside it."""
    for measured in HELD[loss]:
        found = step(GATHER, Problem(measured.batch, measured.width, 1, loss=loss), H200, RAILS)
        assert found.waiting == 0
        assert 1e3 * found.computing == pytest.approx(measured.both, rel=0.05)


def test_ring_waits_for_what_products_do_not_hide() -> None:
    for batch in (4096, 65536, 1048576):
        p = Problem(batch, 768, 64)
        found = step(RING, p, H200, RAILS)
        faster = step(RING, p, dataclasses.replace(H200, rates={"bfloat16": _times(1e6)}, copy=1e9), RAILS)
        assert faster.waiting + faster.hidden == pytest.approx(found.waiting + found.hidden)
        assert faster.hidden <= found.hidden <= found.computing
        assert faster.waiting >= found.waiting > 0  # the gradients of the last hop home are never hidden
    assert found.hidden > 0.9 * (found.hidden + found.waiting)


def _times(factor: float) -> Any:
    rates = H200.rates["bfloat16"]
    faster = {loss: factor * rate for loss, rate in rates.sweep.items()}
    return dataclasses.replace(rates, sweep=faster, gradients=faster)


def test_memory_of_the_ring_does_not_grow_with_the_ranks() -> None:
    for loss in (SOFTMAX, SIGMOID):
        assert len({RING.memory(Problem(4096 * ranks, 768, ranks, loss=loss)) for ranks in (8, 512, 4096)}) == 1
    by_ranks = [GATHER.memory(Problem(4096 * ranks, 768, ranks)) for ranks in (16, 128, 1024)]
    # from 16 ranks on the block of the gradient operand is as large as it gets
    assert by_ranks[2] - by_ranks[1] > 7 * (by_ranks[1] - by_ranks[0])


def test_links_that_are_faster_or_more_cost_less() -> None:
    p = Problem(65536, 768, 64)
    for mode in (GATHER, RING, OPEN_CLIP_BOTH):
        waiting = step(mode, p, H200, RAILS).waiting
        assert step(mode, p, H200, dataclasses.replace(RAILS, nic=2 * RAILS.nic, nvlink=1e3)).waiting < waiting
    assert step(GATHER, p, H200, LOGARITHMIC).waiting < step(GATHER, p, H200, RAILS).waiting
    assert step(GATHER, p, H200, ONE_LINK).waiting > step(GATHER, p, H200, RAILS).waiting
    # One link crosses two nodes whichever they have; what is gathered are a few numbers.
    waiting = step(RING, p, H200, RAILS).waiting
    assert step(RING, p, H200, ONE_LINK).waiting == pytest.approx(waiting, rel=1e-2)


def test_the_design_s_example() -> None:
    """Megabytes per rank at 65,536 x 768, bfloat16, 8 ranks, as reckoned by hand before any of this was written."""
    p = Problem(65536, 768, 8)
    by_what = {(each.what, each.phase): each.sent(8) / 1e6 for each in GATHER.exchanges(p)}
    assert by_what["texts", FORWARD] == pytest.approx(88, abs=0.5)
    assert sum(mb for (what, _), mb in by_what.items() if what == "gradients of texts") == pytest.approx(88, abs=0.5)
    assert SCATTERED.sent(p) - GATHER.sent(p) == pytest.approx(88e6, abs=5e5)
    assert OPEN_CLIP_BOTH.sent(p) / 1e6 == pytest.approx(352, abs=1)
    assert RING.sent(p) / 1e6 == pytest.approx(88 + 88 + 201, rel=0.01)
    assert GATHER.flop(p) / 1e12 == pytest.approx(3.3, abs=0.01)


# The page and the command


def test_the_page_says_what_the_model_gives() -> None:
    text = page.DOCUMENT.read_text()
    assert text == page.with_section(text, page.section()), COMMAND


def test_what_the_page_advises_holds() -> None:
    """What its paragraph says without a figure."""

    def ratio(mode: Mode, problem: Problem) -> float:
        return step(mode, problem, H200, RAILS).total / step(GATHER, problem, H200, RAILS).total

    for clip in (Problem(32768, 768, 8), Problem(163840, 1280, 8)):
        inside, rings = (step(mode, clip, H200, RAILS) for mode in (GATHER, RING))
        assert rings.waiting < 0.25 * inside.waiting
    thin = Problem(32768, 768, 512)
    assert ratio(OPEN_CLIP_BOTH, thin) < 1 < ratio(OPEN_CLIP_BOTH, Problem(32768, 768, 64))
    # gradients of half precision: which exchange, from how many ranks on
    assert traffic.MOST_SWAPPED == collectives.MOST_SWAPPED
    for ranks, faster, slower in ((8, SWAPPED, SCATTERED), (16, SCATTERED, SWAPPED), (512, SCATTERED, SWAPPED)):
        for batch in (32768, 163840):
            assert ratio(faster, Problem(batch, 768, ranks)) < ratio(slower, Problem(batch, 768, ranks)), ranks
    free = dataclasses.replace(RAILS, nvlink=1e9, nic=1e9)  # nothing but latency
    assert step(GATHER, thin, H200, free).waiting > 0.75 * step(GATHER, thin, H200, RAILS).waiting
    assert step(GATHER, thin, H200, LOGARITHMIC).waiting < 0.6 * step(GATHER, thin, H200, RAILS).waiting


def test_the_command_takes_another_problem(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--batch", "4096", "--ranks", "16", "--loss", "sigmoid", "--dtype", "float32"]
    main([*arguments, "--node", "4", "--nics", "2", "--nic", "12.5", "--nvlink", "100", "--memory", "0.001"])
    slow = capsys.readouterr().out
    assert "W = 16, b = 256" in slow
    assert "nodes of 4, 100 GB/s within, 2 x 12.5 GB/s between them" in slow
    assert "does not fit" in slow
    assert "open_clip" not in slow
    main([*arguments, "--sweep", "100", "--gradients", "100", "--matrix", "100", "--copy", "1000"])
    fast = capsys.readouterr().out
    assert "does not fit" not in fast
    assert fast != slow


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--batch", "100", "--ranks", "8"], "batch must be a multiple of the 8 ranks, got 100"),
        (["--batch", "0", "--ranks", "8"], "batch must be at least 1, got 0"),
        (["--batch", "64", "--ranks", "0"], "ranks must be at least 1, got 0"),
        (["--batch", "64", "--nic", "0"], "argument --nic: must be positive and finite, got 0"),
        (["--batch", "64", "--node", "0"], "argument --node: must be positive and finite, got 0"),
        (["--batch", "64", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_the_command_refuses_in_words(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err

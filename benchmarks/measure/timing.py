"""Timing side by side: what disturbs the machine disturbs every contender alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.measure.machine import synchronize

WARM_GPU_CALLS = 6  # after the first; what replays launches does so from the fourth call of a kind on
LONG = 2.0  # seconds of a call that nobody makes just to warm up
GPU_SAMPLE = 2e-3  # seconds of back-to-back calls between two events, so that the queue is full
Function = Callable[[], object]


def one_call(function: Function, device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - begin


def gpu_sample(function: Function, calls: int) -> float:
    """Seconds per call between two events around ``calls`` calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def interleaved(
    functions: Mapping[str, Function], device: torch.device, seconds: float = 8.0, least: int = 5, most: int = 60
) -> dict[str, list[float]]:
    """Seconds of every call of every function, called in turn.

    Rounds start with another function each time, until ``seconds`` have passed or ``most`` rounds were run. Everything
    is called a few times before (once, where that takes ``LONG``), which warms up and says how many calls a sample
    needs: on a GPU so often that what is compiled, recorded or cached in the first calls of a kind is.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    calls = {}
    for name, function in functions.items():
        once = one_call(function, device)
        for _ in range(WARM_GPU_CALLS if device.type == "cuda" else 1):
            if once < LONG:
                once = one_call(function, device)
        calls[name] = min(50, max(1, math.ceil(GPU_SAMPLE / once)))
    start = time.perf_counter()
    for done in range(most if names else 0):
        if done >= least and time.perf_counter() - start > seconds:
            break
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            if device.type == "cuda":
                times[name].append(gpu_sample(functions[name], calls[name]))
            else:
                times[name].append(one_call(functions[name], device))
    return times


def graph_times(one_pass: Function, calls: int, samples: int = 15) -> list[float]:
    """Seconds per call of a CUDA graph of ``one_pass`` (which makes ``calls`` calls): the device's own time.

    What remains is what the kernels take; the time of ``interleaved`` includes what Python and the launches take where
    the kernels are shorter than that.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        one_pass()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one_pass()
    graph.replay()
    once = one_call(graph.replay, torch.device("cuda"))
    repeats = min(50, max(1, math.ceil(GPU_SAMPLE / once)))
    return [gpu_sample(graph.replay, repeats) / calls for _ in range(samples)]


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median, 20th and 80th percentile, minimum."""
    ordered = sorted(1e3 * value for value in seconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    values = {"p20": at(0.2), "p50": statistics.median(ordered), "p80": at(0.8), "min": ordered[0]}
    return {name: round(value, 5) for name, value in values.items()}


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the rounds of (time of ``over``) / (time of ``under``), each pair taken from one round."""
    return statistics.median(a / b for a, b in zip(times[over], times[under]))


def fitted_exponent(sizes: Sequence[float], values: Sequence[float], least: int = 3) -> float | None:
    """The exponent of the power law through the upper half of the points (at least ``least`` of them).

    Small sizes are left out: there the fixed cost of a call hides what grows.
    """
    points = sorted((math.log(size), math.log(value)) for size, value in zip(sizes, values) if value > 0)
    points = points[-max(least, (len(points) + 1) // 2) :]
    if len(points) < least:
        return None
    mean_x, mean_y = (statistics.fmean(axis) for axis in zip(*points))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread

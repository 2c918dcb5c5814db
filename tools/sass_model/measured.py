"""What GPUs have taken where the model says something: ratios and times out of benchmarks/results, to be held against
predictions. Nothing here goes into a prediction but ``model.RATE``."""

from __future__ import annotations

from tools.sass_model.launches import Shape

PAPER, SMALL, LARGE = Shape(55, 196, 512), Shape(55, 49, 512), Shape(55, 576, 512)

# Time of Triton's kernels over that of CUDA C++, forward and backward, by (architecture, op, dtype, shape), and its
# file. bfloat16 in CUDA graphs; float32 ("highest") from Python. Side by side in one run, but those by warpgroups: at
# SMALL Triton's time is of an earlier run (402.5 us, warpgroups.txt). A library that both files have, c057a27, took
# 420.5 us there and 421.5 and 418.5 here.
RATIOS: dict[tuple[str, str, str, Shape], tuple[float, str]] = {
    ("sm_90", "fine_grained", "bfloat16", PAPER): ((223.0 + 492.5) / (166.6 + 499.9), "nvidia-h100/warpgroups.txt"),
    ("sm_90", "fine_grained", "bfloat16", SMALL): (402.5 / 310.1, "nvidia-h100/warpgroups_two_blocks.txt"),
    ("sm_90", "fine_grained", "bfloat16", LARGE): (1.294 / 2.837, "nvidia-h100/rows.json"),
    ("sm_90", "fine_grained", "float32", PAPER): (4.603 / 12.571, "nvidia-h100/fp32_pairs.txt"),
    ("sm_90", "grouping", "bfloat16", PAPER): (0.6149 / 1.025, "nvidia-h100/rows.json"),
    ("sm_90", "grouping", "float32", PAPER): (3.435 / 8.705, "nvidia-h100/fp32_pairs.txt"),
}

# Milliseconds of 1,024 pairs in bfloat16, H100, CUDA graphs: forward, and both (nvidia-h100/warpgroups.txt; at SMALL
# warpgroups_two_blocks.txt; benchmarks.txt for grouping; what is there of PAPER by warpgroups are two kernels of two
# runs). The CUDA C++ kernels of grouping were timed together only since they changed.
PASSES = {
    ("fine_grained", "pair", PAPER): (0.2950, 1.4117),
    ("fine_grained", "warpgroups", PAPER): (0.1666, 0.1666 + 0.4999),
    ("fine_grained", "warpgroups", SMALL): (0.0828, 0.3101),
    ("fine_grained", "triton", PAPER): (0.2230, 0.7219),
    ("grouping", "triton", PAPER): (0.1892, 0.6134),
}


def cycles(op: str, path: str, shape: Shape, backward: bool, clock: float, multiprocessors: int) -> float:
    """Of a pair and multiprocessor, at that clock in GHz."""
    forward, both = PASSES[op, path, shape]
    return (both - forward if backward else forward) * 1e6 * clock * multiprocessors / 1024

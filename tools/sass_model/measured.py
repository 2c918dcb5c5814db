"""What GPUs have taken where the model says something: ratios and times out of benchmarks/results, to be held against
predictions. Nothing here goes into a prediction but ``model.RATE``."""

from __future__ import annotations

from tools.sass_model.launches import Shape

PAPER, SMALL, LARGE = Shape(55, 196, 512), Shape(55, 49, 512), Shape(55, 576, 512)

# Time of Triton's kernels over that of CUDA C++, forward and backward, by (architecture, op, dtype, shape), and its
# file. bfloat16 in CUDA graphs; float32 ("highest") from Python. Side by side in one run.
RATIOS: dict[tuple[str, str, str, Shape], tuple[float, str]] = {
    ("sm_90", "fine_grained", "bfloat16", PAPER): (724.3 / 687.0, "nvidia-h100/warpgroups_code.txt"),
    ("sm_90", "fine_grained", "bfloat16", SMALL): (0.4224 / 0.3278, "nvidia-h100/rows.json"),
    ("sm_90", "fine_grained", "bfloat16", LARGE): (1.294 / 2.837, "nvidia-h100/rows.json"),
    ("sm_90", "fine_grained", "float32", PAPER): (4.603 / 12.571, "nvidia-h100/fp32_pairs.txt"),
    ("sm_90", "grouping", "bfloat16", PAPER): (0.6158 / 0.5507, "nvidia-h100/rows.json"),
    ("sm_90", "grouping", "float32", PAPER): (3.435 / 8.705, "nvidia-h100/fp32_pairs.txt"),
}

# Milliseconds of 1,024 pairs in bfloat16, H100, CUDA graphs: forward, and both (nvidia-h100/warpgroups_code.txt; what
# is "pair" warpgroups.txt; of grouping each pass by itself, grouping_warpgroups.txt).
PASSES = {
    ("fine_grained", "pair", PAPER): (0.2950, 1.4117),
    ("fine_grained", "warpgroups", PAPER): (0.1672, 0.6870),
    ("fine_grained", "warpgroups", SMALL): (0.0872, 0.3097),
    ("fine_grained", "triton", PAPER): (0.2210, 0.7243),
    ("grouping", "warpgroups", PAPER): (0.1577, 0.1577 + 0.3689),
    ("grouping", "triton", PAPER): (0.1887, 0.1887 + 0.4269),
}


def cycles(op: str, path: str, shape: Shape, backward: bool, clock: float, multiprocessors: int) -> float:
    """Of a pair and multiprocessor, at that clock in GHz."""
    forward, both = PASSES[op, path, shape]
    return (both - forward if backward else forward) * 1e6 * clock * multiprocessors / 1024

"""What GPUs have taken where the model says something: ratios and times out of benchmarks/results, to be held against
predictions. Of it only FACTORS goes into one, the calibrated forecast of what ``auto`` takes (``model.RATE`` is from
Nsight Compute)."""

from __future__ import annotations

from tools.sass_model.launches import Shape

# One of each kind of ops/_alignment/choice.py in half precision.
SHAPES = SMALL, MIDDLE, PAPER, WHOLE, LARGE = tuple(Shape(55, patches, 512) for patches in (49, 128, 196, 256, 576))

# Time of Triton's kernels over that of CUDA C++, forward and backward, by (architecture, op, dtype, shape), and its
# file. bfloat16 in CUDA graphs; float32 ("highest") from Python. Side by side in one run.
RATIOS: dict[tuple[str, str, str, Shape], tuple[float, str]] = {
    ("sm_90", "fine_grained", "bfloat16", PAPER): (724.3 / 687.0, "nvidia-h100/warpgroups_code.txt"),
    ("sm_90", "fine_grained", "bfloat16", SMALL): (0.4224 / 0.3278, "nvidia-h100/rows.json"),
    ("sm_90", "fine_grained", "bfloat16", WHOLE): (0.8358 / 0.7970, "nvidia-h100/rows.json"),
    ("sm_90", "fine_grained", "bfloat16", LARGE): (1.294 / 2.837, "nvidia-h100/rows.json"),
    ("sm_90", "fine_grained", "float32", PAPER): (4.603 / 12.571, "nvidia-h100/fp32_pairs.txt"),
    ("sm_90", "grouping", "bfloat16", PAPER): (0.6158 / 0.5507, "nvidia-h100/rows.json"),
    ("sm_90", "grouping", "float32", PAPER): (3.435 / 8.705, "nvidia-h100/fp32_pairs.txt"),
}

# Milliseconds of 1,024 pairs in bfloat16, H100, CUDA graphs: forward, and both (nvidia-h100/warpgroups_code.txt;
# "pair", and Triton at 49 patches, warpgroups.txt, run 4; of grouping each pass by itself, grouping_warpgroups.txt).
PASSES = {
    ("fine_grained", "pair", PAPER): (0.2950, 1.4117),
    ("fine_grained", "warpgroups", PAPER): (0.1672, 0.6870),
    ("fine_grained", "warpgroups", SMALL): (0.0872, 0.3097),
    ("fine_grained", "triton", PAPER): (0.2210, 0.7243),
    ("fine_grained", "triton", SMALL): (0.1392, 0.4025),
    ("grouping", "pair", PAPER): (0.2248, 0.2248 + 0.7800),
    ("grouping", "pair", SMALL): (0.1255, 0.1255 + 0.2704),
    ("grouping", "warpgroups", SMALL): (0.0735, 0.0735 + 0.1484),
    ("grouping", "warpgroups", PAPER): (0.1577, 0.1577 + 0.3689),
    ("grouping", "triton", PAPER): (0.1887, 0.1887 + 0.4269),
}


def cycles(op: str, path: str, shape: Shape, backward: bool, clock: float, multiprocessors: int) -> float:
    """Of a pair and multiprocessor, at that clock in GHz."""
    forward, both = PASSES[op, path, shape]
    return (both - forward if backward else forward) * 1e6 * clock * multiprocessors / 1024


# What the instructions of a kernel took on an H100 over their forecast, forward and backward, by op, path and the most
# patches of the kernels' instance or tile: of PASSES, or as named. Kept as numbers, since they are of the code of then.
FACTORS: dict[tuple[str, str, int], tuple[float, float]] = {
    # the instance of 64 patches was timed for grouping alone since it has become shorter: taken for both
    ("fine_grained", "pair", 64): (0.93, 0.90),
    ("fine_grained", "pair", 256): (0.95, 1.47),
    ("fine_grained", "warpgroups", 64): (0.94, 1.07),
    ("fine_grained", "warpgroups", 256): (0.70, 0.77),
    ("fine_grained", "triton", 64): (0.96, 0.99),
    ("fine_grained", "triton", 256): (0.82, 1.02),
    # both passes together; rows.json, 256 pairs. Much of Triton's is forecast to be held up by L2, so that what is left
    # has the more to explain.
    ("fine_grained", "tiled, bf16", 576): (1.67, 1.67),
    ("fine_grained", "triton", 576): (1.89, 1.89),
    # fp32_pairs.txt, "highest"
    ("fine_grained", "tiled, float32", 256): (0.86, 0.87),
    ("fine_grained", "library", 256): (0.94, 0.95),
    ("grouping", "pair", 64): (0.93, 0.90),
    ("grouping", "pair", 256): (1.07, 1.48),
    ("grouping", "warpgroups", 64): (1.41, 1.50),
    ("grouping", "warpgroups", 256): (0.88, 0.90),
    ("grouping", "triton", 64): (1.06, 1.11),  # of 256
    ("grouping", "triton", 256): (1.06, 1.11),
    ("grouping", "tiled, bf16", 576): (1.67, 1.67),  # of fine_grained
    ("grouping", "triton", 576): (1.89, 1.89),  # of fine_grained
    ("grouping", "tiled, float32", 256): (0.92, 0.86),
    ("grouping", "library", 256): (1.15, 0.98),
}
# At 256 patches some chips have no room for the pair path's backward pass.
FACTORS |= {(op, "tiled, bf16", 256): FACTORS[op, "tiled, bf16", 576] for op in ("fine_grained", "grouping")}

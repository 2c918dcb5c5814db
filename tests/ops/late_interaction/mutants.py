"""Faults planted in the CUDA kernel that finds late interaction's maxima: tests/emulation/mutants.py."""

from __future__ import annotations

from tests.emulation.mutants import Mutant

FILE = "late_interaction/late_interaction_maxima.cuh"
MUTANTS = (
    Mutant(
        "what warps before have of a caption is forgotten",
        FILE,
        "if (first >= granules() || begins(of_warp)) continue;",
        "continue;",
        "definition",
    ),
    Mutant(
        "a caption longer than a warp's granules loses its beginning",
        FILE,
        "while (!begins(before) && first_end(before) < 0);",
        "while (false);",
        "definition",
    ),
    Mutant("patches are counted from one", FILE, "(kN - 1 - 8 * j - i)", "(kN - 8 * j - i)", "definition"),
    Mutant("columns without a patch take part", FILE, ": kNoPatch;", ": 0.0f;", "definition"),
    Mutant(
        "a warp gets its neighbour's granule",
        "late_interaction/late_interaction_tokens.cuh",
        "const int own = granule + warp * turns;",
        "const int own = granule + warp * turns + 1;",
        "definition",
    ),
    Mutant(
        "a slice is copied over one that is being multiplied",
        FILE,
        "for (int slice = 0; slice < layout.stages - 2; ++slice) tokens.load(!later);",
        "for (int slice = 0; slice < layout.stages - 1; ++slice) tokens.load(!later);",
        "definition",
    ),
    Mutant("a caption goes on in the next one", FILE, "open.clear(ended);", "", "definition"),
)

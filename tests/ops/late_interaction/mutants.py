"""Faults planted in the CUDA kernel that finds late interaction's maxima: tests/emulation/mutants.py."""

from __future__ import annotations

from tests.emulation.mutants import Mutant

FILE = "late_interaction/late_interaction_maxima.cuh"
TOKENS = "late_interaction/late_interaction_tokens.cuh"
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
    Mutant("patches are counted from one", FILE, "(kN - 1 - 2 * quad", "(kN - 2 * quad", "definition"),
    Mutant("odd columns are not later ones", FILE, "best[1][r] - 1)", "best[1][r])", "definition"),
    Mutant(
        "columns without a patch get the second one",
        FILE,
        "(column < place.patches ? column : 0)",
        "(column < place.patches ? column : 1)",
        "without_a_patch",
    ),
    Mutant("the second row's rank is the first one's", FILE, "(r == 0 ? ranks : behind)", "ranks", "definition"),
    Mutant(
        "a warp gets its neighbour's granule",
        TOKENS,
        "? warp * bytes : 0",
        "? (warp + 1) * bytes : 0",
        "definition",
    ),
    Mutant(
        "a panel is copied over one that is being multiplied",
        FILE,
        "ahead < layout.stages - 2; ++ahead) tokens.load();",
        "ahead < layout.stages - 1; ++ahead) tokens.load();",
        "definition",
    ),
    Mutant("the last of three stages is not waited for", TOKENS, "if (layout.stages < 4)", "if (false)", "definition"),
    Mutant("the last two of four stages are not waited for", TOKENS, "(layout.stages < 6)", "(false)", "definition"),
    Mutant("warps of a group do not wait for each other", FILE, "device::warpgroup_barrier();", "", "definition"),
    Mutant("nobody has the first turn", FILE, "if (group == 1) device::give_turn(0);", "", "definition"),
    Mutant("a caption goes on in the next one", FILE, "if (ended) open.clear();", "", "definition"),
)

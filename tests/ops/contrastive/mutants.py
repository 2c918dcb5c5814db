"""Faults planted in the CUDA kernel of the sigmoid's sweep: tests/emulation/mutants.py."""

from __future__ import annotations

from tests.emulation.mutants import Mutant

FILE, ROWS = "contrastive/contrastive_sweep.cuh", "contrastive/contrastive_rows.cuh"
END = "contrastive/contrastive_softplus.cuh"
MUTANTS = (
    Mutant(
        "the diagonal is off by one",
        FILE,
        "return row + in.diagonal - first_col();",
        "return row + in.diagonal - first_col() + 1;",
        "float64",
    ),
    Mutant("a tile at the diagonal's corner counts as whole", FILE, "(own + 16 <= 0)", "(own + 15 <= 0)", "float64"),
    Mutant(
        "too few stages",
        ROWS,
        "kStages = 4;\n  static constexpr int kAhead = kStages - 2;",
        "kStages = 2;\n  static constexpr int kAhead = 2;",
        "float64",
    ),
    Mutant("a stage is filled anew while it is multiplied", FILE, "device::warpgroup_wait<1>();", "", "float64"),
    Mutant(
        "the other warpgroup's second panel is not waited for",
        FILE,
        "    device::warpgroup_wait<0>();\n    device::copy_async_wait<0>();",
        "    device::warpgroup_wait<0>();",
        "float64",
    ),
    Mutant(
        "its stage is given before this one's products are done",
        FILE,
        """    device::warpgroup_wait<0>();
    device::copy_async_wait<0>();
    device::async_proxy_fence();
    device::give_turn(turn(1 - group, 1));
""",
        """    device::copy_async_wait<0>();
    device::async_proxy_fence();
    device::give_turn(turn(1 - group, 1));
    device::warpgroup_wait<0>();
""",
        "float64",
    ),
    Mutant("warps of a group do not wait for each other", FILE, "      device::warpgroup_barrier();\n", "", "float64"),
    Mutant("sums of the wrong run of rows", ROWS, "first = block / in.chunks", "first = (in.runs - 1)", "float64"),
    Mutant(
        "rows of the next run are summed too",
        ROWS,
        "first + (left < run_rows ? left : run_rows)",
        "first + (left < run_rows + 1 ? left : run_rows + 1)",
        "float64",
    ),
    Mutant("columns are in the order of their places", END, "(place >> 1 & 3) * 8", "(place >> 1 & 3) * 2", "float64"),
    Mutant(
        "a product that has left float32 is kept", FILE, "device::ballot(!sums.within()) != 0;", "false;", "float64"
    ),
    Mutant(
        "small numbers are lost in the product",
        END,
        "(sums.product[r], grown, w)",
        "(sums.product[r], grown, grown - 1.0f)",
        "float64",
    ),
    Mutant("float16's power of two is left out", END, "* rows.weight[r] * rows.power;", "* rows.weight[r];", "float64"),
)

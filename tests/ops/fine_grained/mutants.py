"""Faults planted in the CUDA kernels that the fine-grained loss runs: tests/emulation/mutants.py."""

from __future__ import annotations

from tests.emulation.mutants import Mutant

MUTANTS = (
    Mutant(
        "no barrier before a chunk is used",
        "pairs/pair_stream.cuh",
        "if (ahead || c > 0) device::block_barrier();",
        "",
        "ragged",
    ),
    Mutant(
        "one copy too few is waited for",
        "pairs/pair_stream.cuh",
        "if (streaming.stages == 3) {",
        "if (streaming.stages > 0) {",
        "every_way",
    ),
    Mutant(
        "operand B is not transposed",
        "pairs/pair_tile.cuh",
        "Products::load_b_transposed(image, step * 16, turn_column(turn))",
        "Products::load_b(image, step * 16, turn_column(turn))",
        "ragged",
    ),
    Mutant(
        "tokens that are multiplied with themselves are not transposed",
        "common/products.cuh",
        "return {{a.r[0], a.r[2], a.r[1], a.r[3]}};",
        "return {{a.r[0], a.r[1], a.r[2], a.r[3]}};",
        "ragged",
    ),
    Mutant(
        "rows behind the last one keep what stood there",
        "pairs/pair_stream.cuh",
        "device::copy_async(target, from.data, 0);",
        "",
        "ragged",
    ),
    Mutant(
        "X is written while dZ is read",
        "fine_grained/fine_grained_pair_backward.cuh",
        "device::block_barrier();  // dZ has been read: X takes its place",
        "",
        "b-16 and not vit",
    ),
    Mutant(
        "the norm of a token has no gradient",
        "fine_grained/fine_grained_pair_backward.cuh",
        "* grad.x_unit - grad.beta[half] * token.value(e / 4, e % 4))",
        "* grad.x_unit)",
        "ragged",
    ),
    Mutant(
        "dZ is read before it is there",
        "fine_grained/fine_grained_pair_backward.cuh",
        "device::block_barrier();  // dZ is there",
        "",
        "ragged",
    ),
    Mutant(
        "a stage is filled while products read it",
        "pairs/panel_stream.cuh",
        "      compute(c, stage);\n      device::warpgroup_wait<0>();\n",
        "      compute(c, stage);\n",
        "warpgroups and ragged",
    ),
    Mutant(
        "Q is that of the other warpgroup's channels",
        "fine_grained/fine_grained_warpgroup_backward.cuh",
        "this->column_warp == 0 ? accumulators(w)[i]",
        "this->column_warp != 0 ? accumulators(w)[i]",
        "warpgroups and ragged",
    ),
    Mutant(
        "the second turn of patches begins where the first did",
        "fine_grained/fine_grained_warpgroup_backward.cuh",
        "return kInTurns ? (turn * kColumnWarps + this->column_warp) * 64 : 0;",
        "return kInTurns ? this->column_warp * 64 : 0;",
        "warpgroups and vit",
    ),
    Mutant(
        "a mean counts every row",
        "pairs/rows.cuh",
        "      if (!is_valid(mask, item, row)) continue;",
        "",
        "means",
    ),
    Mutant(
        "patches get no share of their mean's gradient",
        "pairs/pair_pass.cuh",
        "sum[half][e] = c[i][half][e] * last + share[e % 2];",
        "sum[half][e] = c[i][half][e] * last;",
        "means",
    ),
    Mutant(
        "blocks share one place for the groups",
        "fine_grained/fine_grained_pair_backward.cuh",
        "work.text : device::block_index();",
        "work.text : 0;",
        "asked_for",
    ),
    Mutant(
        "ties at the minimum do not share",
        "alignment/pair_alignment.cuh",
        "total[0] / device::max(ties[0], 1.0f)",
        "total[0]",
        "ties",
    ),
    Mutant(
        "the minimum gets no gradient",
        "alignment/tiled_alignment.cuh",
        "(s[i] == row.low ? share : 0.0f)",
        "0.0f",
        "ragged",
    ),
    Mutant(
        "no barrier after a product",
        "common/tiled_product.cuh",
        "  device::block_barrier();\n}\n\n}  // namespace sparc",
        "}\n\n}  // namespace sparc",
        "ragged",
    ),
)

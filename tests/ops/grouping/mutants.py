"""Faults planted in the CUDA kernels that grouping runs: tests/emulation/mutants.py."""

from __future__ import annotations

from tests.emulation.mutants import Mutant

MUTANTS = (
    Mutant(
        "more stages than chunks to fill them: the next pair's first chunk is copied by nobody",
        "pairs/panel_stream.cuh",
        "return kUnderWay > 0 ? streaming.stages : at_most(streaming.stages, chunks + 1);",
        "return streaming.stages;",
        "warpgroups and ragged",
    ),
    Mutant(
        "every pair counts the stages from the first one",
        "grouping/grouping_warpgroup_kernel.cuh",
        "return work.buffer != 0;",
        "return false;",
        "number_of_stages",
    ),
    Mutant(
        "a stage is filled while its chunk is read",
        "pairs/panel_stream.cuh",
        "place(visits.earlier(stage, 1 + kUnderWay))",
        "place(visits.earlier(stage, kUnderWay))",
        "number_of_stages",
    ),
    Mutant(
        "the weights' stream counts its stages as one that turns round",
        "grouping/grouping_warpgroup_kernel.cuh",
        "Stream::there(streaming, kGoesOn && mirrored(),",
        "Stream::there(streaming, mirrored(),",
        "number_of_stages",
    ),
    Mutant(
        "dA is that of the tokens",
        "grouping/grouping_warpgroup_kernel.cuh",
        "this->add_products(grad, shared.second_tile(stage)",
        "this->add_products(grad, shared.text_tile(stage)",
        "warpgroups and ragged",
    ),
    Mutant(
        "the text's gradient stays in the unit of X",
        "grouping/grouping_warpgroup_kernel.cuh",
        "this->store_rows(args.grad_tokens, sums, unit,",
        "this->store_rows(args.grad_tokens, sums, {1.0f, 1.0f},",
        "f16 and warpgroups and ragged",
    ),
)

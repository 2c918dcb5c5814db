"""The CUDA kernels, emulated on the host: the same cases and the same tolerances as every other backend.

What this shows: indices, bounds, barriers, asynchronous copies, fragment layouts and the algebra, in every dtype and on
both paths. What it cannot show: the rounding of the real matrix units' partial sums, and any speed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparc_kernels.ops.fine_grained.schema import STATS
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference
from tests import cases, tolerance
from tests.emulation import build, ops
from tests.emulation.ops import RTX_BLOCK, VARIANTS, Variant
from tests.emulation.run import Job

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

# The emulator takes seconds for these in one variant.
LARGE = {
    "b-16": VARIANTS[:2],
    "uneven": (VARIANTS[0], VARIANTS[2], VARIANTS[5]),
    "b-32": (VARIANTS[0], VARIANTS[3], VARIANTS[4]),
    "vit-b-16": VARIANTS[:2],
    "clip-text": (VARIANTS[0], VARIANTS[2], VARIANTS[4]),
    "long-caption": (VARIANTS[1], VARIANTS[3]),
    "high-resolution": (VARIANTS[2],),
    "wide": (VARIANTS[0], VARIANTS[5]),
}
DEFINITIONS = {"embeddings": grouped_embeddings_reference, "weights": alignment_weights_reference}


def variants_of(case: cases.Case) -> list[Variant]:
    return [variant for variant in LARGE.get(case.name, VARIANTS) if variant.serves(case)]


def check_fine_grained(name: str, exact: cases.Inputs, dtype: torch.dtype, found: dict[str, Tensor]) -> None:
    truth, eager = cases.reference(exact), cases.reference(exact.to(dtype), compute_dtype=dtype)
    derivative = found["stats"][STATS.index("scale_derivative")]
    found = {**found, "grad_logit_scale": (derivative * exact.upstream).sum()}
    for (field, expected), (_, low) in zip(truth.named(), eager.named()):
        tolerance.assert_close(f"{name} {field}", found[field], expected, low, dtype, cases.least_of(field, exact))
    for mask, fields in (
        (exact.token_mask, ("token_loss", "grad_token_embeds")),
        (exact.patch_mask, ("grad_patch_embeds",)),
    ):
        for field in fields if mask is not None else ():
            assert (found[field][~mask] == 0).all(), f"{name} {field}: masked rows get exact zeros"


@pytest.mark.parametrize("case", (*cases.CASES, *cases.LARGE), ids=str)
def test_fine_grained(case: cases.Case) -> None:
    variants = variants_of(case)
    exact = [cases.draw(case, variant.dtype) for variant in variants]
    jobs = [ops.fine_grained_job(inputs.to(v.dtype), v) for inputs, v in zip(exact, variants)]
    for variant, inputs, result in zip(variants, exact, ops.run(jobs)):
        check_fine_grained(str(variant), inputs, variant.dtype, ops.tensors(result, variant.dtype))


def grads_of(definition: object, inputs: cases.Inputs, upstream: Tensor, **options: object) -> list[Tensor]:
    leaves = inputs.require_grad()
    output = definition(leaves.patch_embeds, leaves.token_embeds, leaves.patch_mask, leaves.threshold, **options)  # type: ignore[operator]
    grads = torch.autograd.grad(output, (leaves.patch_embeds, leaves.token_embeds), upstream.to(output.dtype))
    return [output.detach(), *grads]


@pytest.mark.parametrize("op", DEFINITIONS)
@pytest.mark.parametrize("case", (*(case for case in cases.CASES if case.name != "all-empty"), *cases.LARGE), ids=str)
def test_grouping(op: str, case: cases.Case) -> None:
    case = replace(case, lengths=None, holes=False)  # there is no token mask
    variants, jobs, references = variants_of(case), [], []
    generator = torch.Generator().manual_seed(0)
    width = case.D if op == "embeddings" else case.P
    upstream = torch.randn(case.B, case.L, width, generator=generator).to(torch.float16)
    for variant in variants:
        exact = cases.draw(case, variant.dtype)
        low = exact.to(variant.dtype)
        jobs.append(ops.grouping_job(low, variant, op == "weights", upstream.to(variant.dtype)))
        definition = DEFINITIONS[op]
        references.append(
            (
                exact,
                grads_of(definition, exact, upstream.to(variant.dtype).double()),
                grads_of(definition, low, upstream, compute_dtype=variant.dtype),
            )
        )
    for variant, (exact, truth, eager), result in zip(variants, references, ops.run(jobs)):
        found = ops.tensors(result, variant.dtype)
        for field, expected, low_result in zip(("output", "grad_patch_embeds", "grad_token_embeds"), truth, eager):
            tolerance.assert_close(f"{variant} {field}", found[field], expected, low_result, variant.dtype)
        if exact.patch_mask is not None:
            assert (found["grad_patch_embeds"][~exact.patch_mask] == 0).all()
            if op == "weights":
                assert (found["output"][~exact.patch_mask[:, None].expand_as(found["output"])] == 0).all()


# What is asked for: means, and one gradient without the other.

NEEDS = ((True, False), (False, True))


def _mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean(1)
    return rows.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("name", ["ragged", "empty-caption", "patch-mask", "odd-width", "sigma-half"])
def test_means(name: str) -> None:
    """The means of the valid rows, and their gradients added to those of the loss before rounding."""
    case = next(case for case in cases.CASES if case.name == name)
    if name == "empty-caption":
        case = replace(case, patches=(9, 4, 7))
    generator = torch.Generator().manual_seed(0)
    grads = tuple(torch.randn(case.B, case.D, generator=generator).to(torch.float16) for _ in range(2))
    exact = [cases.draw(case, variant.dtype) for variant in VARIANTS]
    jobs = [
        ops.fine_grained_job(inputs.to(v.dtype), v, pooled_grads=tuple(g.to(v.dtype) for g in grads))
        for inputs, v in zip(exact, VARIANTS)
    ]
    for variant, inputs, result in zip(VARIANTS, exact, ops.run(jobs)):
        found = ops.tensors(result, variant.dtype)
        leaves = inputs.require_grad()
        masks = (inputs.patch_mask, inputs.token_mask)
        embeds = (leaves.patch_embeds, leaves.token_embeds)
        means = [_mean(rows, mask) for rows, mask in zip(embeds, masks)]
        pooled = sum((mean * g.to(variant.dtype).double()).sum() for mean, g in zip(means, grads))
        added = torch.autograd.grad(pooled, embeds)
        truth, low = cases.reference(inputs), cases.reference(inputs.to(variant.dtype), compute_dtype=variant.dtype)
        for side, mean, more in zip(("patch", "token"), means, added):
            rounded = mean.detach().to(variant.dtype)
            field = "pooled_patches" if side == "patch" else "pooled_tokens"
            tolerance.assert_close(f"{variant} {field}", found[field], mean.detach(), rounded, variant.dtype)
            field = f"grad_{side}_embeds"
            expected, eager = (getattr(x, field).double() + more for x in (truth, low))
            least = cases.least_of(field, inputs)
            tolerance.assert_close(f"{variant} {field}", found[field], expected, eager, variant.dtype, least)


@pytest.mark.parametrize("op", ["loss", *DEFINITIONS])
def test_only_the_gradient_that_is_asked_for(op: str) -> None:
    """The same bits as with both."""
    case = cases.Case("ragged", B=5, P=40, L=20, D=80, lengths=(20, 3, 0, 17, 1), patches=(40, 7, 9, 33, 40))
    if op != "loss":
        case = replace(case, lengths=None)
    grad = torch.randn(case.B, case.L, case.P if op == "weights" else case.D).to(torch.float16)
    for variant in VARIANTS:
        inputs = cases.draw(case, variant.dtype).to(variant.dtype)
        if op == "loss":
            jobs = [ops.fine_grained_job(inputs, variant, needs=needs) for needs in (ops.BOTH, *NEEDS)]
        else:
            jobs = [
                ops.grouping_job(inputs, variant, op == "weights", grad.to(variant.dtype), needs=needs)
                for needs in (ops.BOTH, *NEEDS)
            ]
        both, *some = (ops.tensors(result, variant.dtype) for result in ops.run(jobs))
        for found, field in zip(some, ("grad_patch_embeds", "grad_token_embeds")):
            assert [name for name in found if name.startswith("grad")] == [field]
            assert torch.equal(found[field], both[field]), f"{variant} {field}"


# Shapes at the edges of the kernels' own tiles.

EDGES = (
    cases.Case("two-chunks", D=80, P=20, L=18, lengths=(18, 17)),  # more than one chunk of channels, two row warps
    cases.Case("four-chunks", D=200, P=33, L=5),  # every stage of the stream is used again
    cases.Case("full-tile", B=1, P=64, L=64, D=32),
    cases.Case("odd-channels", D=33, P=9, L=5),  # rows that cannot be copied 16 bytes at a time
    cases.Case("pairs-beyond-the-grid", B=5, lengths=(5, 0, 2, 3, 1)),
)


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_edges(case: cases.Case) -> None:
    variants = [replace(variant, seed=seed) for seed, variant in enumerate(VARIANTS)]
    variants.append(replace(VARIANTS[0], shared_bytes=RTX_BLOCK // 4 if case.P < 30 else RTX_BLOCK))
    exact = [cases.draw(case, variant.dtype) for variant in variants]
    jobs = [ops.fine_grained_job(inputs.to(v.dtype), v) for inputs, v in zip(exact, variants)]
    for variant, inputs, result in zip(variants, exact, ops.run(jobs)):
        check_fine_grained(str(variant), inputs, variant.dtype, ops.tensors(result, variant.dtype))


# Conventions of MATH.md.


def _inputs(patches: Tensor, tokens: Tensor, dtype: torch.dtype, **options: object) -> cases.Inputs:
    values = {"token_mask": None, "patch_mask": None, "threshold": None} | options
    return cases.Inputs(
        patches.double(),
        tokens.double(),
        logit_scale=torch.tensor(5.0, dtype=torch.float64),
        upstream=torch.ones(tokens.shape[:2], dtype=torch.float64),
        **values,  # type: ignore[arg-type]
    ).to(dtype)


def _each(inputs: cases.Inputs) -> list[tuple[Variant, dict[str, Tensor]]]:
    """The same inputs, whose numbers every dtype holds exactly, in every variant."""
    converted = [
        cases.Inputs(
            inputs.patch_embeds.to(v.dtype),
            inputs.token_embeds.to(v.dtype),
            inputs.token_mask,
            inputs.patch_mask,
            inputs.logit_scale,
            inputs.threshold,
            inputs.upstream,
        )
        for v in VARIANTS
    ]
    results = ops.run([ops.fine_grained_job(each, v) for each, v in zip(converted, VARIANTS)])
    return [(v, ops.tensors(result, v.dtype)) for v, result in zip(VARIANTS, results)]


def test_constant_image_weighs_patches_evenly() -> None:
    """All patches alike: all similarities of a row are equal, and none of them gets a gradient."""
    generator = torch.Generator().manual_seed(1)
    tokens, one = (torch.randint(-3, 4, (2, n, 24), generator=generator).float() for n in (4, 1))
    single = {str(v): found for v, found in _each(_inputs(one, tokens, torch.float32))}
    for variant, found in _each(_inputs(one.expand(2, 11, 24).contiguous(), tokens, torch.float32)):
        expected = single[str(variant)]
        tight = {"rtol": 1e-4, "atol": 1e-6} if variant.dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
        torch.testing.assert_close(found["token_loss"], expected["token_loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["grad_token_embeds"], expected["grad_token_embeds"], **tight)
        torch.testing.assert_close(
            found["grad_patch_embeds"].sum(1), expected["grad_patch_embeds"].sum(1), rtol=5e-2, atol=2e-2
        )
        assert (found["grad_patch_embeds"] == found["grad_patch_embeds"][:, :1]).all()


def test_ties_at_the_minimum_share_the_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    patches = torch.randint(-3, 4, (2, 6, 8), generator=generator).double()  # small integers: ties are exact
    tokens = torch.randint(-3, 4, (2, 3, 8), generator=generator).double()
    lowest = (tokens @ patches.transpose(1, 2)).mean(1).argmin(-1)  # [B]
    twin = (lowest + 1) % 6
    patches[torch.arange(2), twin] = patches[torch.arange(2), lowest]
    inputs = _inputs(patches, tokens, torch.float32, threshold=0.25)
    truth = cases.reference(inputs.to(torch.float64))
    for variant, found in _each(inputs):
        close = {"rtol": 1e-4, "atol": 1e-5} if variant.dtype == torch.float32 else {"rtol": 5e-2, "atol": 1e-2}
        for field in ("token_loss", "grad_patch_embeds", "grad_token_embeds"):
            torch.testing.assert_close(found[field].double(), getattr(truth, field), **close)
        grads = found["grad_patch_embeds"]
        assert torch.equal(grads[torch.arange(2), lowest], grads[torch.arange(2), twin])


def test_image_without_a_patch_is_nan() -> None:
    inputs = cases.draw(cases.Case("masked-out", lengths=(5, 3)), torch.bfloat16)
    patch_mask = torch.ones(2, 9, dtype=torch.bool)
    patch_mask[1] = False
    for _, found in _each(replace(inputs, patch_mask=patch_mask).to(torch.float32)):
        assert found["token_loss"][0].isfinite().all()
        assert found["token_loss"][1, :3].isnan().all()
        assert (found["token_loss"][1, 3:] == 0).all()
        assert found["grad_token_embeds"][1, :3].isnan().all()
        assert (found["grad_token_embeds"][1, 3:] == 0).all()
        assert (found["grad_patch_embeds"][1] == 0).all()


def test_nan_inside_a_valid_row_is_not_hidden() -> None:
    inputs = cases.draw(cases.Case("nan"), torch.bfloat16).to(torch.float32)
    inputs.patch_embeds[0, 3, 2] = torch.nan
    for _, found in _each(inputs):
        assert found["token_loss"][0].isnan().all()
        assert found["token_loss"][1].isfinite().all()


def test_zero_vectors() -> None:
    """A token of zeros has cosine 0 with every group, an image of zeros with every token."""
    generator = torch.Generator().manual_seed(3)
    patches, tokens = (torch.randint(-3, 4, (2, n, 16), generator=generator).float() for n in (7, 3))
    tokens[0, 1] = 0
    patches[1] = 0
    inputs = _inputs(patches, tokens, torch.float32)
    truth = cases.reference(inputs.to(torch.float64))
    for variant, found in _each(inputs):
        wide = 1e-4 if variant.dtype == torch.float32 else 3e-2
        torch.testing.assert_close(found["token_loss"].double(), truth.token_loss, rtol=wide, atol=wide)
        torch.testing.assert_close(
            found["grad_patch_embeds"][0].double(), truth.grad_patch_embeds[0], rtol=10 * wide, atol=wide
        )
        assert (found["grad_token_embeds"][1] == 0).all()


def test_float16_keeps_large_numbers_in_range() -> None:
    """Similarities, sums over patches and gradients leave the range of float16 here; results do not."""
    case = cases.Case("huge", D=64, P=40, L=6, lengths=(6, 4), magnitude=400.0)
    exact = cases.draw(case, torch.float16)
    variants = [v for v in VARIANTS if v.products == "f16"]
    for variant, result in zip(variants, ops.run([ops.fine_grained_job(exact.to(v.dtype), v) for v in variants])):
        check_fine_grained(str(variant), exact, variant.dtype, ops.tensors(result, variant.dtype))


def test_results_do_not_depend_on_the_schedule() -> None:
    """No atomics, no sum whose order is left to the threads: the same bits in any order of threads and blocks."""
    case = cases.Case("ragged", B=3, P=40, L=20, D=40, lengths=(20, 3, 17))
    for variant in VARIANTS:
        inputs = cases.draw(case, variant.dtype).to(variant.dtype)
        jobs = [ops.fine_grained_job(inputs, replace(variant, seed=seed, grid=grid)) for seed, grid in ((1, 1), (7, 3))]
        first, second = (ops.tensors(result, variant.dtype) for result in ops.run(jobs))
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{variant} {name}"


def test_every_way_to_stream() -> None:
    """Each row of the table of streamings, forward and backward, with chunks that use every buffer again."""
    case = cases.Case("four-chunks", D=200, P=33, L=20, lengths=(20, 11))
    kilobytes = range(8, 228)
    sizes = {"tokens": case.L, "patches": case.P, "channels": case.D, "pairs": case.B}
    rest = {"op": "fine_grained", "half_precision": True, "backward": True, "multiprocessors": 2}
    plans = ops.run([Job("plan", {**sizes, **rest, "shared_bytes": kb << 10}) for kb in kilobytes])
    first: dict[tuple[int, int], int] = {}
    for kb, result in zip(kilobytes, plans):
        plan = result.unwrap()
        if plan["pair_path"]:
            first.setdefault((plan["chunk"], plan["stages"]), kb)
    assert set(first) == {(32, 1), (32, 2), (64, 2), (64, 3)}
    exact = cases.draw(case, torch.bfloat16)
    variants = [replace(VARIANTS[0], shared_bytes=kb << 10) for kb in first.values()]
    jobs = [ops.fine_grained_job(exact.to(torch.bfloat16), variant) for variant in variants]
    for variant, result in zip(variants, ops.run(jobs)):
        check_fine_grained(str(variant), exact, variant.dtype, ops.tensors(result, variant.dtype))

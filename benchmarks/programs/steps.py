"""Whole optimizer steps: a preset's towers with and without the fine-grained loss, and adapters on stored features.

Each contender trains its own copy of the model on the same data; ``without`` takes the global loss alone, the others
add the fine-grained loss computed by a provider. What the loss costs is the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import sparc_kernels as sk
from benchmarks.measure import harness
from benchmarks.measure.case import Case, Function
from benchmarks.measure.harness import PRINCIPALS, Context, Row
from benchmarks.measure.suite import Plan, Suite
from benchmarks.ops._pairs import SCALE, TINY, PairInputs, caption_mask, paper_shape
from benchmarks.ops.fine_grained import FineGrained
from benchmarks.report import tables

WITHOUT = "without"
GLOBAL_WEIGHT, LOCAL_WEIGHT = 0.5, 1.0
IMAGE_WIDTH, TEXT_WIDTH = 768, 512  # of the stored features: the towers of ViT-B/16
Encode = Callable[[], tuple[Tensor, Tensor]]
Step = Callable[[], Tensor]
Build = Callable[[Case, torch.device, Function | None], Step]


# Their cases are the fine-grained loss within a step. ``dtype`` is that of autocast; ragged captions, as real ones are.
TRAINING_STEP, ADAPTERS = FineGrained("training_step"), FineGrained("adapters")
OPS = (TRAINING_STEP, ADAPTERS)


def _training_steps(device: torch.device, quick: bool) -> list[Plan]:
    def plan(preset: str, batch: int, dtype: str, **sizes: int) -> Plan:
        shape = paper_shape(batch) | sizes
        return Plan(TRAINING_STEP.case("training_step", **shape, dtype=dtype, captions="ragged", preset=preset))

    tiny = {"patches": 64, "tokens": 32, "channels": 64}
    if quick:
        return [plan("tiny", 4, "float32", **tiny)]
    if device.type == "cuda":
        return [plan("vit-b-16", 256, "bfloat16"), plan("vit-b-32", 512, "bfloat16", patches=49)]
    return [plan("tiny", 64, "float32", **tiny), plan("vit-b-16", 4, "float32")]


def _adapters(device: torch.device, quick: bool) -> list[Plan]:
    kinds = [(1024, "bfloat16"), (4096, "bfloat16")] if device.type == "cuda" else [(64, "float32"), (64, "bfloat16")]
    shapes = [TINY] if quick else [paper_shape(batch) | {"dtype": dtype} for batch, dtype in kinds]
    return [Plan(ADAPTERS.case("adapters", **shape, captions="ragged")) for shape in shapes]


def make_step(
    encode: Encode, modules: list[nn.Module], mask: Tensor, local: Function | None, dtype: torch.dtype
) -> Step:
    """Forward, backward and AdamW; ``local`` None leaves the fine-grained loss out."""
    log_scale = nn.Parameter(torch.tensor(SCALE, device=mask.device).log())
    parameters = [log_scale, *(parameter for module in modules for parameter in module.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    valid = mask[..., None]

    def step() -> Tensor:
        with torch.autocast(mask.device.type, dtype, enabled=dtype != torch.float32):
            patches, tokens = encode()
        scale = log_scale.exp()
        texts = tokens.masked_fill(~valid, 0).sum(1) / valid.sum(1).clamp(min=1)
        loss = GLOBAL_WEIGHT * sk.contrastive_loss(patches.mean(1), texts.to(patches.dtype), logit_scale=scale)
        if local is not None:
            loss = loss + LOCAL_WEIGHT * local(PairInputs(patches, tokens, mask, None, scale))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def tower_step(case: Case, device: torch.device, local: Function | None) -> Step:
    from sparc_kernels.train.config import PRESETS
    from sparc_kernels.train.model import DualEncoder

    torch.manual_seed(0)
    preset = PRESETS[case.preset]
    model = DualEncoder(preset, preset.vocab_size).to(device)
    pixels = torch.randint(256, (case["batch"], 3, preset.image_size, preset.image_size), device=device).to(torch.uint8)
    ids = torch.randint(preset.vocab_size, (case["batch"], case["tokens"]), device=device)
    mask = caption_mask(case, device)
    return make_step(lambda: model(pixels, ids, mask), [model], mask, local, case.torch_dtype)


def adapter_step(case: Case, device: torch.device, local: Function | None) -> Step:
    """Two linear adapters on frozen features: the step is the loss and little else."""
    torch.manual_seed(0)
    images = nn.Linear(IMAGE_WIDTH, case["channels"], bias=False, device=device)
    texts = nn.Linear(TEXT_WIDTH, case["channels"], bias=False, device=device)
    patches = torch.randn(case["batch"], case["patches"], IMAGE_WIDTH, device=device).to(case.torch_dtype)
    tokens = torch.randn(case["batch"], case["tokens"], TEXT_WIDTH, device=device).to(case.torch_dtype)
    return make_step(
        lambda: (images(patches), texts(tokens)), [images, texts], caption_mask(case, device), local, case.torch_dtype
    )


def _measure(build: Build, plan: Plan, context: Context) -> Row:
    case, device = plan.case, context.device
    harness.release(device)
    able, records = harness.serving(case, context)
    records = {WITHOUT: {"kind": "without"}, **records}
    steps: dict[str, Step] = {}
    losses: dict[str, float] = {}
    for name in (WITHOUT, *able):
        try:
            step = build(case, device, None if name == WITHOUT else able[name].build(case))
            losses[name] = float(step())
            records[name] |= _memory(step, device)
            steps[name] = step
        except Exception as error:
            records[name] |= harness.failure(error)
            harness.release(device)
    _assert_same_loss(losses, case)
    times, others = harness.times_when_quiet(steps, context)
    ours = harness.chosen(steps, records)
    harness.add_times(records, times, ours)
    return harness.row(case, context, records, ours, others)


def _assert_same_loss(losses: dict[str, float], case: Case) -> None:
    """The first step's loss, from the same weights and data, is the same whoever computes it."""
    values = [value for name, value in losses.items() if name != WITHOUT]
    allowed = 1e-3 if case.dtype == "float32" else 3e-2
    if values and not max(values) - min(values) <= allowed * abs(max(values)):
        raise AssertionError(f"the contenders train on different losses: {losses}")


def _memory(step: Step, device: torch.device) -> dict[str, int]:
    """Peak of a step beyond the model, its optimizer and the data; on a GPU, whose allocator knows."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return {"memory_bytes": torch.cuda.max_memory_allocated() - before}


def _table(rows: list[Row]) -> str:
    """A whole step with the global loss alone, and what each way to compute the fine-grained loss adds to it."""
    contenders = [name for name in PRINCIPALS if tables.any_time(rows, name)]
    head = ["", "dtype", "B", "global loss alone, ms", *(f"with {name}" for name in contenders)]
    head += ["MB, alone", "MB, ours", "remarks"]
    lines = []
    for row in sorted(rows, key=lambda r: [r["case"].get(name, "") for name in ("preset", "dtype", "batch")]):
        case, base = row["case"], row["contenders"][WITHOUT]
        cells = [case.get("preset", case["op"]), case["dtype"], str(case["batch"]), tables.time_cell(base)]
        cells += [_added(row["contenders"].get(name, {}), base) for name in contenders]
        memory = [tables.memory_cell(row, name) for name in (WITHOUT, row["ours"])]
        lines.append([*cells, *memory, tables.remarks(row)])
    return tables.table(head, lines, 2)


def _added(record: dict[str, Any], base: dict[str, Any]) -> str:
    if "ms" not in record or "ms" not in base:
        return ""
    step, alone = record["ms"]["p50"], base["ms"]["p50"]
    return f"{tables.milliseconds(step)} ({100 * (step / alone - 1):+.1f} %)"


SUITES = (
    Suite(
        "training_step",
        "A whole training step",
        _training_steps,
        rank=20,
        weight=3,
        measure=partial(_measure, tower_step),
        note="Both towers of a preset, forward, backward and AdamW; in brackets what the fine-grained loss "
        "adds to the step with the global loss alone.",
        table=_table,
    ),
    Suite(
        "adapters",
        "Adapters on stored features",
        _adapters,
        rank=70,
        measure=partial(_measure, adapter_step),
        note="Two linear adapters on stored, frozen patch and token features: the step is the loss and little else.",
        table=_table,
    ),
)

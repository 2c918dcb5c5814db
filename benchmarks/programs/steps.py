"""Whole optimizer steps: a preset's towers with and without the fine-grained loss, and adapters on stored features.

Each contender trains its own copy of the model on the same data; ``without`` takes the global loss alone, the others
add the fine-grained loss computed by a provider. What the loss costs is the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import sparc_kernels as sk
from benchmarks.cases import SCALE, Case, Inputs, caption_lengths
from benchmarks.harness import Context, Row, add_times, chosen, failure, release, row, times_when_quiet
from benchmarks.providers import PROVIDERS, Op, Provider

WITHOUT = "without"
LOSSES = ("cuda", "triton", "cpu", "eager", "compile")  # providers of the fine-grained loss that take part
GLOBAL_WEIGHT, LOCAL_WEIGHT = 0.5, 1.0
IMAGE_WIDTH, TEXT_WIDTH = 768, 512  # of the stored features: the towers of ViT-B/16
Encode = Callable[[], tuple[Tensor, Tensor]]
Step = Callable[[], Tensor]
Build = Callable[[Case, torch.device, Op | None], Step]


def training_step_cases(device: torch.device, quick: bool) -> list[Case]:
    """``dtype`` is that of autocast; ragged captions, as real ones are."""

    def case(preset: str, batch: int, sizes: tuple[int, int, int], dtype: str) -> Case:
        return Case("training_step", "training_step", batch, *sizes, dtype, captions="ragged", preset=preset)

    tiny, b16, b32 = (64, 32, 64), (196, 55, 512), (49, 55, 512)
    if quick:
        return [case("tiny", 4, tiny, "float32")]
    if device.type == "cuda":
        return [case("vit-b-16", 256, b16, "bfloat16"), case("vit-b-32", 512, b32, "bfloat16")]
    return [case("tiny", 64, tiny, "float32"), case("vit-b-16", 4, b16, "float32")]


def adapter_cases(device: torch.device, quick: bool) -> list[Case]:
    def case(batch: int, dtype: str, sizes: tuple[int, int, int] = (196, 55, 512)) -> Case:
        return Case("adapters", "adapters", batch, *sizes, dtype, captions="ragged")

    if quick:
        return [case(4, "float32", (16, 8, 32))]
    if device.type == "cuda":
        return [case(1024, "bfloat16"), case(4096, "bfloat16")]
    return [case(64, "float32"), case(64, "bfloat16")]


def _mask(case: Case, device: torch.device) -> Tensor:
    return (torch.arange(case.tokens) < caption_lengths(case)[:, None]).to(device)


def make_step(encode: Encode, modules: list[nn.Module], mask: Tensor, local: Op | None, dtype: torch.dtype) -> Step:
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
            loss = loss + LOCAL_WEIGHT * local(Inputs(patches, tokens, mask, None, scale))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def tower_step(case: Case, device: torch.device, local: Op | None) -> Step:
    from sparc_kernels.train.config import PRESETS
    from sparc_kernels.train.model import DualEncoder

    torch.manual_seed(0)
    preset = PRESETS[case.preset]
    model = DualEncoder(preset, preset.vocab_size).to(device)
    pixels = torch.randint(256, (case.batch, 3, preset.image_size, preset.image_size), device=device).to(torch.uint8)
    ids = torch.randint(preset.vocab_size, (case.batch, case.tokens), device=device)
    mask = _mask(case, device)
    return make_step(lambda: model(pixels, ids, mask), [model], mask, local, case.torch_dtype)


def adapter_step(case: Case, device: torch.device, local: Op | None) -> Step:
    """Two linear adapters on frozen features: the step is the loss and little else."""
    torch.manual_seed(0)
    images = nn.Linear(IMAGE_WIDTH, case.channels, bias=False, device=device)
    texts = nn.Linear(TEXT_WIDTH, case.channels, bias=False, device=device)
    patches = torch.randn(case.batch, case.patches, IMAGE_WIDTH, device=device).to(case.torch_dtype)
    tokens = torch.randn(case.batch, case.tokens, TEXT_WIDTH, device=device).to(case.torch_dtype)
    return make_step(
        lambda: (images(patches), texts(tokens)), [images, texts], _mask(case, device), local, case.torch_dtype
    )


def _losses(case: Case, context: Context) -> tuple[dict[str, Provider], dict[str, dict[str, Any]]]:
    """Who can serve the fine-grained loss in the dtype that the towers give out, and a record of everyone."""
    serving, records = {}, {}
    for name in LOSSES:
        if name in context.without:
            continue
        provider = PROVIDERS[name]
        records[name] = {"kind": provider.kind}
        if reason := provider.reason(case, context.device):
            records[name]["unsupported"] = reason
        else:
            serving[name] = provider
    return serving, records


def _measure(case: Case, context: Context, build: Build) -> Row:
    device = context.device
    release(device)
    loss_case = replace(case, op="fine_grained")
    serving, records = _losses(loss_case, context)
    records = {WITHOUT: {"kind": "without"}, **records}
    steps: dict[str, Step] = {}
    losses: dict[str, float] = {}
    for name in (WITHOUT, *serving):
        try:
            step = build(case, device, None if name == WITHOUT else serving[name].build(loss_case))
            losses[name] = float(step())
            records[name] |= _memory(step, device)
            steps[name] = step
        except Exception as error:
            records[name] |= failure(error)
            release(device)
    _assert_same_loss(losses, case)
    times, others = times_when_quiet(steps, context)
    ours = chosen(steps, records)
    add_times(records, times, ours)
    return row(case, context, records, ours, others)


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


def measure_training_step(case: Case, context: Context) -> Row:
    return _measure(case, context, tower_step)


def measure_adapters(case: Case, context: Context) -> Row:
    return _measure(case, context, adapter_step)

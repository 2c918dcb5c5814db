"""Who is measured: our backends, the eager definition, torch.compile of it, and who the op brings along."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from benchmarks.measure.case import Case, Function, Inputs, Op, Provider

OURS = ("cuda", "triton", "cpu")  # the order in which `auto` takes them
KINDS = ("ours", "eager", "listing", "compile", "peer", "floor")  # the order of a row's contenders


def defined(op: Op, compute_dtype: torch.dtype) -> Function:
    return lambda x: op.definition(x, compute_dtype)


def _ours(backend: str) -> Provider:
    def reason(case: Case, device: torch.device) -> str | None:
        if backend == "triton" and device.type == "cpu":
            return "on the CPU it runs in Triton's interpreter only, whose speed means nothing"
        try:  # an empty batch launches nothing, but is refused for the same reasons
            with torch.no_grad():
                case.op.public(case.op.draw(case.small(batch=0), device), backend)
        except NotImplementedError as error:
            return str(error).split(": ", 1)[-1]
        return None

    def build(case: Case) -> Function:
        return lambda x: case.op.public(x, backend)

    # Where `auto` takes cuda, triton is a rival.
    return Provider(backend, "ours", build, reason, label="triton" if backend == "triton" else "")


def _too_large(case: Case, device: torch.device) -> str | None:
    return case.op.too_large(case, device)


def _compiled(name: str, mode: str, label: str) -> Provider:
    def build(case: Case) -> Function:
        torch._dynamo.reset()
        function = torch.compile(defined(case.op, case.torch_dtype), mode=mode, dynamic=False)

        def call(x: Inputs) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # or a CUDA graph would keep what the last step gave out
            return function(x)

        return call

    def takes_part(case: Case, device: torch.device) -> bool:
        return device.type == "cuda" or not mode.endswith("no-cudagraphs")

    return Provider(name, "compile", build, _too_large, takes_part, label)


def _in_half_precision(case: Case, device: torch.device) -> bool:
    return case.dtype in ("bfloat16", "float16")  # elsewhere it is the same as eager


def _eager_float32(case: Case) -> Function:
    return defined(case.op, torch.float32)


PROVIDERS = (
    *map(_ours, OURS),
    Provider("eager", "eager", lambda case: defined(case.op, case.torch_dtype), _too_large, label="eager"),
    Provider("eager_float32", "eager", _eager_float32, _too_large, _in_half_precision, "eager, float32 inside"),
    _compiled("compile", "default", "compile"),
    _compiled("compile_max_autotune", "max-autotune", "compile, max-autotune"),
    _compiled("compile_max_autotune_no_graphs", "max-autotune-no-cudagraphs", "compile, max-autotune, no graphs"),
)


def in_order(some: tuple[Provider, ...]) -> dict[str, Provider]:
    """By name, our backends first and floors last."""
    return {provider.name: provider for provider in sorted(some, key=lambda provider: KINDS.index(provider.kind))}


@cache
def providers(op: Op) -> dict[str, Provider]:
    """Everyone who may take part at a case of ``op``, by name."""
    return in_order((*PROVIDERS, *op.contenders))


def select(case: Case, device: torch.device, compiled: tuple[str, ...], without: tuple[str, ...]) -> list[Provider]:
    """Every provider that has to do with the case, of torch.compile's modes only those named, less ``without``."""
    return [
        provider
        for name, provider in providers(case.op).items()
        if provider.takes_part(case, device)
        and (provider.kind != "compile" or name in compiled)
        and name not in without
    ]

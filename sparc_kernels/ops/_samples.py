"""Arguments to try a room's functions and ops with, drawn from its one sample: for tests and tools."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._room import Entry, Op, Pass, Room


def entry_arguments(room: Room, entry: Entry, device: torch.device, dtype: torch.dtype, **sizes: int) -> dict[str, Any]:
    """Keyword arguments of a public function."""
    known = room.sample(device, dtype, **sizes) | dict(entry.options)
    return {name: known[name] for name in inspect.signature(entry.function).parameters if name in known}


def one_tensor(result: Any) -> Tensor:
    """What a public function returned, as one tensor that stands for all that it computed."""
    if isinstance(result, Tensor):
        return result
    return torch.cat([x.flatten() for x in result if x is not None])


def _schema(each: Pass) -> Any:
    return torch._C.parse_schema(f"sparc_kernels::op{each.schema}")


def forward_arguments(
    room: Room, op: Op, device: torch.device, dtype: torch.dtype, whole: bool = True, **sizes: int
) -> dict[str, Any]:
    """Arguments of a forward pass; None for what is optional, and False, where not ``whole``."""
    known = room.sample(device, dtype, **sizes) | {"float32_precision": "highest"}
    given: dict[str, Any] = {}
    for argument in _schema(op.forward).arguments:
        value = known.get(argument.name, whole)
        if isinstance(argument.type, torch.OptionalType) and not whole:
            value = None
        elif isinstance(value, float) and not isinstance(argument.type, torch.FloatType):
            value = torch.tensor(value, dtype=accumulation_dtype(dtype), device=device)
        given[argument.name] = value
    return given


def backward_arguments(op: Op, forward: dict[str, Any], results: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """Arguments of the backward pass after ``results`` of ``forward``, for each choice of gradients that are needed."""
    known = forward | {x.name: result for x, result in zip(_schema(op.forward).returns, results)}
    arguments = _schema(op.backward).arguments
    for argument in arguments:
        if argument.name.startswith("grad_"):
            result = known[argument.name.removeprefix("grad_")]
            unwanted = isinstance(argument.type, torch.OptionalType) and result.numel() == 0
            known[argument.name] = None if unwanted else torch.rand_like(result)
    needs = [argument.name for argument in arguments if argument.name.startswith("need_")]
    for needed in product((True, False), repeat=len(needs)):
        if any(needed) or not needs:
            chosen = known | dict(zip(needs, needed))
            yield {argument.name: chosen[argument.name] for argument in arguments}

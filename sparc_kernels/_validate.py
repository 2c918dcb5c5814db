"""Checks of user input, and the wording of their errors: the argument, what came, what was expected."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

BACKENDS = ("cuda", "triton", "cpu", "eager")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _finite(value: float) -> bool:
    """Comparisons only: a number that ``torch.compile`` made an input of the graph takes no other question."""
    return -sys.float_info.max <= value <= sys.float_info.max


def _refuse_dtensor(name: str, value: Tensor, instead: str) -> None:
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(value, module.DTensor):
        raise TypeError(f"{name} must be a plain tensor, got a DTensor: pass {instead}")


def embeddings(name: str, value: object, layout: str) -> None:
    """A floating tensor with the rank of ``layout`` (such as ``"[B, N, D]"``) and no empty dimension but the first."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {layout}, got {type(value).__name__}")
    _refuse_dtensor(name, value, f"{name}.to_local(), sharded over the batch alone")
    if value.is_nested or value.layout != torch.strided:
        kind, pass_on = str(value.layout).removeprefix("torch."), f"pass {name}.to_dense()"
        if value.is_nested:
            kind, pass_on = "nested", "pad it, and pass a mask"
        raise TypeError(f"{name} must be a dense tensor of shape {layout}, got a {kind} one: {pass_on}")
    rank = layout.count(",") + 1
    if value.dim() != rank:
        raise ValueError(f"{name} must have shape {layout}, got {value.dim()} dimensions: {_shape(value)}")
    if value.dtype not in FLOATING:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(f"{name} must be a floating tensor ({allowed}), got {value.dtype}")
    if 0 in value.shape[1:]:
        first = layout[1:].partition(",")[0]
        raise ValueError(f"{name} of shape {layout} may be empty in {first} only, got {_shape(value)}")


def same(name: str, value: Tensor, other_name: str, other: Tensor, dims: dict[str, int]) -> None:
    """``value`` and ``other`` agree in dtype, device and the named dimensions."""
    for dim_name, dim in dims.items():
        _same_size(name, value, other_name, other, dim_name, dim)
    if value.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} must have the same dtype, got {value.dtype} and {other.dtype}")
    same_device(name, value, other_name, other)


def _same_size(name: str, value: Tensor, other_name: str, other: Tensor, dim_name: str, dim: int) -> None:
    if value.shape[dim] != other.shape[dim]:
        raise ValueError(
            f"{name} and {other_name} must have the same {dim_name}, "
            f"got {dim_name}={value.shape[dim]} in {_shape(value)} and {other.shape[dim]} in {_shape(other)}"
        )


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, got {value.device} and {other.device}")


def mask(name: str, value: object, owner_name: str, owner: Tensor) -> None:
    """A bool tensor with the first two dimensions of ``owner``, on its device, or None."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a bool torch.Tensor or None, got {type(value).__name__}")
    if value.dtype != torch.bool:
        # An additive mask is 0 where valid: .bool() would turn it around.
        pass_on = f"{name}.bool()"
        if value.is_floating_point():
            pass_on = f"{name} == 1, or == 0 of one to be added to logits"
        raise TypeError(f"{name} must have dtype torch.bool (True = valid), got {value.dtype}: pass {pass_on}")
    if value.shape != owner.shape[:2]:
        raise ValueError(
            f"{name} must have shape {_shape(owner)[:2]}, the first two dimensions of {owner_name}, got {_shape(value)}"
        )
    same_device(name, value, owner_name, owner)


def can_be_looked_at(tensor: Tensor) -> bool:
    """Whether its values are there, and reading them makes nobody wait: not on a GPU, in a trace or a transform."""
    return type(tensor) in (Tensor, Parameter) and tensor.device.type == "cpu" and runs_now()


def has_values(tensor: Tensor) -> bool:
    """Whether its values can be read, though the host may have to wait for them."""
    return runs_now() and not tensor.is_meta and not isinstance(tensor, FakeTensor)


def runs_now() -> bool:
    """Whether operators run as they are called: no trace, and no transform of ``torch.func``."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def scalar(name: str, value: object, owner_name: str, owner: Tensor) -> None:
    """A finite number, or a floating one-element tensor on the device of the embeddings."""
    if isinstance(value, Tensor):
        _refuse_dtensor(name, value, f"{name}.full_tensor()")
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a one-element tensor, got shape {_shape(value)}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
        same_device(name, value, owner_name, owner)
    else:
        _number(name, value, "a number or a one-element tensor")


def _number(name: str, value: object, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    if not _finite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def weight(name: str, value: object) -> None:
    """A finite number."""
    _number(name, value, "a number")


def positive(name: str, value: float) -> None:
    """A finite number above 0."""
    weight(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def count(name: str, value: object) -> int:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def backend(value: object) -> None:
    if value not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(map(repr, ('auto', *BACKENDS)))}, got {value!r}")

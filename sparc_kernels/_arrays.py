"""Arrays of other libraries: in and out through DLPack, without a copy.

NumPy is not imported here: an array of it can only come from a process that has imported it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

NUMPY_FLOATING = ("float16", "float32", "float64")


class DLPackArray(Protocol):
    """What shares its memory through DLPack: torch.Tensor, numpy.ndarray, cupy.ndarray, jax.Array and others."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


ArrayT = TypeVar("ArrayT", bound=DLPackArray)


Embeds = tuple[str, str, ArrayT]  # name, layout such as "[B, D]", value


def call(
    function: Callable[..., Tensor],
    embeds: Sequence[Embeds[ArrayT]],
    masks: Mapping[str, DLPackArray | None],
    *options: object,
) -> ArrayT:
    """``function`` of the arrays as tensors over the same memory; its result as the embeddings' kind of array.

    Tensors pass through as they are, gradients included. Arrays have no gradient, and are computed in their own dtype:
    autocast is for tensors (and would give bfloat16, which NumPy does not know).

    Args:
        function: takes ``(*embeds, *masks, *options)``, and checks shapes, dtypes and devices.
        embeds: floating tensors or arrays, all of one kind.
        masks: by name: bool tensors or arrays of any kind, or None.
        options: what else ``function`` takes.

    Raises:
        TypeError: no DLPack array; two kinds of embeddings; a dtype or byte order that PyTorch cannot read; a kind that
            has no ``from_dlpack`` for the way back.
        ValueError: strides that PyTorch cannot express.
    """
    values = [value for _, _, value in embeds]
    given = [value for value in (*values, *masks.values()) if value is not None]
    if torch.compiler.is_compiling() and not all(isinstance(value, Tensor) for value in given):
        raise TypeError("torch.compile takes tensors here, not arrays: pass torch.from_numpy(array)")
    _same_kind(embeds)
    mask_tensors = [_mask(name, value) for name, value in masks.items()]
    if isinstance(values[0], Tensor):
        return function(*values, *mask_tensors, *options)  # type: ignore[return-value]
    back = _way_back(embeds[0][0], values[0])
    tensors = [_to_tensor(name, value, floating=True) for name, _, value in embeds]
    with torch.autocast(tensors[0].device.type, enabled=False):
        return back(function(*tensors, *mask_tensors, *options))


def _mask(name: str, value: DLPackArray | None) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    if not _is_dlpack(value):
        raise TypeError(f"{name} must be a bool torch.Tensor, a bool DLPack array or None, got {type(value).__name__}")
    return _to_tensor(name, value, floating=False)


def _is_dlpack(value: object) -> bool:
    return hasattr(type(value), "__dlpack__") and hasattr(type(value), "__dlpack_device__")


def _is_numpy(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _kind(value: object) -> str:
    """``numpy.ndarray``, ``torch.Tensor``, ... as they are spoken of."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _same_kind(embeds: Sequence[Embeds[Any]]) -> None:
    if all(isinstance(value, Tensor) for _, _, value in embeds):
        return
    for name, layout, value in embeds:
        if not _is_dlpack(value):
            raise TypeError(
                f"{name} must be a torch.Tensor or DLPack array of shape {layout}, got {type(value).__name__}"
            )
    (first_name, _, first), *others = embeds
    for name, _, value in others:
        if _is_numpy(first) and _is_numpy(value):
            continue
        if not (isinstance(first, type(value)) or isinstance(value, type(first))):
            raise TypeError(
                f"{name} and {first_name} must be the same kind of array, got {_kind(value)} and {_kind(first)}"
            )


def _way_back(name: str, like: Any) -> Callable[[Tensor], Any]:
    """From a tensor to the kind of array that ``like`` is, over the same memory."""
    if _is_numpy(like):
        return Tensor.numpy  # writeable with every NumPy; numpy.from_dlpack is not before 2.1
    namespace = like.__array_namespace__() if hasattr(like, "__array_namespace__") else None
    if not hasattr(namespace, "from_dlpack"):
        namespace = sys.modules.get(type(like).__module__.partition(".")[0])
    if not hasattr(namespace, "from_dlpack"):
        raise TypeError(
            f"{name} must be an array whose library has from_dlpack, to return the result as one, got {_kind(like)}"
        )
    # Both ways through from_dlpack: it makes the consumer's current stream wait for the producer's.
    return namespace.from_dlpack  # type: ignore[union-attr]


def _to_tensor(name: str, array: Any, floating: bool) -> Tensor:
    """A tensor over the memory of ``array``, which is only ever read."""
    strides = getattr(array, "strides", None)
    # Looked at first: torch.from_dlpack does not raise for these, it ends the process.
    if isinstance(strides, tuple) and any(stride < 0 for stride in strides):
        raise ValueError(f"{name} must have strides >= 0, since PyTorch knows no others, got {strides} bytes")
    if _is_numpy(array):
        return _from_numpy(name, array, floating)
    try:
        return torch.from_dlpack(array)
    except (AssertionError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array that PyTorch can read by DLPack, got {_kind(array)}: {error}"
        ) from error


def _from_numpy(name: str, array: Any, floating: bool) -> Tensor:
    if isinstance(array, sys.modules["numpy"].ma.MaskedArray):
        raise TypeError(f"{name} must be a plain numpy.ndarray, got MaskedArray, whose mask would be lost")
    if not array.dtype.isnative:
        raise TypeError(f"{name} must be in native byte order, got dtype {array.dtype.str}")
    if floating and array.dtype.name not in NUMPY_FLOATING:
        raise TypeError(f"{name} must be a floating tensor ({', '.join(NUMPY_FLOATING)}), got {array.dtype}")
    if not floating and array.dtype.name != "bool":
        raise TypeError(f"{name} must have dtype bool (True = valid), got {array.dtype}")
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        raise ValueError(
            f"{name} must be aligned, with strides of whole elements of {array.itemsize} bytes, "
            f"got strides {array.strides} bytes"
        )
    try:
        return torch.from_dlpack(array)
    except BufferError:  # NumPy before 2.1 exports nothing read-only, before 1.25 no bool
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")  # nothing writes to it
            return torch.from_numpy(array)

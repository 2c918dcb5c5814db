"""Arrays of other libraries: in and out through DLPack, without a copy.

NumPy is not imported here: an array of it can only come from a process that has imported it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

NUMPY_FLOATING = ("float16", "float32", "float64")


class DLPackArray(Protocol):
    """What shares its memory through DLPack: torch.Tensor, numpy.ndarray, cupy.ndarray, jax.Array and others."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


ArrayT = TypeVar("ArrayT", bound=DLPackArray)


def call(
    function: Callable[..., Tensor],
    patch_embeds: ArrayT,
    token_embeds: ArrayT,
    patch_mask: DLPackArray | None,
    *options: object,
) -> ArrayT:
    """``function`` of the arrays as tensors over the same memory; its result as the embeddings' kind of array.

    Tensors pass through as they are, gradients included. Arrays have no gradient, and are computed in their own dtype:
    autocast is for tensors (and would give bfloat16, which NumPy does not know).

    Args:
        function: takes ``(patch_embeds, token_embeds, patch_mask, *options)``, and checks shapes, dtypes and devices.
        patch_embeds: [B, P, D] tensor or array.
        token_embeds: [B, L, D], the same kind of array.
        patch_mask: [B, P] bool tensor or array of any kind, or None.
        options: what else ``function`` takes.

    Raises:
        TypeError: no DLPack array; two kinds of embeddings; a dtype or byte order that PyTorch cannot read; a kind that
            has no ``from_dlpack`` for the way back.
        ValueError: strides that PyTorch cannot express.
    """
    if torch.compiler.is_compiling() and not all(
        isinstance(x, Tensor) for x in (patch_embeds, token_embeds, patch_mask) if x is not None
    ):
        raise TypeError("torch.compile takes tensors here, not arrays: pass torch.from_numpy(array)")
    _same_kind(patch_embeds, token_embeds)
    if patch_mask is not None and not isinstance(patch_mask, Tensor):
        if not _is_dlpack(patch_mask):
            raise TypeError(
                f"patch_mask must be a bool torch.Tensor, a bool DLPack array or None, got {type(patch_mask).__name__}"
            )
        patch_mask = _to_tensor("patch_mask", patch_mask, floating=False)
    if isinstance(patch_embeds, Tensor):
        return function(patch_embeds, token_embeds, patch_mask, *options)  # type: ignore[return-value]
    back = _way_back(patch_embeds)
    patches = _to_tensor("patch_embeds", patch_embeds, floating=True)
    tokens = _to_tensor("token_embeds", token_embeds, floating=True)
    with torch.autocast(patches.device.type, enabled=False):
        return back(function(patches, tokens, patch_mask, *options))


def _is_dlpack(value: object) -> bool:
    return hasattr(type(value), "__dlpack__") and hasattr(type(value), "__dlpack_device__")


def _is_numpy(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _kind(value: object) -> str:
    """``numpy.ndarray``, ``torch.Tensor``, ... as they are spoken of."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _same_kind(patch_embeds: object, token_embeds: object) -> None:
    if isinstance(patch_embeds, Tensor) and isinstance(token_embeds, Tensor):
        return
    for name, value, layout in (
        ("patch_embeds", patch_embeds, "[B, P, D]"),
        ("token_embeds", token_embeds, "[B, L, D]"),
    ):
        if not _is_dlpack(value):
            raise TypeError(
                f"{name} must be a torch.Tensor or DLPack array of shape {layout}, got {type(value).__name__}"
            )
    if _is_numpy(patch_embeds) and _is_numpy(token_embeds):
        return
    if not (isinstance(patch_embeds, type(token_embeds)) or isinstance(token_embeds, type(patch_embeds))):
        raise TypeError(
            "token_embeds and patch_embeds must be the same kind of array, "
            f"got {_kind(token_embeds)} and {_kind(patch_embeds)}"
        )


def _way_back(like: Any) -> Callable[[Tensor], Any]:
    """From a tensor to the kind of array that ``like`` is, over the same memory."""
    if _is_numpy(like):
        return Tensor.numpy  # writeable with every NumPy; numpy.from_dlpack is not before 2.1
    namespace = like.__array_namespace__() if hasattr(like, "__array_namespace__") else None
    if not hasattr(namespace, "from_dlpack"):
        namespace = sys.modules.get(type(like).__module__.partition(".")[0])
    if not hasattr(namespace, "from_dlpack"):
        raise TypeError(
            "patch_embeds must be an array whose library has from_dlpack, to return the result as one, "
            f"got {_kind(like)}"
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

"""A kernel launch as a value: launchers run it; the compile-time tests build it on meta tensors and only compile it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

# The capability that kernels are chosen for where tensors lie on no CUDA device, as those of compile-time tests do.
ASSUMED_CAPABILITY = 90

# torch.get_float32_matmul_precision() -> the precision of a Triton product with float32 operands
_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}


class Step(Protocol):
    """What a plan is made of: a launch, or a call of a library that a room puts between its launches."""

    def run(self) -> Any:
        """Queue it on the current stream."""


@dataclass(frozen=True)
class Launch:
    """One kernel, its grid, its arguments by name (tensors, numbers, None, constexprs) and its compile options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, kernel: Any, programs: int, known: dict[str, Any], own: dict[str, Any], num_warps: int, num_stages: int
    ) -> Launch:
        """A launch on a grid of ``programs`` with the kernel's ``own`` arguments and those ``known`` that it names."""
        assert own.keys() <= set(kernel.arg_names), f"{kernel.__name__} takes no {own.keys() - set(kernel.arg_names)}"
        every = known | own
        return cls(kernel, (programs,), {name: every[name] for name in kernel.arg_names}, num_warps, num_stages)

    def run(self) -> Any:
        """Queue the kernel on the current stream; an empty grid queues nothing. Returns what Triton does: the compiled
        kernel, None in its interpreter."""
        if not all(self.grid):
            return None
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, **self.options}
        return self.kernel[self.grid](**self.arguments, **options)


@triton.jit
def _probe():  # type: ignore[no-untyped-def]
    pass


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: its variable TRITON_INTERPRET, read when they were defined."""
    return isinstance(_probe, InterpretedFunction)


def upcast(dtype: torch.dtype) -> bool:
    """Whether kernels cast to float32 after each load: the interpreter computes wrongly in bfloat16."""
    return interpreted() and dtype == torch.bfloat16


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve embeddings of this device and dtype, or None."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take float16, bfloat16 and float32, not {str(dtype).removeprefix('torch.')}"
    if device.type == "cpu" and not interpreted():
        return "Triton does not compile for the CPU (TRITON_INTERPRET=1, set before the start, runs its interpreter)"
    if device.type not in ("cpu", "cuda"):
        return f"the Triton kernels run on CUDA devices, not on {device.type!r}"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need compute capability 8.0"
    return None


def capability(tensor: Tensor) -> int:
    """Ten times the major plus the minor compute capability of the tensor's device; the assumed one without."""
    if not tensor.is_cuda or torch.version.hip is not None:
        return ASSUMED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def product_precision(dtype: torch.dtype, float32_precision: str) -> str:
    """``input_precision`` of ``tl.dot``: float32 operands follow ``torch.set_float32_matmul_precision``."""
    return _PRECISIONS[float32_precision] if dtype == torch.float32 else "ieee"


def cdiv(n: int, block: int) -> int:
    """How many blocks cover n; ``triton.cdiv`` takes 2 us on the host."""
    return -(-n // block)


def batch_slices(n_items: int, bytes_per_item: int, most_bytes: int) -> Iterator[slice]:
    """Slices of a batch, as long as each other but for the last, that take at most so many bytes, or one item."""
    most = max(1, most_bytes // bytes_per_item)
    step = max(1, cdiv(n_items, max(1, cdiv(n_items, most))))
    return (slice(first, min(first + step, n_items)) for first in range(0, n_items, step))


def strides(tensor: Tensor | None, *names: str) -> dict[str, int]:
    """The strides of a tensor under the names of kernel parameters; 0 for a tensor that is not there."""
    return dict(zip(names, tensor.stride() if tensor is not None else (0,) * len(names)))


def describable(tensor: Tensor) -> bool:
    """Whether a kernel can make a tensor descriptor of a tensor: copies by the tensor memory accelerator of sm_90 and
    later, whose rows start at multiples of 16 bytes and lie dense."""
    if tensor.dim() < 2 or tensor.shape[-1] == 0 or tensor.stride(-1) != 1:
        return False
    if torch.version.hip is not None or capability(tensor) < 90:
        return False
    apart = all(tensor.stride(i) >= max(tensor.shape[i + 1] * tensor.stride(i + 1), 1) for i in range(tensor.dim() - 1))
    starts = [x * tensor.element_size() for x in tensor.stride()[:-1]] + [0 if tensor.is_meta else tensor.data_ptr()]
    return apart and not any(x % 16 for x in starts)


def _scratch(size: int, multiple: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


def with_scratch(run: Callable[[], Any]) -> Any:
    """What ``run`` returns, whose kernels find memory for the tensor descriptors that they make; an allocator that the
    caller has set (``triton.set_allocator``) stays what it is outside."""
    context = contextvars.copy_context()
    context.run(triton.set_allocator, _scratch)
    return context.run(run)


def run_all(steps: Iterable[Step], tensor: Tensor) -> None:
    """Run the steps in order, on the current stream of the device of ``tensor``."""
    reason = unsupported_reason(tensor.device, tensor.dtype)
    if reason is not None:
        raise NotImplementedError(reason)
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
        with_scratch(lambda: [step.run() for step in steps])

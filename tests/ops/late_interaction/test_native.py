"""Which plans take late interaction's kernel in CUDA C++, on played devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from sparc_kernels import _native
from sparc_kernels.ops.late_interaction import native, triton
from sparc_kernels.ops.late_interaction.config import TileConfig, choose_native
from sparc_kernels.ops.late_interaction.native import Maxima


def forward_steps(
    patches: int, channels: int, dtype: torch.dtype = torch.bfloat16, longest: int = 77, **options: Any
) -> list[Any]:
    """Of a plan on meta tensors."""
    tensors = (torch.empty(2, n, channels, dtype=dtype, device="meta") for n in (patches, longest))
    arguments = (*tensors, None, None, None, 0, True, True, True, True, True, "highest")
    return list(triton.forward_plan(*arguments, **options)[1])


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is there for meta tensors, too."""
    monkeypatch.setattr(native, "missing", lambda images: None)


def columns_of(steps: list[Any]) -> list[int]:
    return [step.columns for step in steps if isinstance(step, Maxima)]


# Patches and channels; columns, 0 for Triton's kernel. The first eight were timed.
TAKEN = (
    *((196, 256, 200), (196, 512, 104), (256, 256, 256), (257, 512, 104), (100, 256, 104)),
    *((49, 256, 0), (49, 512, 0), (64, 256, 0)),
    *((65, 64, 104), (128, 256, 128), (576, 256, 200), (192, 512, 0), (196, 520, 0), (196, 100, 0)),
)


@pytest.mark.parametrize(("patches", "channels", "columns"), TAKEN)
def test_where_it_is_taken(patches: int, channels: int, columns: int, there: None) -> None:
    assert columns_of(forward_steps(patches, channels)) == [columns] * (columns > 0)


def test_where_it_is_not_taken(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact keys, long captions, another device, no library: Triton's kernels."""
    assert columns_of(forward_steps(196, 256)) == [200]
    for dtype, longest in ((torch.float32, 77), (torch.bfloat16, 257)):
        assert not columns_of(forward_steps(196, 256, dtype, longest))
    for capability in (80, 100):
        with mock.patch("sparc_kernels.ops._triton.launch.ASSUMED_CAPABILITY", capability):
            assert not columns_of(forward_steps(196, 256))
    monkeypatch.setattr(native, "missing", lambda images: "no library")
    steps = forward_steps(196, 256)
    assert not columns_of(steps)
    assert "resident_maxima_kernel" in [step.kernel.__name__ for step in steps if hasattr(step, "kernel")]
    with pytest.raises(NotImplementedError, match="is not there: no library"):
        forward_steps(196, 256, config=choose_native(196, 256))


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a played device."""
    assert native.missing(torch.empty(1)) == "it serves tensors on CUDA devices, not on cpu"
    played: Any = SimpleNamespace(is_cuda=True, device=3, get_device=lambda: 3)
    reasons = {"cuda_reason": "no CUDA build", "cuda_device_reason": "an old driver"}
    monkeypatch.setattr(_native, "cuda_reason", lambda: reasons.get("cuda_reason"))
    monkeypatch.setattr(_native, "cuda_device_reason", lambda index: reasons.get("cuda_device_reason"))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert native.missing(played) == reasons.pop("cuda_reason")
    monkeypatch.setattr(torch.ops, "sparc_kernels", SimpleNamespace())
    assert native.missing(played) == "libsparc_cuda.so was built without compute capability 9.0"
    monkeypatch.setattr(torch.ops, "sparc_kernels", SimpleNamespace(resident_maxima=None))
    assert native.missing(played) == "it needs compute capability 9.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert native.missing(played) == reasons.pop("cuda_device_reason")
    assert native.missing(played) is None


def test_what_is_refused(there: None) -> None:
    def plan(channels: int, dtype: torch.dtype, columns: int) -> list[Any]:
        return forward_steps(196, channels, dtype, config=TileConfig(columns, resident=True, native=True))

    assert columns_of(plan(256, torch.bfloat16, 200)) == [200]
    for channels, dtype, columns, message in (
        (512, torch.bfloat16, 200, "not 200 patches of 512 channels"),
        (256, torch.bfloat16, 64, "not 64 patches of 256 channels"),
        (256, torch.float32, 200, "cosines in half precision"),
        (100, torch.bfloat16, 200, "multiples of 16 bytes"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            plan(channels, dtype, columns)


@pytest.mark.parametrize(
    ("patches", "channels", "columns"),
    [
        (196, 256, 200),
        (196, 512, 104),
        (256, 256, 256),
        (256, 512, 128),
        (257, 256, 104),
        (576, 256, 200),
        (49, 64, 104),
    ],
)
def test_chosen_columns(patches: int, channels: int, columns: int) -> None:
    config = choose_native(patches, channels)
    assert config is not None
    assert config.block_p == columns
    assert choose_native(patches, 520) is None

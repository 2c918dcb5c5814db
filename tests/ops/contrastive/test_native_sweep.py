"""Which plans take the sigmoid's sweep in CUDA C++, on played devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparc_kernels.ops.contrastive import native, triton_losses
from sparc_kernels.ops.contrastive.config import TileConfig, choose_native, runs_of_rows
from sparc_kernels.ops.contrastive.native import Sweep
from sparc_kernels.ops.contrastive.triton import logsumexp_forward_plan
from sparc_kernels.ops.contrastive.triton_losses import sigmoid_forward_plan


def steps_of(size: int, channels: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> list[Any]:
    """Of a plan on meta tensors."""
    rows, cols = (torch.empty(size, channels, dtype=dtype, device="meta") for _ in range(2))
    scale, bias = (torch.empty((), device="meta") for _ in range(2))
    arguments = (rows, cols, scale, bias, True, True, True, True, True, "highest")
    return list(sigmoid_forward_plan(*arguments, **options)[1])


def sweeps(steps: list[Any]) -> list[tuple[int, ...]]:
    """Rows, columns, columns to a block, diagonal, runs of each."""
    found = [step for step in steps if isinstance(step, Sweep)]
    return [(len(each.rows), len(each.cols), each.columns, each.diagonal, each.runs) for each in found]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is there for meta tensors, too."""
    monkeypatch.setattr(native, "missing", lambda rows: None)


def test_it_is_taken_where_it_is_asked_for(there: None) -> None:
    """And nowhere else: nothing has timed it."""
    assert not sweeps(steps_of(16384, 768))
    config = choose_native(768)
    assert config is not None
    assert sweeps(steps_of(16384, 768, config=config)) == [(16384, 16384, 128, 0, 1)]
    in_blocks = sweeps(steps_of(400, 768, config=replace(config, workspace_bytes=2 * 256 * 256)))
    assert in_blocks == [
        (256, 256, 128, 0, 4),
        (256, 144, 128, -256, 4),
        (144, 256, 128, 256, 3),
        (144, 144, 128, 0, 3),
    ]


def test_the_environment_asks_for_it_where_it_serves(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(channels: int, dtype: torch.dtype) -> Any:
        embeds = torch.empty(200, channels, dtype=dtype, device="meta")
        return triton_losses.sigmoid_forward(embeds, embeds)

    ours, theirs = triton_losses.native_sigmoid_forward_plan, triton_losses.sigmoid_forward_plan
    monkeypatch.setattr(triton_losses, "_run", lambda plan, args, rows: plan)
    assert taken(768, torch.bfloat16) is theirs
    monkeypatch.setenv("SPARC_CUDA_SWEEP", "1")
    assert taken(768, torch.bfloat16) is ours
    assert taken(768, torch.float32) is theirs
    assert taken(100, torch.bfloat16) is theirs
    monkeypatch.setattr(native, "missing", lambda rows: "no library")
    assert taken(768, torch.bfloat16) is theirs


@pytest.mark.parametrize(
    ("channels", "columns"), [(8, 192), (512, 192), (520, 128), (768, 128), (776, 96), (1024, 96), (1032, 0), (100, 0)]
)
def test_chosen_columns(channels: int, columns: int) -> None:
    found = choose_native(channels)
    assert (0 if found is None else found.block_n) == columns


@pytest.mark.parametrize(
    ("rows", "blocks", "runs"), [(16384, 128, 1), (16384, 86, 3), (1024, 8, 16), (64, 300, 1), (65536, 512, 9)]
)
def test_runs_fill_the_device(rows: int, blocks: int, runs: int) -> None:
    assert runs_of_rows(rows, blocks, 132) == runs


def test_what_is_refused(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TileConfig(64, 128, 64, native=True)
    for channels, dtype, columns, message in (
        (768, torch.bfloat16, 192, "not 192 columns of 768 channels"),
        (768, torch.bfloat16, 64, "not 64 columns of 768 channels"),
        (100, torch.bfloat16, 128, "not 128 columns of 100 channels"),
        (768, torch.float32, 128, "in half precision, not torch.float32"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            steps_of(200, channels, dtype, config=replace(config, block_n=columns))
    apart = torch.empty(200, 65, dtype=torch.bfloat16, device="meta")[:, :64]
    assert "multiples of 16 bytes" in str(native.refusal(apart, apart, 128))
    embeds = torch.empty(8, 64, dtype=torch.bfloat16, device="meta")
    scale = torch.empty((), device="meta")
    with pytest.raises(NotImplementedError, match=r"pairs of which \(i, i\) alone"):
        logsumexp_forward_plan(
            embeds, embeds, scale, scale, *(None,) * 8, True, True, False, False, "highest", config=config
        )
    monkeypatch.setattr(native, "missing", lambda rows: "no library")
    with pytest.raises(NotImplementedError, match="is not there: no library"):
        steps_of(200, 64, config=config)

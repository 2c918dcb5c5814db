"""The examples: they run, they train, and their losses and gradients are the eager backend's."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parent.parent
EXAMPLES = CHECKOUT / "examples"
MAX_LINES = 60

# The package that an example needs, and how its loss is computed.
TRAINED = {
    "train_open_clip": ("open_clip", lambda example, model, batch: example.loss_of(model, *batch)),
    "train_transformers_clip": ("transformers", lambda example, model, batch: example.loss_of(model, batch)),
    "train_transformers_siglip": ("transformers", lambda example, model, batch: model(*batch)),
    "train_lightning": ("lightning", lambda example, model, batch: model.training_step(batch, 0)),
    "train_accelerate": ("accelerate", lambda example, model, batch: model(*batch)),
}


@pytest.fixture(scope="module", autouse=True)
def _importable_torchvision() -> None:
    """PyPI's torchvision beside a CPU build of PyTorch: its compiled half does not load, and to import the rest, which
    is all that the examples' packages need, it must find its ops declared."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for op in ("nms", "qnms"):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def load(name: str, package: str) -> ModuleType:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} needs {package}, which is not installed")
    return importlib.import_module(f"examples.{name}")


def double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    return {name: double(x) for name, x in batch.items()} if isinstance(batch, dict) else tuple(map(double, batch))


def test_examples_are_short() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) >= 10
    for path in files:
        assert len(path.read_text().splitlines()) <= MAX_LINES, path.name


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_gradients_are_eager_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, loss_of = TRAINED[name]
    example = load(name, package)
    results = {}
    for backend in ("cpu", "eager"):
        monkeypatch.setenv("SPARC_BACKEND", backend)
        torch.manual_seed(0)
        model, batch = example.make()
        loss = loss_of(example, model.double(), double(batch))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert any("scale" in name for name in gradients)
        results[backend] = {"loss": loss.detach(), **gradients}
    torch.testing.assert_close(results["cpu"], results["eager"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", TRAINED)
def test_trains(name: str) -> None:
    losses = load(name, TRAINED[name][0]).main()
    assert losses[-1] < 0.8 * losses[0]


def test_frozen_features(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("train_frozen_features", "numpy")
    example.write_features(tmp_path, pairs=48, patches=20, tokens=8)
    losses = example.main(tmp_path)
    assert losses[-1] < losses[0]
    assert "eager / auto: " in capsys.readouterr().out
    results = []
    for backend in ("cpu", "eager"):
        monkeypatch.setenv("SPARC_BACKEND", backend)
        torch.manual_seed(0)
        model = example.Adapters()
        loss = model(torch.randn(4, 20, 192).half(), torch.randn(4, 8, 128).half(), torch.rand(4, 8) < 0.6)
        loss.backward()
        results.append({"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_words_over_picture(tmp_path: Path) -> None:
    example = load("words_over_picture", "matplotlib")
    assert example.main(str(tmp_path / "words.png")) > 0.95
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


def test_numpy_arrays() -> None:
    example = load("numpy_arrays", "numpy")
    patches, tokens, mask = example.make()
    assert example.main().tolist() == [[3, 17, 40], [0, 8, 29]]
    for function in (example.alignment_weights, example.language_grouped_embeddings):
        expected = function(patches, tokens, patch_mask=mask, backend="eager")
        torch.testing.assert_close(
            torch.from_numpy(function(patches, tokens, patch_mask=mask)), torch.from_numpy(expected)
        )


def torchrun(script: Path) -> str:
    """What ``script`` prints on two processes of this machine, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_ddp_and_fsdp2_on_two_processes() -> None:
    """Both train, with the gradients of the single process; ranks_of_examples.py looks on every rank."""
    printed = torchrun(CHECKOUT / "tests" / "ranks_of_examples.py")
    for rank in (0, 1):
        assert f"rank {rank}: DDP equals one process" in printed
        assert f"rank {rank}: FSDP2 equals one process" in printed

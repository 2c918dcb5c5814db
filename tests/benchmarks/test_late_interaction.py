"""What the benchmark of late interaction makes of other people's MaxSim is what it measures ours by."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure.case import Case
from benchmarks.measure.providers import providers
from benchmarks.ops import _all_pairs
from benchmarks.ops.late_interaction import OPS, LateInteraction

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RAW = "late_interaction_kernels_normalizing"
PEERS = {"late_interaction_kernels": "maxsim", "flash_maxsim": "flash_maxsim_batched_train"}
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


def small(op: LateInteraction, **changes: Any) -> Case:
    shape: dict[str, Any] = {"batch": 3, "patches": 5, "tokens": 4, "channels": 8, "dtype": "float64"}
    return op.case("late_interaction", **shape | changes)


def maxsim(queries: Tensor, documents: Tensor, normalize: bool = False) -> Tensor:  # [N, Lq, D], [M, Ld, D]: [N, M]
    if normalize:
        queries, documents = (side / side.norm(dim=-1, keepdim=True) for side in (queries, documents))
    return torch.einsum("nqd,mkd->nmqk", queries, documents).amax(3).sum(2)


@each_op
@pytest.mark.parametrize("name", [*PEERS, RAW])
def test_a_peers_scores_become_the_same_loss(op: LateInteraction, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda asked: SimpleNamespace(**{PEERS[asked]: maxsim}))
    case = small(op)
    theirs, x = providers(op)[name].build(case), op.draw(case, CPU)
    torch.testing.assert_close(theirs(x), op.definition(x, torch.float64))
    assert not torch.allclose(theirs(x), op.definition(op.draw(case, CPU, seed=1), torch.float64))


def test_without_gradients_a_peer_is_called_as_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(flash_maxsim_batched_train=maxsim, flash_maxsim_batched=lambda *x: 2 * maxsim(*x))
    monkeypatch.setattr("importlib.import_module", lambda asked: module)
    op = next(op for op in OPS if op.name == "maxsim")
    case = small(op)
    theirs, x = providers(op)["flash_maxsim"].build(case), op.draw(case, CPU)
    with torch.no_grad():
        doubled = theirs(x)
    assert not torch.allclose(doubled, theirs(x))
    x.scale.mul_(2)
    torch.testing.assert_close(doubled, theirs(x))


@each_op
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_says_why_it_does_not_run(op: LateInteraction, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = providers(op)[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    assert provider.reason(small(op), GPU) == f"{name} is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: object())
    assert provider.reason(small(op), CPU) == "its kernels need a GPU"
    assert provider.reason(small(op), GPU) is None
    assert provider.reason(small(op, captions="ragged"), GPU) == "measured without masks"
    assert not provider.takes_part(small(op, axis="batch"), GPU)


@each_op
def test_eager_is_spared_what_no_memory_holds(op: LateInteraction, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PHYS_PAGES": 24 * 2**30 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(_all_pairs.os, "sysconf", pages.__getitem__)
    large = small(op, batch=512, patches=196, tokens=32, channels=256, dtype="float32")
    assert providers(op)["eager"].reason(large, CPU) == "it needs about 26 GB, the machine has 26"
    assert providers(op)["eager"].reason(large.but(batch=256), CPU) is None

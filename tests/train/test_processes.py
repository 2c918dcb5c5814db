"""Several processes: shares, what they say of errors, and runs under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sparc_kernels.train import checkpoint
from sparc_kernels.train.cli import main
from sparc_kernels.train.config import LOSSES, TrainConfig
from sparc_kernels.train.data import batches, load_data
from sparc_kernels.train.processes import ALONE, FAILURE, Processes, joined, lost
from tests.train.conftest import FAST
from tests.train.test_trainer import curve

CHECKOUT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch is built without torch.distributed")

# The trainer, where a fault meets the second process when it draws its second pair of the third step.
BROKEN = """
import os, runpy, signal, time
from sparc_kernels.train import data

class Broken(data.SceneStream):
    def __getitem__(self, position):
        if position == 11:
            {fault}
        return super().__getitem__(position)

data.SceneStream = Broken
data.TOKENIZER_CAPTIONS = 100
runpy.run_module("sparc_kernels.train", run_name="__main__", alter_sys=True)
"""


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Processes of this machine, one thread each."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [*start, *arguments], env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=240
    )


def broken(fault: str, folder: Path) -> tuple[Path, subprocess.CompletedProcess[str], list[str]]:
    """The run, what became of it, and the sentences of the trainer's processes about it."""
    script = folder / "broken.py"
    script.write_text(BROKEN.format(fault=fault))
    run = folder / "run"
    done = torchrun(2, str(script), *FAST, "--checkpoint-every", "2", "--out", str(run))
    return run, done, sorted(line for line in done.stderr.splitlines() if line.startswith(("error: ", "SIG")))


@pytest.mark.parametrize("count, size", [(8, 1), (8, 3), (3, 3), (7, 4)])
def test_shares_in_order_are_the_batch(count: int, size: int) -> None:
    shares = [Processes(rank, size).share(count) for rank in range(size)]
    assert [slot for share in shares for slot in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    TrainConfig(batch_size=count, accumulate=min(map(len, shares))).check_share(size)


@pytest.mark.parametrize("data", ["scenes", "folder"])
def test_processes_draw_the_pairs_of_one(small: TrainConfig, pictures: Path, data: str) -> None:
    """From any step on, which is all that a resumed run knows."""
    small = replace(small, data=str(pictures) if data == "folder" else data)
    drawn = load_data(small, lambda line: None)
    whole = list(batches(drawn, small, 0, range(4)))
    for start in (0, 5):
        shares = [list(batches(drawn, small, start, Processes(rank, 3).share(4))) for rank in range(3)]
        for (pixels, texts), *parts in zip(whole[start:], *shares):
            assert torch.equal(torch.cat([part for part, _ in parts]), pixels)
            assert [text for _, some in parts for text in some] == texts


def test_one_process_asks_nobody() -> None:
    with joined() as processes:
        assert processes is ALONE
    assert (ALONE.from_first(lambda: 3), ALONE.largest(4), ALONE.gathered(5), ALONE.told("x")) == (3, 4, [5], "x")
    ALONE.check_same("anything", object())
    ALONE.part()


def test_sharding_needs_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--fsdp", "--out", str(tmp_path / "run")]) == 2
    assert "fsdp spreads a model over the processes of torchrun, got one process" in capsys.readouterr().err


def test_an_error_of_all_is_said_once() -> None:
    store = dist.HashStore()
    first, second, third = (Processes(rank, 3, rank, store) for rank in range(3))
    assert first.told("no such folder") == "no such folder"
    assert second.told("no such folder") is None
    assert third.told("no such folder") is None


def test_the_first_process_names_the_failure_that_others_follow() -> None:
    store = dist.HashStore()
    first, second, third = (Processes(rank, 3, rank, store) for rank in range(3))
    assert second.told("a broken disk") == "rank 1: a broken disk"
    assert first.told("connection lost") == "rank 1 failed: a broken disk"
    assert third.told("connection lost") is None
    assert store.get(FAILURE) == b"1\na broken disk"


def test_errors_of_lost_processes() -> None:
    """As gloo words them in PyTorch 2.13."""
    closed = (
        "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:11663. "
        "This is typically caused by a remote worker crashing.\nmore"
    )
    assert lost(RuntimeError(closed)) == "Connection closed by peer [127.0.0.1]:11663"
    loss = f"contrastive_loss: rank 0 of 2 lost the others while it gathered ({closed})"
    assert lost(RuntimeError(loss)) == "contrastive_loss: rank 0 of 2 lost the others while it gathered"
    assert lost(RuntimeError("shapes do not match")) is None
    assert lost(KeyError("gloo")) is None


@pytest.mark.slow
def test_several_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    """Under DDP and FSDP2, in chunks, stopped and resumed by more or fewer; ranks_of_trainer.py looks on each rank.

    Three, since the order of a sum shows from three on.
    """
    done = torchrun(3, "-m", "tests.train.ranks_of_trainer", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(3):
        for loss in LOSSES:
            assert f"rank {rank}: {loss} follows one curve" in done.stdout
    assert "results written" in done.stdout


def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    run, done, said = broken('raise ValueError("the picture is gone")', tmp_path)
    assert done.returncode == 1
    assert said == ["error: rank 1 failed: the picture is gone", "error: rank 1: the picture is gone"]
    assert checkpoint.load(run)["step"] == 2


def test_a_process_that_is_killed_ends_all(tmp_path: Path) -> None:
    run, done, said = broken("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert done.returncode == 1
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: another process is gone (")
    assert said[0].endswith("); --resume continues from the last checkpoint")
    assert checkpoint.load(run)["step"] == 2


def test_a_signal_to_one_process_stops_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the same step, with one sentence and one row a step; one process goes on from there, to the end."""
    run, done, said = broken("os.kill(os.getpid(), signal.SIGTERM)", tmp_path)
    assert done.returncode == 1
    assert said == [f"SIGTERM: saved after step 3 of 4; --resume {run} continues"]
    assert done.stderr.count("exitcode  : 143") == 2, "of both processes"
    assert [row["step"] for row in curve(run)] == ["1", "2", "3"]
    assert done.stdout.count("in 2 processes (DDP)") == 1
    monkeypatch.setattr("sparc_kernels.train.cli._conclude", lambda *_: None)
    assert main(["--resume", str(run), "--quiet"]) == 0
    assert [row["step"] for row in curve(run)] == ["1", "2", "3", "4"]
    assert "resumed after step 3 of 4" in capsys.readouterr().out

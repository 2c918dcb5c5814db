"""A full disk, a second run in the same folder, a signal: one sentence, and a checkpoint that can be resumed."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from sparc_kernels.train import checkpoint
from sparc_kernels.train.cli import main
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.lock import HOLDER, locked
from sparc_kernels.train.record import LOG
from sparc_kernels.train.signals import STOPPING
from sparc_kernels.train.trainer import Trainer
from tests.train.conftest import CLI, FAST
from tests.train.test_trainer import Killed, curve, stop_after, train


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, in this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_atomic_write_that_finds_no_room(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.write_atomic(path, "old")
    with files_of_at_most(100), pytest.raises(checkpoint.WriteError, match="File too large") as error:
        checkpoint.write_atomic(path, "new" * 100)
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_finds_no_room(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    with files_of_at_most(5000), pytest.raises(checkpoint.WriteError, match="File too large"):
        checkpoint.save(tmp_path, {"step": 2, "much": torch.zeros(10000)})
    assert checkpoint.load(tmp_path)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.CHECKPOINT]


def test_a_log_that_finds_no_room(tmp_path: Path) -> None:
    log = checkpoint.CsvLog(tmp_path / LOG, ("step", "loss"), 0)
    with files_of_at_most(50), pytest.raises(checkpoint.WriteError, match="File too large") as error:
        log.write({"step": 1, "loss": "0." + "5" * 50})
    assert error.value.filename == str(tmp_path / LOG)


def test_other_errors_are_not_taken_for_the_disks(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no disk"), checkpoint.writing(tmp_path):
        raise RuntimeError("no disk")


def test_a_full_disk_is_one_sentence_and_costs_no_checkpoint(small: TrainConfig, pictures: Path) -> None:
    small = replace(small, data=str(pictures))
    broken = Trainer(small, load_data(small, lambda line: None), progress=False)
    stop_after(broken, 5)
    with pytest.raises(Killed):
        broken.fit()
    size = (broken.run / checkpoint.CHECKPOINT).stat().st_size
    done = subprocess.run(
        [*CLI, "--resume", small.out, "--quiet"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1)),
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: '{small.out}/{checkpoint.CHECKPOINT}' could not be written: File too large; "
        "the last checkpoint is intact, --resume continues from it"
    )
    assert checkpoint.load(broken.run)["step"] == 3
    assert not list(broken.run.glob(".*.tmp"))


def test_no_checkpoint_is_claimed_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([*FAST, "--out", str(tmp_path / "run")]) == 1
    path = tmp_path / "run" / "config.json"
    assert capsys.readouterr().err == f"error: '{path}' could not be written: No space left on device\n"


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_tensorboard_costs_nothing(
    method: str, small: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, method, full)
    trainer = train(small)
    assert checkpoint.load(trainer.run)["step"] == 8
    assert len(curve(trainer.run)) == 8
    assert caplog.messages == ["warning: no more curves for TensorBoard (OSError: [Errno 28] No space left on device)"]


@pytest.mark.parametrize("flags", [[], ["--compare"], ["--overwrite"]])
def test_a_second_run_in_a_folder_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    held = out / "clip" if "--compare" in flags else out
    with locked([held]):
        before = sorted(held.iterdir())
        assert main([*FAST, *flags, "--out", str(out)]) == 2
        assert sorted(held.iterdir()) == before
    error = capsys.readouterr().err
    assert f"'{held}' is in use by process {os.getpid()} on {socket.gethostname()}" in error
    assert error.count("\n") == 1
    assert not (held / HOLDER).exists()


def test_the_runs_below_a_folder_are_not_overwritten_while_they_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked([tmp_path / "run" / "sparc"]):
        assert main([*FAST, "--overwrite", "--out", str(tmp_path / "run")]) == 2
    assert "is in use by" in capsys.readouterr().err


def test_a_finished_run_frees_its_folder(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert main([*FAST, "--steps", "1", "--out", out]) == 0
    with locked([Path(out)]):
        pass


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_to_all_saves_a_checkpoint_and_leaves_no_orphans(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = "--steps 2000 --checkpoint-every 2000 --workers 2 --batch-size 4 --eval-pairs 6 --threads 1 --device cpu"
    process = subprocess.Popen(
        [*CLI, *flags.split(), "--quiet", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(curve(out)) > 3 or process.poll() is not None)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)  # timeout sends it twice
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    steps = len(curve(out))
    assert 3 < steps < 2000
    assert said == f"SIGTERM: saved after step {steps} of 2000; --resume {out} continues\n"
    assert checkpoint.load(out)["step"] == steps
    wait_for(lambda: not any(map(alive, workers)), 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_first_of_two_runs(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Struck(Trainer):
        def autocast(self) -> torch.autocast:
            if self.step == 2:
                signal.raise_signal(number)
            return super().autocast()

    before = [signal.getsignal(number) for number in STOPPING]
    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr("sparc_kernels.train.cli.Trainer", Struck)
        assert main([*FAST, "--compare", "--out", str(out)]) == 128 + number
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"{name}: saved after step 3 of 4; --resume '{out}' continues\n"
    assert checkpoint.load(out / "clip")["step"] == 3
    assert not (out / "sparc" / LOG).exists()
    assert [signal.getsignal(number) for number in STOPPING] == before
    if number == signal.SIGINT:
        monkeypatch.setattr("sparc_kernels.train.cli._conclude", lambda *_: None)
        assert main(["--resume", str(out), "--quiet"]) == 0
        assert [len(curve(out / loss)) for loss in ("clip", "sparc")] == [4, 4]


def test_workers_that_an_error_left_do_not_hold_up_the_exit(tmp_path: Path) -> None:
    code = (
        "from sparc_kernels.train.config import TrainConfig\n"
        "from sparc_kernels.train.data import batches, load_data\n"
        "config = TrainConfig(batch_size=2, steps=100, warmup_steps=0, eval_pairs=2, workers=2)\n"
        "kept = batches(load_data(config), config, 0, range(2))\n"
        "next(kept)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stopped_run_follows_the_uninterrupted_curve(small: TrainConfig) -> None:
    whole = train(replace(small, out=small.out + "-whole"))
    noted: list[int] = []
    stopped = Trainer(small, load_data(small), progress=False)
    stopped.model.register_forward_pre_hook(lambda *_: noted.append(signal.SIGTERM) if stopped.step == 4 else None)
    stopped.fit(noted)
    assert stopped.step == checkpoint.load(stopped.run)["step"] == 5
    train(small, resume=True)
    assert curve(small.out) == curve(whole.run)

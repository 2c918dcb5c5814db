"""The loop: schedule, logs, checkpoints, exact resume."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparc_kernels.train import checkpoint
from sparc_kernels.train.config import LOSSES, PRESETS, TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.losses import GlobalLoss
from sparc_kernels.train.model import DualEncoder
from sparc_kernels.train.optimizer import lr_factor, make_optimizer
from sparc_kernels.train.record import COLUMNS, LOG, TIMES
from sparc_kernels.train.trainer import Trainer
from tests.train.conftest import CLI


def curve(run: str | Path) -> list[dict[str, str]]:
    """The log without what a clock says."""
    rows = checkpoint.read_log(Path(run) / LOG)
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def train(config: TrainConfig, resume: bool = False) -> Trainer:
    trainer = Trainer(config, load_data(config, lambda line: None), resume, progress=False)
    trainer.fit()
    return trainer


class Killed(Exception):
    pass


def stop_after(trainer: Trainer, step: int) -> None:
    """Let a run break off in the middle of the step after ``step``."""

    def forward_or_die(*_: object) -> None:
        if trainer.step == step:
            raise Killed

    trainer.model.register_forward_pre_hook(forward_or_die)


def test_schedule_values() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, lr=1.0, min_lr=0.1)
    assert lr_factor(0, config) == pytest.approx(0.1)
    assert lr_factor(4, config) == pytest.approx(0.5)
    assert lr_factor(9, config) == lr_factor(10, config) == 1
    assert lr_factor(60, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(35, config) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert lr_factor(110, config) == pytest.approx(0.1)
    assert lr_factor(0, TrainConfig(steps=1, warmup_steps=0)) == 1


def test_the_logged_rate_is_the_schedule(small: TrainConfig) -> None:
    train(small)
    rates = [float(row["lr"]) for row in curve(small.out)]
    assert rates == pytest.approx([small.lr * lr_factor(step, small) for step in range(small.steps)])


def test_what_is_decayed() -> None:
    model = DualEncoder(replace(PRESETS["tiny"], positions=True), 300)
    optimizer = make_optimizer([model, GlobalLoss(sigmoid=True)], TrainConfig(weight_decay=0.3))
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(parameter.dim() > 1 for parameter in decayed)
    positions = {id(parameter) for name, parameter in model.named_parameters() if name.endswith("positions")}
    assert positions <= {id(parameter) for parameter in free}
    assert len(positions) == 2
    assert len(decayed) + len(free) == len(list(model.parameters())) + 2


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_leaves_logs_and_a_checkpoint(small: TrainConfig, loss: str) -> None:
    trainer = train(replace(small, loss=loss))
    rows = checkpoint.read_log(trainer.run / LOG)
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert tuple(rows[0]) == COLUMNS
    assert all((row["local_loss"] != "") == (loss in ("sparc", "gloria")) for row in rows)
    assert all((row["logit_bias"] != "") == (loss == "siglip") for row in rows)
    assert list((trainer.run / "tensorboard").glob("events.out.tfevents.*"))
    saved = checkpoint.load(trainer.run)
    assert saved["step"] == 8
    assert saved["data_position"] == 32
    assert saved["config"] == trainer.config.to_dict()


def test_sparc_loss_is_the_weighted_sum_of_its_parts(small: TrainConfig) -> None:
    train(replace(small, global_weight=0.25, local_weight=2.0))
    for row in curve(small.out):
        expected = 0.25 * float(row["global_loss"]) + 2 * float(row["local_loss"])
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)


def test_siglip_learns_its_scale_and_bias(small: TrainConfig) -> None:
    """Both start where the paper starts them, are logged as they were in the step, and move."""
    rows = curve(train(replace(small, loss="siglip")).run)
    assert (float(rows[0]["logit_scale"]), float(rows[0]["logit_bias"])) == pytest.approx((10, -10))
    for name in ("logit_scale", "logit_bias"):
        assert len({row[name] for row in rows}) == len(rows), "a value for every step"


@pytest.mark.parametrize(
    "loss, killed_at", [("sparc", 0), ("sparc", 7), ("clip", 3), ("siglip", 4), ("filip", 5), ("gloria", 2)]
)
def test_a_resumed_run_follows_the_uninterrupted_curve(small: TrainConfig, loss: str, killed_at: int) -> None:
    small = replace(small, loss=loss)
    whole = train(replace(small, out=small.out + "-whole"))
    broken = Trainer(small, load_data(small), progress=False)
    stop_after(broken, killed_at)
    with pytest.raises(Killed):
        broken.fit()
    assert len(curve(small.out)) == killed_at
    assert checkpoint.load(Path(small.out))["step"] == killed_at // 3 * 3
    resumed = train(small, resume=True)
    assert curve(small.out) == curve(whole.run)
    for part in ("model", "loss"):
        state = getattr(resumed, part).state_dict()
        for name, value in getattr(whole, part).state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=0)


def test_a_folder_resumes_exactly_too(small: TrainConfig, pictures: Path) -> None:
    small = replace(small, data=str(pictures))
    whole = train(replace(small, out=small.out + "-whole"))
    broken = Trainer(small, load_data(small, lambda line: None), progress=False)
    stop_after(broken, 5)
    with pytest.raises(Killed):
        broken.fit()
    train(small, resume=True)
    assert curve(small.out) == curve(whole.run)


def test_workers_change_nothing(small: TrainConfig) -> None:
    alone = train(small)
    helped = train(replace(small, workers=2, out=small.out + "-workers"))
    assert curve(alone.run) == curve(helped.run)


def test_bfloat16_trains(small: TrainConfig) -> None:
    losses = [float(row["loss"]) for row in curve(train(replace(small, precision="bf16")).run)]
    wide = [float(row["loss"]) for row in curve(train(replace(small, out=small.out + "-wide")).run)]
    assert losses != wide
    assert losses[0] == pytest.approx(wide[0], rel=0.05)


@pytest.mark.parametrize("loss", ["sparc", "siglip"])
def test_a_checkpoint_from_before_scales_had_a_dimension(small: TrainConfig, loss: str) -> None:
    """Nor had a run chunks or several processes, and the generators of all devices were kept."""
    small = replace(small, loss=loss)
    whole = train(replace(small, out=small.out + "-whole"))
    broken = Trainer(small, load_data(small), progress=False)
    stop_after(broken, 5)
    with pytest.raises(Killed):
        broken.fit()
    state = checkpoint.load(broken.run)
    scales = {id(parameter) for parameter in broken.loss.parameters()}
    state["loss"] = {name: value.reshape(()) for name, value in state["loss"].items()}
    for number, parameter in enumerate(broken.parameters):
        if id(parameter) in scales:
            moments = state["optimizer"]["state"][number]
            moments |= {name: value.reshape(()) for name, value in moments.items()}
    del state["rng_of_others"], state["config"]["accumulate"]
    state["rng"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2
    checkpoint.save(broken.run, state)
    train(small, resume=True)
    assert curve(small.out) == curve(whole.run)


def test_resume_refuses_another_configuration(small: TrainConfig) -> None:
    train(small)
    with pytest.raises(ValueError, match=r"another configuration: lr: 0.003 -> 0.5; local_weight: 1.0 -> 3.0"):
        train(replace(small, lr=0.5, local_weight=3.0), resume=True)
    trainer = train(replace(small, checkpoint_every=1), resume=True)  # of the run's place, not of its curve
    assert trainer.step == 8


def test_resume_refuses_other_data(small: TrainConfig, pictures: Path) -> None:
    small = replace(small, data=str(pictures))
    train(small)
    (pictures / "deep" / "plain0.txt").write_text("another caption")
    with pytest.raises(ValueError, match=r"the data in .* have changed"):
        train(small, resume=True)


def test_resume_without_or_with_a_damaged_checkpoint(small: TrainConfig) -> None:
    with pytest.raises(ValueError, match="no checkpoint in"):
        train(small, resume=True)
    run = Path(small.out)
    run.mkdir()
    (run / checkpoint.CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        train(small, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(small: TrainConfig) -> None:
    trainer = Trainer(small, load_data(small), progress=False)
    with torch.no_grad():
        trainer.model.image_tower.adapter.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"step 1: loss nan"):
        trainer.fit()


def write_half(path: Path) -> None:
    with checkpoint.atomic_file(path) as file:
        file.write(b"half of the ne")
        raise Killed


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.write_atomic(path, "old")
    with pytest.raises(Killed):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.write_atomic(path, "new")
    assert path.read_text() == "new"


def test_a_checkpoint_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    (tmp_path / f".{checkpoint.CHECKPOINT}.dead.tmp").write_bytes(b"left by a killed process")

    def torn(state, file):  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(tmp_path)["step"] == 1
    checkpoint.save(tmp_path, {"step": 3})
    assert checkpoint.load(tmp_path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.CHECKPOINT]


def test_the_log_drops_rows_past_the_checkpoint_and_a_torn_row(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_text("step,loss\r\n1,0.5\r\n2,0.25\r\n3,0.125\r\n4,0.0")
    log = checkpoint.CsvLog(path, ("step", "loss"), keep_steps=2)
    log.write({"step": 3, "loss": 7})
    log.close()
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == [["step", "loss"], ["1", "0.5"], ["2", "0.25"], ["3", "7"]]


@pytest.mark.slow
def test_killed_again_and_again_and_resumed(tmp_path: Path) -> None:
    numbers = "--steps 40 --batch-size 4 --eval-pairs 4 --threads 1 --checkpoint-every 4"
    flags = [*numbers.split(), "--quiet", "--device", "cpu"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*CLI, *flags, "--out", str(whole)], check=True, capture_output=True)
    start = [*flags, "--out", str(broken)]
    for steps in (1, 14):  # killed at whatever moment comes after so many logged steps
        process = subprocess.Popen([*CLI, *start], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(curve(broken)) < steps and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.003)
        process.kill()
        assert process.wait() == -9
        assert steps <= len(curve(broken)) < 40
        assert 0 <= len(curve(broken)) - checkpoint.load(broken)["step"] <= 4
        start = ["--resume", str(broken), "--quiet"]
    done = subprocess.run([*CLI, *start], check=True, capture_output=True, text=True)
    assert "resumed after step" in done.stdout
    assert curve(broken) == curve(whole)
    assert not [name for name in os.listdir(broken) if name.endswith(".tmp")]

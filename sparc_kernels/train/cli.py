"""The command line: which runs to make, what to print and draw."""

from __future__ import annotations

import io
import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparc_kernels.train import checkpoint
from sparc_kernels.train.ask import EVALUATION, ask
from sparc_kernels.train.config import LOSSES, TrainConfig
from sparc_kernels.train.data import Data, load_data
from sparc_kernels.train.evaluate import evaluate
from sparc_kernels.train.figures import draw_alignment, draw_curves
from sparc_kernels.train.lock import locked
from sparc_kernels.train.options import parsed
from sparc_kernels.train.processes import ALONE, Processes, joined, lost, pick_device
from sparc_kernels.train.record import LOG
from sparc_kernels.train.results import draw, write_json, write_results
from sparc_kernels.train.settings import configured, of_run, with_file
from sparc_kernels.train.signals import noted_signals
from sparc_kernels.train.speed import PAPER_SHAPE, compare_speed, fused_backend
from sparc_kernels.train.trainer import Trainer

COMPARED = ("clip", "sparc")
# So small a model gains nothing from a second thread; the second core draws the scenes.
DEMO: dict[str, Any] = {
    "out": "runs/demo",
    "steps": 600,
    "threads": 1,
    "workers": 1,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or with a message on standard error: 2 where the input is at fault, 1 where a file could not be
    written or another process of the run is gone, 128 and its number after a signal."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    command = options.pop("command")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # any name of a file can be printed
    processes = ALONE
    try:
        with joined(options.pop("fsdp", False)) as processes:
            return run(options, processes) if command == "train" else ask(command, options, processes)
    except (ValueError, TypeError, NotImplementedError, FloatingPointError) as error:
        return _end(processes, str(error), 2)
    except checkpoint.WriteError as error:
        whole = command == "train" and Path(error.filename).with_name(checkpoint.CHECKPOINT).exists()
        then = "; the last checkpoint is intact, --resume continues from it" if whole else ""
        return _end(processes, f"{error.filename!r} could not be written: {error.strerror}{then}", 1)
    except KeyboardInterrupt:
        if processes.first:
            then = "; --resume continues from the last checkpoint" if command == "train" else ""
            print(f"\nstopped{then}", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if not processes.joined:
            raise
        if why := lost(error):
            return _end(processes, f"another process is gone ({why}); --resume continues from the last checkpoint", 1)
        _end(processes, f"{type(error).__name__}: {error}", 1)
        raise


def _end(processes: Processes, words: str, status: int) -> int:
    """Say what ended the run, if nobody else does."""
    if said := processes.told(words):
        print(f"error: {said}", file=sys.stderr)
    return status


def run(options: dict[str, Any], processes: Processes) -> int:
    """What the options ask for; of several processes, the first one reads, locks and writes the folder."""
    resumed, file = (options.pop(name, None) for name in ("resume", "config"))
    if file is not None and resumed is None:
        options = processes.from_first(lambda: with_file(Path(file), options))
    switches = ("demo", "compare", "overwrite", "quiet")
    demo, compare, overwrite, quiet = (options.pop(name, False) for name in switches)
    if options.get("data", "scenes") != "scenes":
        options["data"] = str(Path(options["data"]).resolve())
    if resumed is not None:
        if demo or overwrite or file or options.get("out", resumed) != resumed:
            raise ValueError("--resume continues one folder: leave out --demo, --config, --overwrite and --out")
        config, compare = processes.from_first(lambda: of_run(Path(resumed), options))
    else:
        config = configured((DEMO if demo else {}) | options)
        compare = compare or demo
    config.check_share(processes.size)
    if compare and "loss" in options:
        raise ValueError("--compare and --demo train clip and sparc: leave out --loss")
    out = Path(config.out)
    if not processes.first:
        return _train(config, compare, resumed is not None, demo, True, processes)
    parts = [out / loss for loss in LOSSES if (out / loss).is_dir() or (compare and loss in COMPARED)]
    with locked([out, *parts]):
        if resumed is None:
            _claim(out, overwrite or (demo and "out" not in options))
        return _train(config, compare, resumed is not None, demo, quiet, processes)


def _train(config: TrainConfig, compare: bool, resume: bool, demo: bool, quiet: bool, processes: Processes) -> int:
    """Every run that was asked for, and what follows them; the exit status."""
    device, threads = pick_device(config.device, processes), torch.get_num_threads()
    data = load_data(config, print if processes.first else _nothing, progress=not quiet, keep_list=processes.first)
    out = Path(config.out)
    if compare and processes.first:
        write_json(out / "config.json", config.to_dict() | {"compare": True})
    trainers = []
    for loss in COMPARED if compare else (config.loss,):
        part = replace(config, loss=loss, out=str(out / loss)) if compare else config
        standing = Path(part.out) / checkpoint.CHECKPOINT
        again = processes.from_first(lambda path=standing: resume and (not compare or path.exists()))  # type: ignore[misc]
        trainers.append(Trainer(part, data, again, not quiet, processes))
        with noted_signals() as signals:
            stopped = trainers[-1].fit(signals)
        if stopped:
            name, where = signal.Signals(stopped).name, f"step {trainers[-1].step} of {part.steps}"
            if processes.first:
                print(f"{name}: saved after {where}; --resume {shlex.quote(str(out))} continues", file=sys.stderr)
            return 128 + stopped
        trainers[-1].put_together()
    processes.part()
    if processes.first:
        _conclude(trainers, data, out)
        if demo:
            torch.set_num_threads(threads)
            _report_speed(trainers[-1], data, device)
    return 0


def _nothing(line: str) -> None:
    """What the other processes print."""


def _claim(out: Path, overwrite: bool) -> None:
    """Make sure that no other run stands in ``out``; with ``overwrite``, remove what a run wrote there."""
    for folder in (out, *(out / loss for loss in LOSSES)):
        files = (folder / name for name in ("config.json", checkpoint.CHECKPOINT, LOG))
        standing = [path for path in files if path.exists()]
        if standing and not overwrite:
            raise ValueError(f"{str(out)!r} holds a run: give --resume {out}, --overwrite or another --out")
        for path in (*standing, folder / "results.json", folder / EVALUATION / "results.json"):
            path.unlink(missing_ok=True)
        if standing and (folder / "tensorboard").is_dir():
            shutil.rmtree(folder / "tensorboard")


def _conclude(trainers: list[Trainer], data: Data, out: Path) -> None:
    """Evaluate, print the table, write results and figures."""
    results = {trainer.config.loss: evaluate(trainer, data) for trainer in trainers}
    for trainer in trainers:
        write_json(trainer.run / "results.json", results[trainer.config.loss])
    write_results(out, results, f"{len(data.captions)} held-out pairs")
    draw(out / "alignment.png", lambda path: draw_alignment(trainers, data, path))
    draw(out / "curves.png", lambda path: draw_curves([trainer.run for trainer in trainers], list(results), path))
    for name in ("results.json", "results.md"):
        print(out / name)
    for trainer in trainers:
        steps, pairs = trainer.config.steps, trainer.config.steps * trainer.config.batch_size
        pace = f"{pairs / max(trainer.wall, 1e-9):.0f} pairs per second with data and checkpoints"
        print(f"{trainer.run}: {steps} steps in {trainer.seconds:.0f} s, {pace}")


def _report_speed(trainer: Trainer, data: Data, device: Any) -> None:
    backend, why = fused_backend(device)
    print()
    if backend is None:
        print(f"No fused backend serves this machine, so the runs above used eager: {why}")
        return
    model = trainer.config.model
    longest = trainer.tokenizer(data.captions).ids.shape[1]
    own = (trainer.config.batch_size, model.patches, longest, model.embed_dim)
    for shape in (own, PAPER_SHAPE):
        print(compare_speed(shape, backend, device))

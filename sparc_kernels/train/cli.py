"""The command line: which runs to make, what to print and draw."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparc_kernels.train import checkpoint
from sparc_kernels.train.config import DEVICES, LOSSES, PRECISIONS, PRESETS, TrainConfig
from sparc_kernels.train.data import Data, load_data
from sparc_kernels.train.evaluate import evaluate
from sparc_kernels.train.figures import draw_alignment, draw_curves
from sparc_kernels.train.lock import locked
from sparc_kernels.train.processes import ALONE, Processes, joined, lost
from sparc_kernels.train.record import LOG
from sparc_kernels.train.report import table
from sparc_kernels.train.signals import noted_signals
from sparc_kernels.train.speed import PAPER_SHAPE, compare_speed, fused_backend
from sparc_kernels.train.trainer import Trainer, pick_device

COMPARED = ("clip", "sparc")
# So small a model gains nothing from a second thread; the second core draws the scenes.
DEMO: dict[str, Any] = {
    "out": "runs/demo",
    "steps": 600,
    "threads": 1,
    "workers": 1,
}
EXAMPLES = """\
examples:
  python -m sparc_kernels.train --demo
  python -m sparc_kernels.train --compare --steps 2000 --out runs/scenes
  python -m sparc_kernels.train --data pictures/ --steps 1500 --out runs/pictures
  python -m sparc_kernels.train --resume runs/pictures
  torchrun --nproc-per-node 8 -m sparc_kernels.train --data pictures/ --batch-size 4096 --accumulate 4
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparc_kernels.train",
        description="Train an image tower and a text tower with the SPARC loss (or CLIP's, or SigLIP's), then measure "
        "retrieval and grounding and draw what each word looks at.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )

    def option(group: Any, name: str, text: str, kind: Any = None, **more: Any) -> None:
        value = getattr(TrainConfig, name)
        shown = "" if value is None else f" (default: {value})"
        more |= {} if "choices" in more else {"metavar": more.pop("metavar", "N")}
        group.add_argument(f"--{name.replace('_', '-')}", type=kind or type(value), help=text + shown, **more)

    run = parser.add_argument_group("the run")
    run.add_argument("--demo", action="store_true", help="the tiny preset on scenes with clip and sparc, in minutes")
    run.add_argument("--compare", action="store_true", help="clip and sparc, same seed and budget; one table")
    run.add_argument("--resume", metavar="DIR", help="continue a run from its last checkpoint, exactly")
    run.add_argument("--overwrite", action="store_true", help="replace a run that stands in --out")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    option(run, "out", "folder for checkpoints, logs, results and figures", metavar="DIR")
    option(run, "data", "'scenes', drawn on the fly, or a folder of pictures with .txt captions", metavar="X")
    option(run, "seed", "decides weights, scenes, order and crops")
    option(run, "eval_pairs", "held-out pairs (at most a fifth of a folder)")
    option(run, "checkpoint_every", "steps between checkpoints")

    model = parser.add_argument_group("model and loss")
    option(model, "preset", "sizes of the towers", choices=tuple(PRESETS))
    option(
        model,
        "loss",
        "sparc: local and global loss; clip: the global one alone; siglip: a sigmoid for each pair",
        choices=LOSSES,
    )
    option(
        model, "backend", "who computes the losses: auto, cuda (the local one), triton, cpu or eager", metavar="NAME"
    )
    option(model, "global_weight", "weight of the global loss", metavar="X")
    option(model, "local_weight", "weight of the local loss", metavar="X")
    option(model, "similarity_threshold", "sigma in [0, 1]; 1 / patches unless given", float, metavar="X")

    optimisation = parser.add_argument_group("optimisation (AdamW, linear warm-up, cosine)")
    option(optimisation, "steps", "steps of training")
    option(optimisation, "batch_size", "pairs per step, of all processes together; each is compared with all of them")
    option(
        optimisation, "accumulate", "chunks of a process's batch that pass the towers one by one; the loss compares all"
    )
    option(optimisation, "lr", "peak learning rate; 0 takes the preset's", metavar="X")
    option(optimisation, "min_lr", "rate at the end of the cosine", metavar="X")
    option(optimisation, "warmup_steps", "steps of linear warm-up")
    option(optimisation, "weight_decay", "of the matrices; the rest is free of it", metavar="X")
    option(optimisation, "beta2", "second moment of AdamW", metavar="X")
    option(optimisation, "clip_norm", "largest norm of the gradient", metavar="X")
    option(optimisation, "precision", "bf16: the towers run under autocast", choices=PRECISIONS)

    machine = parser.add_argument_group("machine")
    option(machine, "device", "where to train", choices=DEVICES)
    option(machine, "threads", "threads of torch on the CPU; as torch chooses unless given", int)
    option(machine, "workers", "processes that prepare batches, for each that trains; 0 = none")
    machine.add_argument(
        "--fsdp", action="store_true", help="under torchrun: spread the parameters over the processes (FSDP2), not DDP"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or with a message on standard error: 2 where the input is at fault, 1 where a file could not be
    written or another process of the run is gone, 128 and its number after a signal."""
    options = _parsed(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # any name of a file can be printed
    processes = ALONE
    try:
        with joined(options.pop("fsdp", False)) as processes:
            return run(options, processes)
    except (ValueError, TypeError, NotImplementedError, FloatingPointError) as error:
        return _end(processes, str(error), 2)
    except checkpoint.WriteError as error:
        whole = Path(error.filename).with_name(checkpoint.CHECKPOINT).exists()
        then = "; the last checkpoint is intact, --resume continues from it" if whole else ""
        return _end(processes, f"{error.filename!r} could not be written: {error.strerror}{then}", 1)
    except KeyboardInterrupt:
        if processes.first:
            print("\nstopped; --resume continues from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if not processes.joined:
            raise
        if why := lost(error):
            return _end(processes, f"another process is gone ({why}); --resume continues from the last checkpoint", 1)
        _end(processes, f"{type(error).__name__}: {error}", 1)
        raise


def _parsed(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The options given. Of several processes, one says what is wrong with them."""
    with redirect_stderr(io.StringIO()) if int(os.environ.get("RANK", 0)) else nullcontext():
        return vars(build_parser().parse_args(arguments))


def _end(processes: Processes, words: str, status: int) -> int:
    """Say what ended the run, if nobody else does."""
    if said := processes.told(words):
        print(f"error: {said}", file=sys.stderr)
    return status


def run(options: dict[str, Any], processes: Processes) -> int:
    """What the options ask for; of several processes, the first one reads, locks and writes the folder."""
    switches = ("demo", "compare", "overwrite", "quiet")
    demo, compare, overwrite, quiet = (options.pop(name, False) for name in switches)
    resumed: str | None = options.pop("resume", None)
    if options.get("data", "scenes") != "scenes":
        options["data"] = str(Path(options["data"]).resolve())
    if resumed is not None:
        if demo or overwrite or options.get("out", resumed) != resumed:
            raise ValueError("--resume continues one folder: leave out --demo, --overwrite and --out")
        config, compare = processes.from_first(lambda: _read_config(Path(resumed), options))
    else:
        config = _configure((DEMO if demo else {}) | options)
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
        _write_json(out / "config.json", config.to_dict() | {"compare": True})
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


def _configure(options: dict[str, Any]) -> TrainConfig:
    if "steps" in options and "warmup_steps" not in options:
        options = options | {"warmup_steps": min(TrainConfig.warmup_steps, options["steps"] // 4)}
    return TrainConfig(**options)


def _read_config(folder: Path, options: dict[str, Any]) -> tuple[TrainConfig, bool]:
    """What a run wrote, with the options given now on top, and whether it was a comparison."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no run to resume in {str(folder)!r}: it has no config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be read as a configuration: {error}") from error
    compare = bool(values.pop("compare", False))
    values["out"] = str(folder)
    options = {name: value for name, value in options.items() if name != "out"}
    return TrainConfig.from_dict(values | options), compare


def _claim(out: Path, overwrite: bool) -> None:
    """Make sure that no other run stands in ``out``; with ``overwrite``, remove what a run wrote there."""
    for folder in (out, *(out / loss for loss in LOSSES)):
        files = (folder / name for name in ("config.json", checkpoint.CHECKPOINT, LOG))
        standing = [path for path in files if path.exists()]
        if standing and not overwrite:
            raise ValueError(f"{str(out)!r} holds a run: give --resume {out}, --overwrite or another --out")
        for path in (*standing, folder / "results.json"):
            path.unlink(missing_ok=True)
        if standing and (folder / "tensorboard").is_dir():
            shutil.rmtree(folder / "tensorboard")


def _conclude(trainers: list[Trainer], data: Data, out: Path) -> None:
    """Evaluate, print the table, write results and figures."""
    results = {trainer.config.loss: evaluate(trainer, data) for trainer in trainers}
    for trainer in trainers:
        _write_json(trainer.run / "results.json", results[trainer.config.loss])
    if len(trainers) > 1:
        _write_json(out / "results.json", results)
    checkpoint.write_atomic(out / "results.md", table(results))
    print(f"\n{len(data.captions)} held-out pairs\n")
    print(table(results))
    _draw(out / "alignment.png", lambda path: draw_alignment(trainers, data, path))
    _draw(out / "curves.png", lambda path: draw_curves([trainer.run for trainer in trainers], list(results), path))
    for name in ("results.json", "results.md"):
        print(out / name)
    for trainer in trainers:
        steps, seconds = trainer.config.steps, trainer.seconds
        print(f"{trainer.run}: {steps} steps in {seconds:.0f} s")


def _draw(path: Path, draw: Callable[[Path], None]) -> None:
    """A figure, or why there is none: the results stand without it."""
    try:
        draw(path)
    except Exception as error:
        print(f"warning: {path} was not drawn ({type(error).__name__}: {error})", file=sys.stderr)
    else:
        print(path)


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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomic(path, json.dumps(values, indent=2))

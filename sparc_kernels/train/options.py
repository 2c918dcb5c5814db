"""The words of the command line."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from typing import Any

from sparc_kernels.train.config import DEVICES, EXCHANGES, LOSSES, PRECISIONS, PRESETS, TrainConfig

DATA = "'scenes', drawn on the fly; a folder of pictures with .txt captions; or webdataset shards, 's-{000..009}.tar'"
PROGRAM = "python -m sparc_kernels.train"
EXAMPLES = f"""\
examples:
  {PROGRAM} --demo
  {PROGRAM} --compare --steps 2000 --out runs/scenes
  {PROGRAM} --data pictures/ --steps 1500 --out runs/pictures
  {PROGRAM} --data 'shards-{{000..009}}.tar' --out runs/shards
  {PROGRAM} --config run.toml --lr 1e-3 --out runs/other
  {PROGRAM} --resume runs/pictures
  torchrun --nproc-per-node 8 -m sparc_kernels.train --data pictures/ --batch-size 4096 --accumulate 4

and of what has been trained (each has its own --help):
  {PROGRAM} evaluate runs/pictures --data others/
  {PROGRAM} align runs/pictures picture.png "words of a caption" --out map.png
"""


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The options given, and in ``command`` what to do. Of several processes, one says what is wrong with them."""
    parsers = {"evaluate": evaluate_parser, "align": align_parser}
    command = arguments[0] if arguments and arguments[0] in parsers else "train"
    parser = parsers.get(command, train_parser)()
    with redirect_stderr(io.StringIO()) if int(os.environ.get("RANK", 0)) else nullcontext():
        given = parser.parse_args(arguments if command == "train" else arguments[1:])
    return {"command": command, **vars(given)}


def train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train an image tower and a text tower with the SPARC loss (or one of its rivals), then measure "
        "retrieval and grounding and draw what each word looks at.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--demo", action="store_true", help="the tiny preset on scenes with clip and sparc, in minutes")
    run.add_argument("--compare", action=argparse.BooleanOptionalAction, help="clip and sparc, same seed and budget")
    run.add_argument(
        "--config", metavar="FILE", help="options from a .toml, or a run's config.json; those given here come first"
    )
    run.add_argument("--resume", metavar="DIR", help="continue a run from its last checkpoint, exactly")
    run.add_argument("--overwrite", action="store_true", help="replace a run that stands in --out")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    _option(run, "out", "folder for checkpoints, logs, results and figures", metavar="DIR")
    _option(run, "data", DATA, metavar="X")
    _option(run, "seed", "decides weights, scenes, order and crops")
    _option(run, "eval_pairs", "held-out pairs (at most a fifth of a folder)")
    _option(run, "checkpoint_every", "steps between checkpoints")
    _option(run, "log_every", "steps between rows of the log")

    model = parser.add_argument_group("model and loss")
    _option(model, "preset", "sizes of the towers", choices=tuple(PRESETS))
    _option(
        model,
        "loss",
        "sparc: local and global loss; clip: the global one alone; siglip: a sigmoid for each pair; filip: maxima "
        "over the tokens of all pairs; pacl: captions attend to patches; gloria: words do, and a global loss",
        choices=LOSSES,
    )
    _option(
        model, "backend", "who computes the losses: auto, cuda (the local one), triton, cpu or eager", metavar="NAME"
    )
    _option(model, "global_weight", "weight of the global loss in sparc", metavar="X")
    _option(model, "local_weight", "weight of the local loss in sparc", metavar="X")
    _option(model, "similarity_threshold", "sigma in [0, 1]; 1 / patches unless given", float, metavar="X")

    optimisation = parser.add_argument_group("optimisation (AdamW, linear warm-up, cosine)")
    _option(optimisation, "steps", "steps of training")
    _option(optimisation, "batch_size", "pairs per step, of all processes together; each is compared with all of them")
    _option(
        optimisation, "accumulate", "chunks of a process's batch that pass the towers one by one; the loss compares all"
    )
    _option(
        optimisation,
        "exchange",
        "ring: for clip and siglip, texts travel from process to process, none holds all (docs/distributed.md)",
        choices=EXCHANGES,
    )
    _option(optimisation, "lr", "peak learning rate; 0 takes the preset's", metavar="X")
    _option(optimisation, "min_lr", "rate at the end of the cosine", metavar="X")
    _option(optimisation, "warmup_steps", "steps of linear warm-up")
    _option(optimisation, "weight_decay", "of the matrices; the rest is free of it", metavar="X")
    _option(optimisation, "beta2", "second moment of AdamW", metavar="X")
    _option(optimisation, "clip_norm", "largest norm of the gradient", metavar="X")
    _option(optimisation, "precision", "bf16: the towers run under autocast", choices=PRECISIONS)

    machine = parser.add_argument_group("machine")
    _option(machine, "device", "where to train", choices=DEVICES)
    _option(machine, "threads", "threads of torch on the CPU; as torch chooses unless given", int)
    _option(machine, "workers", "processes that prepare batches, for each that trains; 0 = none")
    machine.add_argument(
        "--fsdp", action="store_true", help="under torchrun: spread the parameters over the processes (FSDP2), not DDP"
    )
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    parser = _asking("evaluate", "Measure retrieval, and grounding on scenes and masks, of a run's last checkpoint.")
    parser.add_argument(
        "--data",
        metavar="X",
        help="'scenes', a folder or shards, of which all pairs count; the run's held-out pairs if left",
    )
    parser.add_argument("--eval-pairs", type=int, metavar="N", help="at most so many pairs; as the run unless given")
    parser.add_argument("--out", metavar="DIR", help="folder for results and figure; RUN/evaluation unless given")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def align_parser() -> argparse.ArgumentParser:
    parser = _asking("align", "Draw where each word of a caption looks in a picture, by a run's last checkpoint.")
    parser.add_argument("picture", metavar="PICTURE", help="a picture that Pillow can read")
    parser.add_argument("caption", metavar="CAPTION", help="the words, as one argument")
    parser.add_argument("--out", metavar="FILE", default="map.png", help="the figure to write (default: map.png)")
    return parser


def _asking(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {command}", description=description)
    parser.add_argument("run", metavar="RUN", help="folder of a run, or of a comparison, whose runs are taken together")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch on the CPU")
    return parser


def _option(group: Any, name: str, text: str, kind: Any = None, **more: Any) -> None:
    """An option for a field of ``TrainConfig``."""
    value = getattr(TrainConfig, name)
    shown = "" if value is None else f" (default: {value})"
    more |= {} if "choices" in more else {"metavar": more.pop("metavar", "N")}
    group.add_argument(f"--{name.replace('_', '-')}", type=kind or type(value), help=text + shown, **more)

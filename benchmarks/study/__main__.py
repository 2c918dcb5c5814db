"""``python -m benchmarks.study`` (``make study``): train what docs/training.md reports, then write its section.

A run that has ended is kept in the folder and not repeated; one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure.machine import CHECKOUT
from benchmarks.study.page import Found, budget, section, with_section
from benchmarks.study.plots import draw
from benchmarks.study.runs import LOSSES, STUDIED, Subject, collect, train

PAGE = CHECKOUT / "docs" / "training.md"
STAMPS = "/usr/share/tuxpaint/stamps"
SUBJECTS = ("scenes", "stamps")
SCENE_STEPS, STAMP_STEPS = 600, 400


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    common_options(parser, tuple(STUDIED))
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="subjects (both)")
    parser.add_argument("--stamps", default=STAMPS, help="Debian's tuxpaint-stamps-default (%(default)s)")
    parser.add_argument("--steps", type=int, help=f"of each run ({SCENE_STEPS} on scenes, {STAMP_STEPS} on stamps)")
    return parser.parse_args(arguments)


def common_options(parser: argparse.ArgumentParser, losses: tuple[str, ...]) -> None:
    """What both commands of the study take; ``losses``: those that are meant unless others are named."""
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where the runs lie (%(default)s)")
    parser.add_argument("--losses", nargs="+", metavar="NAME", choices=tuple(LOSSES), default=losses)
    parser.add_argument("--seeds", type=int, default=3, help="at least this many, from 0 on (%(default)s)")
    parser.add_argument("--write", action="store_true", help="write docs/training.md and its plots from what has ended")
    parser.add_argument("--no-training", action="store_true", help="take what has ended, train nothing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 where the input is at fault; 128 and its number after a signal."""
    return ended(run, options(arguments))


def ended(run: Callable[[argparse.Namespace], int], chosen: argparse.Namespace) -> int:
    """The exit status of ``run``, and a sentence where the input is at fault."""
    try:
        if chosen.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {chosen.seeds}")
        return run(chosen)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(chosen: argparse.Namespace) -> int:
    subjects = [_subject(name, chosen) for name in chosen.only]
    seeds = range(chosen.seeds)
    if not chosen.no_training and (stopped := train(subjects, seeds, chosen.out)):
        return 128 + stopped
    found = [of for subject in subjects if (of := gather(subject, seeds, chosen.out)).runs]
    if not found:
        raise ValueError(f"no run has ended in {str(chosen.out)!r}")
    images = PAGE.parent / "images" if chosen.write else chosen.out
    for each in found:
        path = images / f"study_{each.subject}.svg"
        draw(each, path)
        each.image = f"images/{path.name}"
    if chosen.write:
        PAGE.write_text(with_section(PAGE.read_text(), found))
        print(PAGE)
    else:
        print(section(found))
    return 0


def gather(subject: Subject, seeds: Sequence[int], out: Path) -> Found:
    """What the finished runs on a subject gave."""
    found = Found(subject.name, "")
    for loss, seed, record in collect(subject, seeds, out):
        found.runs.setdefault(loss, {})[seed] = record
    if found.runs:
        found.what = budget(found)
    return found


def _subject(name: str, chosen: argparse.Namespace) -> Subject:
    if name == "scenes":
        return Subject(name, "scenes", chosen.steps or SCENE_STEPS, tuple(chosen.losses))
    if not Path(chosen.stamps).is_dir():
        raise ValueError(
            f"--stamps {chosen.stamps!r} is no folder: install Debian's tuxpaint-stamps-default, name the folder in "
            "which it was unpacked, or give --only scenes"
        )
    return Subject(name, str(Path(chosen.stamps).resolve()), chosen.steps or STAMP_STEPS, tuple(chosen.losses))


if __name__ == "__main__":
    sys.exit(main())

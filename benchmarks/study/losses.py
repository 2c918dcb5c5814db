"""``python -m benchmarks.study.losses`` (``make compare-losses``): all losses of the trainer on scenes, in one table.

Runs lie where those of the study do and are kept as they are: what `make study` has trained is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.study import pace
from benchmarks.study.__main__ import PAGE, SCENE_STEPS, common_options, ended, gather
from benchmarks.study.page import compared, with_comparison
from benchmarks.study.plots import COMPARED, draw
from benchmarks.study.runs import LOSSES, Subject, train

ROUNDS = 40
SMALL = (("batch_size", 4), ("eval_pairs", 4), ("device", "cpu"))


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.losses", description=__doc__.splitlines()[0])
    common_options(parser, tuple(LOSSES))
    parser.add_argument("--steps", type=int, default=SCENE_STEPS, help="of each run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of steps that are timed (%(default)s)")
    parser.add_argument("--small", action="store_true", help="two steps of 4 pairs: tries it, tells nothing")
    return parser.parse_args(arguments)


def run(chosen: argparse.Namespace) -> int:
    """Train what has not ended, time what has not been timed, then the table."""
    if chosen.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {chosen.rounds}")
    if chosen.small and chosen.write:
        raise ValueError("--small has nothing to write: leave out --write")
    if chosen.small:
        chosen.steps, chosen.seeds, chosen.rounds = 2, 1, 1
    subject = Subject("scenes", "scenes", chosen.steps, tuple(chosen.losses), SMALL if chosen.small else ())
    seeds = range(chosen.seeds)
    times = pace.kept(chosen.out)
    if not chosen.no_training:
        if stopped := train([subject], seeds, chosen.out):
            return 128 + stopped
        if pace.missing(times, subject.losses):
            times = pace.measured(subject, chosen.out, chosen.rounds)
    found = gather(subject, seeds, chosen.out)
    if not found.runs:
        raise ValueError(f"no run has ended in {str(chosen.out)!r}")
    path = (PAGE.parent / "images" if chosen.write else chosen.out) / "study_losses.svg"
    draw(found, path, COMPARED)
    found.image = f"images/{path.name}"
    if chosen.write:
        PAGE.write_text(with_comparison(PAGE.read_text(), found, times))
        print(PAGE)
    else:
        print(compared(found, times))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 where the input is at fault; 128 and its number after a signal."""
    return ended(run, options(arguments))


if __name__ == "__main__":
    sys.exit(main())

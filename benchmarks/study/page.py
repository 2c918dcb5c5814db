"""The study's section of docs/training.md: mean and spread of each measure, with the budget that they rest on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report.markers import between
from benchmarks.report.tables import table
from benchmarks.study.pace import Pace
from benchmarks.study.runs import CLIP
from sparc_kernels.train.data_scenes import KINDS
from sparc_kernels.train.report import ROWS

BEGIN, END = "<!-- study: make study -->", "<!-- end of study -->"
BEGIN_LOSSES, END_LOSSES = "<!-- losses: make compare-losses -->", "<!-- end of losses -->"
# What all losses are compared by, as they are in ``train.report.ROWS``.
GROUNDING = (
    ("cosine_pointing", "chance", "words whose patch of largest cosine is right"),
    *((f"cosine_pointing_{kind}", "chance", f"of the {kind} words") for kind in KINDS),
)
R1 = ("image_to_text_r1", "text_to_image_r1")
PAIRED = ("pointing", "iou", "image_to_text_r1")  # measures whose gain over CLIP, seed by seed, has a row


@dataclass
class Found:
    """What the runs on one subject gave: ``runs[loss][seed]`` is a record of ``runs.train``."""

    subject: str
    what: str
    runs: dict[str, dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    image: str | None = None

    def values(self, loss: str, measure: str) -> list[float]:
        """One for each seed, in their order."""
        return [run["results"][measure] for _, run in sorted(self.runs[loss].items())]

    def gains(self, loss: str, measure: str) -> list[float]:
        """Over CLIP with the same seed, for the seeds that both have."""
        own, clip = self.runs[loss], self.runs.get(CLIP, {})
        return [own[s]["results"][measure] - clip[s]["results"][measure] for s in sorted(own.keys() & clip.keys())]


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Mean and standard deviation (n - 1) in percent: ``61.5 ± 2.0``. Of one value, it alone."""
    mean = f"{100 * statistics.mean(values):{'+' if signed else ''}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def measures(found: Found, rows: Sequence[tuple[str, str, str]] = ROWS) -> list[tuple[str, str, str]]:
    """(name, chance's name, words) of those of the rows that these runs have."""
    first = next(iter(next(iter(found.runs.values())).values()))["results"]
    return [row for row in rows if row[0] in first]


def of_subject(found: Found) -> str:
    rows = [
        [words.strip(), spread(_chances(found, chance)), *(spread(found.values(loss, name)) for loss in found.runs)]
        for name, chance, words in measures(found)
    ]
    if CLIP in found.runs:
        rows += [
            [f"gain over CLIP, {words}", "", *(_gain(found, loss, name) for loss in found.runs)]
            for name, _, words in measures(found)
            if name in PAIRED
        ]
    head = ["%", "chance", *(f"{loss} (n = {len(seeds)})" for loss, seeds in found.runs.items())]
    return "\n\n".join([f"**{found.subject}.** {found.what}", table(head, rows), *_image(found)])


def budget(found: Found) -> str:
    """What the runs cost, as their records have it."""
    records = [record for runs in found.runs.values() for record in runs.values()]
    first, config = records[0], records[0]["config"]
    pairs = f"{first['train_pairs']:,} pairs {'drawn' if config['data'] == 'scenes' else 'to train on'}"
    machines = sorted({f"{record['machine']['device']}, torch {record['machine']['torch']}" for record in records})
    took = duration(statistics.median(record["seconds"] for record in records))
    return (
        f"{len(records)} runs of {config['steps']} steps of {config['batch_size']} pairs, preset `{config['preset']}` "
        f"with {first['parameters'] / 1e6:.2f} M parameters; {pairs}, {first['heldout_pairs']:,} held out. "
        f"{took} of training each on {'; '.join(machines)}."
    )


def duration(seconds: float) -> str:
    """A class, not a time: machines and what else runs on them differ."""
    limits = ((60, "Less than a minute"), (600, "Minutes"), (3600, "Up to an hour"))
    return next((words for limit, words in limits if seconds < limit), "Hours")


def section(subjects: Sequence[Found]) -> str:
    """All of it, between the markers."""
    return "\n\n".join([_lead("study"), *(of_subject(found) for found in subjects)])


def with_section(document: str, subjects: Sequence[Found]) -> str:
    return between(document, BEGIN, END, section(subjects))


def compared(found: Found, times: Pace | None) -> str:
    """All losses in one table, a row each."""
    columns = [*GROUNDING, ("pointing", "chance", ""), ("iou", "chance", ""), *(row for row in ROWS if row[0] in R1)]
    words = ["words", *KINDS, "by products", "IoU, by products", "R@1 to text", "R@1 to image"]
    head = ["%", "n", *words, "words, gain over CLIP", "R@1 by own scores", "step over CLIP's", "loss's share of it"]
    chance = ["chance", "", *(spread(_chances(found, of)) for _, of, _ in columns), "", "", "", ""]
    rows = [
        [
            loss,
            str(len(found.runs[loss])),
            *(spread(found.values(loss, name)) for name, _, _ in columns),
            _gain(found, loss, "cosine_pointing"),
            _own(found, loss),
            *(("", "") if times is None else times.cells(loss)),
        ]
        for loss in found.runs
    ]
    said = [] if times is None else [times.said()]
    return "\n\n".join([_lead("compare-losses"), found.what, table(head, [chance, *rows]), *said, *_image(found)])


def with_comparison(document: str, found: Found, times: Pace | None) -> str:
    return between(document, BEGIN_LOSSES, END_LOSSES, compared(found, times))


def _lead(target: str) -> str:
    return (
        f"Written by `make {target}`; edits here are lost. Mean ± standard deviation over n seeds, which decide "
        "weights, data and order; a gain is that over CLIP with the same seed."
    )


def _image(found: Found) -> list[str]:
    return [] if found.image is None else [f"![{found.subject}: each seed, and mean and spread]({found.image})"]


def _own(found: Found, loss: str) -> str:
    """R@1 to text and to image by the scores of the loss; nothing for a loss that has none but cosines."""
    names = [f"own_{name}" for name in R1]
    first = next(iter(found.runs[loss].values()))["results"]
    return "; ".join(spread(found.values(loss, name)) for name in names) if names[0] in first else ""


def _chances(found: Found, name: str) -> list[float]:
    """Chance is the data's: the same for all losses of a seed."""
    return found.values(next(iter(found.runs)), name)


def _gain(found: Found, loss: str, name: str) -> str:
    return "" if loss == CLIP or not found.gains(loss, name) else spread(found.gains(loss, name), signed=True)

"""The table of a run, or of two runs side by side."""

from __future__ import annotations

from collections.abc import Mapping

from sparc_kernels.train.data_scenes import KINDS

# (name of the result, name of its chance level, what the row says)
ROWS = (
    ("image_to_text_r1", "chance_r1", "retrieval, image to text, R@1"),
    ("image_to_text_r5", "chance_r5", "retrieval, image to text, R@5"),
    ("text_to_image_r1", "chance_r1", "retrieval, text to image, R@1"),
    ("text_to_image_r5", "chance_r5", "retrieval, text to image, R@5"),
    ("own_image_to_text_r1", "chance_r1", "retrieval by the loss's own scores, image to text, R@1"),
    ("own_text_to_image_r1", "chance_r1", "retrieval by the loss's own scores, text to image, R@1"),
    ("pointing", "chance", "grounding, words whose strongest patch is right"),
    *((f"pointing_{kind}", "chance", f"  of the {kind} words") for kind in KINDS),
    ("iou", "chance", "grounding, mean IoU with the word's patches"),
)


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, one column per run: ``{"clip": {...}, "sparc": {...}}``, with the chance levels first."""
    first = next(iter(results.values()))
    head = ["", "chance", *results]
    lines = [
        [text, _percent(first[chance]), *(_percent(run[name]) if name in run else "" for run in results.values())]
        for name, chance, text in ROWS
        if any(name in run for run in results.values())
    ]
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    rule = "|" + "|".join(_rule(width, place) for place, width in enumerate(widths)) + "|"
    rendered = [_line(head, widths), rule, *(_line(line, widths) for line in lines)]
    return "\n".join(rendered) + "\n" + _notes(first)


def _notes(first: Mapping[str, float]) -> str:
    if "words" not in first:
        return ""
    what, things = "words with masks", "the masks of its picture"
    if any(f"pointing_{kind}" in first for kind in KINDS):
        what, things = "words of held-out scenes", "the scene's shapes"
    return (
        f"\n{first['words']:.0f} {what}. Chance in grounding: a patch drawn at random, "
        f"which is also the IoU of a uniform map;\na patch drawn from those of all {things} is right "
        f"for {_percent(first['object_chance'])} of the words. A word's map,\nfor the IoU: the patches with at "
        "least half of its largest weight.\n"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]
    return "| " + " | ".join(padded) + " |"


def _rule(width: int, place: int) -> str:
    return "-" * (width + 1) + (":" if place else "-")

"""Sections of hand-written pages that a program writes."""

from __future__ import annotations


def between(document: str, begin: str, end: str, text: str) -> str:
    """The document with ``text`` between its two markers, each of which it holds once."""
    before, rest = document.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{text}\n{end}{after}"

"""SIGINT and SIGTERM end a run between two steps."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Numbers of the ``STOPPING`` signals that came during the block, which they do not break off.

    A second one changes nothing: ``timeout`` and batch systems send each to the process and again to its group.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int = 0) -> None:
    """For a loader's worker: the trainer, which got the signal too, still needs its batch and then ends it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def killed_at_exit() -> Iterator[None]:
    """Processes started in the block do not outlive this one, even where an error has kept their loader alive.

    Python sends such processes SIGTERM and then waits for them: for ever, if they ignore it.
    """
    before = set(multiprocessing.active_children())
    yield
    children = set(multiprocessing.active_children()) - before

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would make an error of their end
        for child in children:
            child.kill()

    if children:
        atexit.register(kill)

"""TensorBoard's curves, which cost a run nothing when they fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


class Board:
    """A SummaryWriter until its first failure, which is said; nothing after it. ``log.csv`` holds the same numbers."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._writer: SummaryWriter | None = None
        with self._forgiven():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, scalars: Mapping[str, Any], step: int) -> None:
        with self._forgiven():
            for name, value in scalars.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._forgiven():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever its thread ran into comes out of the next call
            self._writer = None
            _log.warning("warning: no more curves for TensorBoard (%s: %s)", type(error).__name__, error)

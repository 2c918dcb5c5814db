"""What a run writes and shows of its steps: the CSV log, TensorBoard's curves, the progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparc_kernels.train.board import Board
from sparc_kernels.train.checkpoint import CsvLog

LOG = "log.csv"
OF_STEP = ("loss", "global_loss", "local_loss", "logit_scale", "logit_bias", "lr", "grad_norm")
TIMES = ("seconds", "wall_seconds", "pairs_per_second", "loss_share")  # what differs between two runs of one curve
COLUMNS = ("step", *OF_STEP, *TIMES)


class Record:
    """All three, from the step after ``step`` on. Of several processes, one has a record."""

    def __init__(self, run: Path, step: int, steps: int, name: str, progress: bool) -> None:
        self._closing = ExitStack()  # each is closed, whichever of them fails
        self._log = CsvLog(run / LOG, COLUMNS, step)
        self._closing.callback(self._log.close)
        self._board = Board(run / "tensorboard", step + 1)
        self._closing.callback(self._board.close)
        self._bar = tqdm(total=steps, initial=step, desc=name, unit="step", disable=not progress)
        self._closing.callback(self._bar.close)

    def write(self, row: Mapping[str, Any]) -> None:
        """A row of the log: a value for each of the ``COLUMNS``, "" for none."""
        self._log.write(dict(row))
        self._board.write({name: row[name] for name in COLUMNS[1:] if row[name] != ""}, row["step"])

    def show(self, row: Mapping[str, Any]) -> None:
        """A step, whether or not it has a row in the log."""
        self._bar.update()
        self._bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['lr']:.1e}", refresh=False)

    def sync(self) -> None:
        """The log reaches the disk: called before the checkpoint that counts on it."""
        self._log.sync()

    def close(self) -> None:
        self._closing.close()

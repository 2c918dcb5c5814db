"""Checkpoints that are whole or absent, and the CSV log that follows them."""

from __future__ import annotations

import csv
import io
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

CHECKPOINT = "checkpoint.pt"
VERSION = 1


class WriteError(OSError):
    """``filename`` could not be written. What is written whole stands as it was before."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures of the disk in the block become a ``WriteError`` that names ``path``.

    torch.save tells them as a RuntimeError about positions, with the OSError behind it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise WriteError(cause.errno, cause.strerror or str(cause), str(path)) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces ``path`` in one step when the block ends: a crash leaves the old one whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # names of files may be no UTF-8


def save(run: Path, state: dict[str, Any]) -> None:
    with atomic_file(run / CHECKPOINT) as file:
        torch.save({"version": VERSION, **state}, file)
    for left in run.glob(f".{CHECKPOINT}.*.tmp"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)


def load(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run, on the CPU; loads tensors and plain values only, never code."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"no checkpoint in {str(run)!r}: {CHECKPOINT} does not exist there")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{str(path)!r} cannot be read as a checkpoint: {why}") from error
    if not isinstance(state, dict) or "version" not in state:
        raise ValueError(f"{str(path)!r} is no checkpoint of this trainer")
    if state.get("version") != VERSION:
        raise ValueError(f"{str(path)!r} has version {state.get('version')}, expected {VERSION}")
    return state


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a step on ``device`` might draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)  # older checkpoints hold all devices; theirs was the first
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


def whole_state(state: Any) -> Any:
    """A state of a module or optimizer with the tensors that lie in pieces in all processes (FSDP2) put together.

    All processes have to call it together. What is put together is on the CPU, and one tensor at a time elsewhere.
    """
    if isinstance(state, dict):
        return {name: whole_state(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole_state(value) for value in state)
    return state.full_tensor().cpu() if hasattr(state, "full_tensor") else state


def optimizer_state(state: dict[str, Any], parameters: list[torch.nn.Parameter]) -> dict[str, Any]:
    """A whole state of an optimizer as its ``parameters`` lie here: of sharded ones each process takes its piece.

    In checkpoints from before the logit scales had a dimension, theirs are given it.
    """
    moments = {
        number: {
            name: value if name == "step" else _laid_out(value, parameters[number]) for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def _laid_out(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    value = value.reshape(parameter.shape)
    if not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


class CsvLog:
    """One row per step. On resume, rows past the checkpoint (and a torn last row) are dropped."""

    def __init__(self, path: Path, columns: tuple[str, ...], keep_steps: int) -> None:
        self.path, self.columns = path, columns
        kept = [row for row in read_log(path) if int(row["step"]) <= keep_steps] if keep_steps else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(path, text.getvalue())
        with writing(path):
            self._file: IO[str] = open(path, "a", encoding="utf-8", newline="", buffering=1)  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, row: dict[str, Any]) -> None:
        with writing(self.path):
            self._writer.writerow(row)

    def sync(self) -> None:
        """Rows so far reach the disk: called before the checkpoint that counts on them."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self.path):
            self._file.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV log; none if there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))

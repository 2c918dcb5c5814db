"""One process per run folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".lock-holder"


@contextmanager
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """The folders, made where they are missing, belong to this process for the block.

    The system drops the locks of a process that ends, however it ends; the holder's name may be left behind then.
    """
    with ExitStack() as stack:
        for folder in folders:
            holder = folder / HOLDER
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(folder / LOCK, timeout=0))
                stack.callback(holder.unlink, missing_ok=True)
                holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            except Timeout:
                raise ValueError(
                    f"{str(folder)!r} is in use by {_read(holder)}: wait until it ends, or give another --out"
                ) from None
            except OSError as error:
                raise ValueError(f"cannot write into {str(folder)!r}: {error.strerror or error}") from error
        yield


def _read(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"

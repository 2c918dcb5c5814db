"""Processes of this machine that run cases together, once per number of ranks; ``python -m tests.distributed.world``.

Every case has a process group of its own, so that one that fails half way through its exchanges does not disturb the
next. What a rank found goes into the store: nothing, or a traceback.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

CHECKOUT = Path(__file__).parent.parent.parent
TIMEOUT = datetime.timedelta(seconds=30)


class Here(NamedTuple):
    """A case as one rank sees it."""

    group: dist.ProcessGroup
    rank: int
    size: int


Case = Callable[[Here], None]
_CaseT = TypeVar("_CaseT", bound=Case)


class Cases(dict[str, Case]):
    """Those of a module, which calls them ``CASES``."""

    def add(self, name: str) -> Callable[[_CaseT], _CaseT]:
        def keep(function: _CaseT) -> _CaseT:
            assert name not in self
            self[name] = function
            return function

        return keep


def cases_of(module: str) -> Cases:
    """By name."""
    found: Cases = importlib.import_module(module).CASES
    return found


def run(size: int, module: str, timeout: float = 300.0) -> dict[str, str]:
    """What went wrong, by case: nothing or a traceback of each rank that failed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.distributed.world", folder, str(size), module]
        logs = [Path(folder, f"log{rank}") for rank in range(size)]
        ranks = []
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                ranks.append(
                    subprocess.Popen([*command, str(rank)], env=environment, cwd=CHECKOUT, stdout=out, stderr=out)
                )
        try:
            codes = [process.wait(timeout) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        assert not any(codes), f"ranks ended with {codes}: " + "".join(log.read_text()[-3000:] for log in logs)
        found: dict[str, str] = {}
        for rank in range(size):
            for name, text in json.loads(Path(folder, f"result{rank}").read_text()).items():
                found[name] = found.get(name, "") + (f"rank {rank}: {text}\n" if text else "")
        return found


def main(folder: str, size: int, module: str, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    found: dict[str, str] = {}
    for index, (name, function) in enumerate(cases_of(module).items()):
        here = Here(dist.new_group(timeout=TIMEOUT), rank, size)
        try:
            function(here)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
        store.set(f"done-{index}-{rank}", "")
        store.wait([f"done-{index}-{other}" for other in range(size)], datetime.timedelta(seconds=120))
    Path(folder, f"result{rank}").write_text(json.dumps(found))
    sys.stdout.flush()
    store.set(f"end-{rank}", "")
    store.wait([f"end-{other}" for other in range(size)], datetime.timedelta(seconds=120))
    os._exit(0)  # gloo's threads now and then abort a process that ends in peace, with PyTorch alone as well


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

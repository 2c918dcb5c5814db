"""One of two ranks, the second of which is killed; ``python -m tests.distributed.lost FOLDER RANK WHEN``."""

from __future__ import annotations

import datetime
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sparc_kernels.functional import contrastive_loss


def main(folder: str, rank: int, when: str) -> None:
    store = dist.FileStore(str(Path(folder, "store")), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=3))
    x = torch.randn(4, 8, requires_grad=True)
    contrastive_loss(x, x, group="world").backward()
    losses = [contrastive_loss(x, x, group="world", exchange=exchange) for exchange in ("gather", "ring")]
    if rank == 1:
        if when == "silent":  # alive, but elsewhere
            store.wait(["seen"], datetime.timedelta(seconds=30))
        os.kill(os.getpid(), signal.SIGKILL)
    for loss in losses:
        try:
            if when != "backward":
                contrastive_loss(x, x, group="world")
            loss.backward()
        except RuntimeError as error:
            print(error, flush=True)
    store.set("seen", "")
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

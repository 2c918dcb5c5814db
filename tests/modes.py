"""What the tests of users' modes share: counting compiled graphs, and watching what backward ops return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


def graphs(function: Callable[..., Tensor], calls: list[tuple[Any, ...]], dynamic: bool | None) -> list[int]:
    """How many graphs there are after each call; each has to give what the function gives."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for arguments in calls:
        torch.testing.assert_close(compiled(*arguments), function(*arguments), **CLOSE)
        counts.append(counter.frame_count)
    return counts


class GradientsWritten(TorchDispatchMode):
    """Notes, for each call of an op, whether its first two results hold anything."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.calls: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.op in str(func):
            self.calls.append((result[0].numel() > 0, result[1].numel() > 0))
        return result

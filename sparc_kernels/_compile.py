"""What ``torch.compile`` has to know of plain Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def constant_when_compiled(function: CallableT) -> CallableT:
    """What ``torch.compiler.assume_constant_result`` does, without the second that importing its compiler takes."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function

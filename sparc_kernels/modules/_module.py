"""What all modules share."""

from __future__ import annotations

from torch import nn


class Module(nn.Module):
    """A module that says why ``torch.jit.script`` cannot have it, whose own errors are about lines of this library."""

    def __prepare_scriptable__(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted by torch.jit: use torch.compile or torch.export"
        )

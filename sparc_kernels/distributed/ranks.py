"""Which processes compute a loss together, and what happens to their gradients afterwards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from sparc_kernels._compile import constant_when_compiled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Group: TypeAlias = "str | ProcessGroup | None"
GRADIENTS = ("mean", "sum")


class Ranks(NamedTuple):
    """The processes of a group, as one of them sees it; more than one."""

    group: str
    """Its name, as functional collectives take it."""
    size: int
    rank: int
    """Of this process, in the group."""
    call: str
    """The function that the user called, for errors."""
    averaged: bool
    """Gradients are averaged over ranks afterwards, not summed."""

    @property
    def factor(self) -> int:
        """What the gradients of this rank's share are multiplied by."""
        return self.size if self.averaged else 1


def check_gradients(gradients: object) -> None:
    """What happens to the gradients of the ranks, by name."""
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be {' or '.join(map(repr, GRADIENTS))}, got {gradients!r}")


def check_group(group: object) -> None:
    """``"world"``, a process group or None, whether or not there is one yet."""
    if group is None:
        return
    if not torch.distributed.is_available():
        raise ValueError(f"group must be None: this PyTorch is built without torch.distributed, got {group!r}")
    if isinstance(group, str) and group != "world":
        raise ValueError(f"group must be 'world', a ProcessGroup or None, got {group!r}")
    if not isinstance(group, (str, torch.distributed.ProcessGroup)):
        hint = ": pass mesh.get_group()" if type(group).__name__ == "DeviceMesh" else ""
        raise TypeError(f"group must be 'world', a ProcessGroup or None, got {type(group).__name__}{hint}")


def ranks_of(group: Group, gradients: str, call: str) -> Ranks | None:
    """The processes of ``group``; None where this process is alone.

    Raises:
        TypeError, ValueError: no group, one that is not there, or one that this process is not in.
    """
    check_gradients(gradients)
    if group is None:
        return None
    name, size, rank = _looked_up(group)
    return None if size == 1 else Ranks(name, size, rank, call, gradients == "mean")


@constant_when_compiled
def _looked_up(group: Any) -> tuple[str, int, int]:
    """Name, size, rank."""
    check_group(group)
    if not torch.distributed.is_initialized():
        raise ValueError(
            f"group={group!r} needs a process group: call torch.distributed.init_process_group first, or pass None"
        )
    found = torch.distributed.group.WORLD if isinstance(group, str) else group
    rank = torch.distributed.get_rank(found)
    if rank < 0:
        raise ValueError(f"group must hold this process, rank {torch.distributed.get_rank()} of the world, got without")
    importlib.import_module("torch.distributed._functional_collectives")  # their fake implementations, for compilers
    assert found is not None
    return str(found.group_name), torch.distributed.get_world_size(found), rank

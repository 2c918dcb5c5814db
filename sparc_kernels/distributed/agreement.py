"""Ranks agree, before anything larger is exchanged, that they make the same call, and on how many rows travel.

One exchange of a few integers opens every call, so that ranks stay in step whatever shapes they come with: how many
items a rank has, how many positions it takes for granted, and facts that all have to share. On the CPU every rank reads
them in every call. On a GPU that would make the host wait: there a rank reads them where its facts are new to it, or
where its batch has another size than the positions that were agreed, and otherwise takes the agreement for granted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sparc_kernels._compile import constant_when_compiled
from sparc_kernels.distributed.collectives import gather, gathered
from sparc_kernels.distributed.ranks import GRADIENTS, Ranks
from sparc_kernels.distributed.spread import Spread

# What all ranks have to share: a number, or one of some words.
Fact: TypeAlias = "int | bool | float | tuple[str, Sequence[str]]"
MOST_FACTS = 28
_CAPACITY, _COUNT, _CALL, _FACTS = range(4)
_WIDTH = _FACTS + MOST_FACTS

# On the host: positions per rank that a group agreed on for a call, the last ones and those of each set of facts.
_last: dict[tuple[str, str], int] = {}
_agreed: dict[tuple[str, str, tuple[int, ...]], int] = {}


@constant_when_compiled
def _bits(number: float) -> int:
    """Those of a float64, as an int64."""
    return int(struct.unpack("q", struct.pack("d", number))[0])


class Facts(NamedTuple):
    """Facts as integers."""

    names: str
    """Separated by ``;``, each with the words that its values stand for behind ``=``; ``float``: they are its bits."""
    values: tuple[int, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Fact], ranks: Ranks) -> Facts:
        """Those of a call, and what happens to its gradients."""
        names, values = [], []
        for name, fact in {**facts, "gradients": (GRADIENTS[not ranks.averaged], GRADIENTS)}.items():
            if isinstance(fact, tuple):
                names.append(f"{name}={'/'.join(fact[1])}")
                values.append(list(fact[1]).index(fact[0]))
            elif isinstance(fact, float):
                names.append(f"{name}=float")
                values.append(_bits(fact))
            else:
                names.append(f"{name}=False/True" if isinstance(fact, bool) else name)
                values.append(int(fact))
        assert len(names) <= MOST_FACTS
        return cls(";".join(names), tuple(values))


class _Call(NamedTuple):
    """What one rank says."""

    group: str
    size: int
    rank: int
    call: str
    facts: Facts
    here: int

    @property
    def key(self) -> tuple[str, str, tuple[int, ...]]:
        return self.group, self.call, self.facts.values

    def told(self, capacity: int, device: torch.device) -> Tensor:
        """[1, _WIDTH] int64."""
        facts = (*self.facts.values, *(0,) * (MOST_FACTS - len(self.facts.values)))
        return _on_device((capacity, self.here, zlib.crc32(self.call.encode()), *facts), device)


@lru_cache(maxsize=256)
def _on_device(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, since a copy from the host makes it wait."""
    return torch.tensor([values], device=device)


def _word(name: str, value: int) -> str:
    _, is_word, words = name.partition("=")
    if words == "float":
        return str(struct.unpack("d", struct.pack("q", value))[0])
    return words.split("/")[value] if is_word else str(value)


def _check(call: _Call, table: list[list[int]]) -> None:
    """
    Raises:
        ValueError: with the first rank that does not come with what most do, and the argument.
    """
    if any(row[_CALL] != table[call.rank][_CALL] for row in table):
        others = [rank for rank, row in enumerate(table) if row[_CALL] != table[call.rank][_CALL]]
        raise ValueError(
            f"group: all ranks must make the same call, got another than {call.call} from rank {others[0]}"
        )
    for place, name in enumerate(call.facts.names.split(";")):
        values = [row[_FACTS + place] for row in table]
        if len(set(values)) == 1:
            continue
        usual = max(values, key=values.count)
        rank = next(rank for rank, value in enumerate(values) if value != usual)
        argument = name.partition("=")[0]
        raise ValueError(
            f"{argument} must be the same on all ranks, got {_word(name, values[rank])} on rank {rank} and "
            f"{_word(name, usual)} on rank {values.index(usual)}"
        )


def _capacity(call: _Call, table: list[list[int]], argument: str) -> int:
    """What the table makes of the positions that ranks take for granted (0: open)."""
    counts = [row[_COUNT] for row in table]
    most = max(1, *counts)
    granted = [row[_CAPACITY] for row in table]
    closed = [rank for rank, value in enumerate(granted) if value]
    if not closed:
        return most
    known = granted[closed[0]]
    for rank in closed:
        if granted[rank] != known:
            raise ValueError(
                f"{argument} must be as many on all ranks where the number is compiled in, got {known} on rank "
                f"{closed[0]} and {granted[rank]} on rank {rank}: make the first call without torch.compile, with the "
                "largest batches"
            )
    if most > known:
        rank = counts.index(most)
        raise ValueError(
            f"{argument} must be at most {known}, which the ranks agreed on, got {most} on rank {rank}: make the first "
            "call with the largest batches"
        )
    return known


def _announced(own: Tensor, call: _Call, granted: int) -> tuple[Tensor, int]:
    """Counts [W] on the device, and the positions per rank."""
    reads = not _waits_for(own) or granted == 0 or call.key not in _agreed
    if reads and own.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{call.call} must be called once, with batches of this size, before it is captured")
    table = gathered(call.told(granted, own.device), Ranks(*call[:4], True), "opened the call")
    if reads:
        rows = table.tolist()
        _check(call, rows)
        granted = _capacity(call, rows, call.facts.names.partition(" ")[0])
        _agreed[call.key] = _last[call.key[:2]] = granted
    return table[:, _COUNT].contiguous(), granted


def _waits_for(own: Tensor) -> bool:
    """Whether the host has to wait for the device before it can read what was exchanged."""
    return own.device.type != "cpu"


def _open_or_granted(own: Tensor, call: _Call) -> int:
    """Positions that this rank takes for granted in an eager call; 0: the ranks find them together."""
    if not _waits_for(own):
        return 0
    known = _agreed.get(call.key, 0)
    # Smaller batches fit; one of another kind, such as an evaluation's, asks again rather than travel as padding.
    return known if known // 2 <= call.here <= known else 0


def _announce(
    own: Tensor, capacity: int, facts: Sequence[int], names: str, size: int, rank: int, group: str, name: str
) -> tuple[Tensor, Tensor]:
    counts, _ = _announced(own, _Call(group, size, rank, name, Facts(names, tuple(facts)), own.shape[0]), capacity)
    padded = own.new_zeros((capacity, *own.shape[1:]))
    padded[: own.shape[0]] = own
    return padded, counts


def _fake(
    own: Tensor, capacity: int, facts: Sequence[int], names: str, size: int, rank: int, group: str, name: str
) -> tuple[Tensor, Tensor]:
    return own.new_empty((capacity, *own.shape[1:])), own.new_empty((size,), dtype=torch.int64)


# Opaque to compilers, which therefore keep the exchange; that it hands out the rows to be sent keeps it before them.
_QUALIFIED = "sparc_kernels::announce"
torch.library.define(
    _QUALIFIED,
    "(Tensor own, SymInt capacity, SymInt[] facts, str names, int size, int rank, str group, str call) "
    "-> (Tensor padded, Tensor counts)",
)
torch.library.impl(_QUALIFIED, ("CPU", "CUDA"), _announce)
torch.library.register_fake(_QUALIFIED, _fake)


@constant_when_compiled
def _last_capacity(group: str, call: str) -> int:
    return _last.get((group, call), 0)


def _compiled(own: Tensor, capacity: int, facts: Facts, ranks: Ranks) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.sparc_kernels.announce(
        own, capacity, facts.values, facts.names, ranks.size, ranks.rank, ranks.group, ranks.call
    )
    return found


def spread_over(own: Tensor, facts: Mapping[str, Fact], ranks: Ranks) -> tuple[Tensor, Spread]:
    """The rows of all ranks in one tensor [size, ...], and where they are; differentiable in ``own`` [n, ...].

    The first of the facts begins with the name of the argument that ``own`` is.

    Raises:
        ValueError: a rank came with another call, or another fact, than the rest: which, and which argument. On all
            ranks alike (on a GPU: in the first call with these facts).
    """
    padded, spread = _opened(own, facts, ranks)
    if padded is None:
        padded = F.pad(own.detach(), (*(0, 0) * (own.dim() - 1), 0, spread.capacity - spread.here))
    return gather(own, padded, ranks), spread


def spread_without_exchange(own: Tensor, facts: Mapping[str, Fact], ranks: Ranks) -> Spread:
    """As :func:`spread_over`, where the rows of all ranks are, for an exchange of its own. In a compiled graph that has
    to depend on the counts, which keeps it behind the agreement."""
    return _opened(own, facts, ranks)[1]


def _opened(own: Tensor, facts: Mapping[str, Fact], ranks: Ranks) -> tuple[Tensor | None, Spread]:
    """The rows to be sent, where a compiler has to see them behind the agreement; and where all are."""
    encoded, count = Facts.of(facts, ranks), own.shape[0]
    if torch.compiler.is_compiling():
        known = _last_capacity(ranks.group, ranks.call)
        capacity = known if known >= count else count
        padded, counts = _compiled(own.detach(), capacity, encoded, ranks)
        return padded, Spread(ranks, capacity, count, counts)
    call = _Call(ranks.group, ranks.size, ranks.rank, ranks.call, encoded, count)
    counts, capacity = _announced(own, call, _open_or_granted(own, call))
    return None, Spread(ranks, capacity, count, counts)


def agreed(own: Tensor, facts: Facts, ranks: Ranks) -> Tensor:
    """``own`` [n, ...], of the same n on all ranks, after they have agreed on the facts.

    Raises:
        ValueError: as :func:`spread_over`.
    """
    if torch.compiler.is_compiling():
        return _compiled(own, own.shape[0], facts, ranks)[0]
    _announced(own, _Call(ranks.group, ranks.size, ranks.rank, ranks.call, facts, own.shape[0]), own.shape[0])
    return own

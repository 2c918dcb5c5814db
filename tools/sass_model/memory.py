"""Memory as a block of the device sees it, and what its accesses cost: wavefronts of shared memory, sectors of L2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Lanes = np.ndarray[Any, Any]

LANES = 32
BANKS = 32  # of shared memory, 4 bytes wide each: CUDA C++ Programming Guide, "Shared Memory" of compute capability 5.x
LINE, SECTOR = 128, 32  # bytes
GLOBAL_BASE = 0x7000_0000_0000


class Global:
    """Tensors by name in one piece of memory, 256 bytes apart at least, as an allocator lays them."""

    def __init__(self, tensors: Mapping[str, Lanes]) -> None:
        self.offsets: dict[str, int] = {}
        self._tensors = dict(tensors)
        used = 0
        for name, tensor in tensors.items():
            self.offsets[name] = used
            used += (tensor.nbytes + 511) // 256 * 256
        self.bytes = np.zeros(used, np.uint8)
        for name, tensor in tensors.items():
            raw = np.ascontiguousarray(tensor).view(np.uint8).reshape(-1)
            self.bytes[self.offsets[name] : self.offsets[name] + raw.size] = raw
        self.read = np.zeros(used // SECTOR, bool)  # sectors that were read before they were written,
        self.written = np.zeros(used // SECTOR, bool)  # and those that were written

    def compulsory(self, *, but: str | None = None) -> tuple[int, int]:
        """Bytes of memory that must be read and written, in sectors; of all tensors but one."""
        counted = np.ones(len(self.read), bool)
        if but in self.offsets:
            start = self.offsets[but] // SECTOR
            counted[start : start + -(-self._tensors[but].nbytes // SECTOR)] = False
        return SECTOR * int((self.read & counted).sum()), SECTOR * int((self.written & counted).sum())

    def addresses(self) -> dict[str, int]:
        return {name: GLOBAL_BASE + offset for name, offset in self.offsets.items()}

    def tensor(self, name: str) -> Lanes:
        """What the tensor holds now."""
        like, start = self._tensors[name], self.offsets[name]
        return self.bytes[start : start + like.nbytes].view(like.dtype).reshape(like.shape)

    def places(self, addresses: Lanes, size: int) -> Lanes:
        """Offsets of addresses; raises where one lies outside of every tensor's piece or is misaligned."""
        offsets = addresses.astype(np.int64) - GLOBAL_BASE
        if offsets.size and (offsets.min() < 0 or offsets.max() + size > self.bytes.size):
            raise IndexError(f"an access to {int(addresses[0]):#x} lies outside of the tensors")
        if (offsets % size).any():
            raise IndexError(f"an access to {int(addresses[0]):#x} is misaligned")
        return offsets

    def holds(self, addresses: Lanes, size: int) -> Lanes:
        """Which of them lie in the tensors."""
        offsets = addresses.astype(np.int64) - GLOBAL_BASE
        return np.asarray((offsets >= 0) & (offsets + size <= self.bytes.size) & (offsets % size == 0))

    def is_known(self, offsets: Lanes) -> Lanes:
        """Which of them are masks', whose values a count may follow."""
        found = np.zeros(len(offsets), bool)
        for name, tensor in self._tensors.items():
            if tensor.dtype == bool:
                found |= (offsets >= self.offsets[name]) & (offsets < self.offsets[name] + tensor.nbytes)
        return found

    def touch(self, offsets: Lanes, write: bool) -> None:
        sectors = offsets // SECTOR
        if write:
            self.written[sectors] = True
        else:
            self.read[sectors] |= ~self.written[sectors]


class Spans(Global):
    """Tensors of which only places are known, by their bytes, and masks [B, N] with their values."""

    def __init__(self, sizes: Mapping[str, int], masks: Mapping[str, Lanes]) -> None:
        super().__init__({})
        used = 0
        for name, size in sizes.items():
            self.offsets[name] = used
            used += (size + 511) // 256 * 256
        self.bytes = np.zeros(used, np.uint8)  # of which nothing but masks is ever touched
        for name, mask in masks.items():
            start = self.offsets[name]
            self.bytes[start : start + mask.nbytes] = mask.reshape(-1)
            self._tensors[name] = mask
        self.read, self.written = np.zeros(used // SECTOR, bool), np.zeros(used // SECTOR, bool)


class Costs:
    """What warps' accesses cost, remembered by their pattern. ``addresses`` are those of all lanes of the block."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def _of(self, kind: str, size: int, addresses: Lanes, active: Lanes) -> tuple[int, ...]:
        anchor = int(addresses[active.argmax()]) & -LINE  # patterns repeat with every line
        pattern = addresses.astype(np.int64) - anchor
        pattern[~active] = -1 << 40
        key = (kind, size, pattern.tobytes())
        found = self._known.get(key)
        if found is None:
            count = _wavefronts if kind == "shared" else _sectors
            warps, alive = pattern.reshape(-1, LANES), active.reshape(-1, LANES)
            found = self._known[key] = tuple(count(row[on], size) if on.any() else 0 for row, on in zip(warps, alive))
        return found

    def wavefronts(self, addresses: Lanes, active: Lanes, size: int) -> int:
        return sum(self._of("shared", size, addresses, active))

    def sectors(self, addresses: Lanes, active: Lanes, size: int) -> int:
        return sum(self._of("global", size, addresses, active))


def _wavefronts(addresses: Lanes, size: int) -> int:
    """Of one warp. Wide accesses are served in parts of 128 bytes: halves or quarters of the warp. In each part a bank
    gives one word, to all that ask for it."""
    words = max(1, size // 4)
    total, together = 0, LANES // words
    for start in range(0, len(addresses), together):
        part = addresses[start : start + together] // 4
        asked = np.unique((part[:, None] + np.arange(words)).reshape(-1))
        total += int(np.bincount(asked % BANKS, minlength=BANKS).max())
    return total


def _sectors(addresses: Lanes, size: int) -> int:
    return len(np.unique(np.concatenate([addresses // SECTOR, (addresses + size - 1) // SECTOR])))

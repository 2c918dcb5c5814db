"""Whether a shared object is all there: the dynamic loader maps one that was cut short, and the process dies of it."""

from __future__ import annotations

import struct
from pathlib import Path

_64_BIT_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")


def incomplete(path: Path) -> str | None:
    """How much of the file is missing, such as "120000 of 345678 bytes"; None where nothing is.

    Looks at where the header, the segments and the table of sections end, not at what is in them. None also for a file
    that is no 64-bit little-endian ELF file at all: the loader itself refuses that one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if not header.startswith(_64_BIT_LITTLE_ENDIAN):
            return None
        if len(header) < _HEADER.size:
            return f"{size} of at least {_HEADER.size} bytes"
        _, _, _, _, _, segments_at, sections_at, _, _, segment_size, segments, section_size, sections, _ = (
            _HEADER.unpack(header)
        )
        if segments and segment_size != _SEGMENT.size:
            return None
        ends = [segments_at + segments * segment_size, sections_at + sections * section_size]
        if ends[0] <= size:
            file.seek(segments_at)
            for _, _, offset, _, _, length, _, _ in _SEGMENT.iter_unpack(file.read(segments * segment_size)):
                ends.append(offset + length)
    return f"{size} of {max(ends)} bytes" if max(ends) > size else None

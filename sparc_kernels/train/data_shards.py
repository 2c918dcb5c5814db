"""Shards in the form of the webdataset library: tar files in which files of one name are one sample.

A picture (jpg, jpeg, png, webp), its caption (txt, or json with "caption" or "text") and perhaps masks (WORD.png). The
shards are read once to find out what they hold. From then on a pair is read where it lies: each process and each worker
reads the pairs of its own positions and no others, however many there are of them and of the shards.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sparc_kernels.train.data_folder import CACHE_BYTES, Folder, Span, Unusable, caption_of, load_image

BUFFER = 10_000  # pairs that are shuffled together
PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
NOTES = re.compile(r"__[^/]*__($|/)")  # the library's own, which its reader passes over too
Numbers = npt.NDArray[np.int64]


def are_shards(data: str) -> bool:
    return data.endswith(".tar")


@dataclass
class Shards(Folder):
    """``shard``: which one each pair lies in."""

    shard: list[int] = field(default_factory=list)

    def order(self, members: Numbers, rng: np.random.Generator) -> Numbers:
        """The shards in any order, their pairs through a buffer: what is read together lies together."""
        turn = rng.permutation(max(self.shard) + 1)
        stream = members[np.argsort(turn[np.asarray(self.shard)[members]], kind="stable")]
        return through_buffer(stream, BUFFER, rng)


def through_buffer(stream: Numbers, size: int, rng: np.random.Generator) -> Numbers:
    """Each element takes the place of a random one of the ``size`` held, which goes out; at the end all do."""
    held, rest = stream[:size].copy(), stream[size:]
    out = np.empty_like(rest)
    for place, pick in enumerate(rng.integers(0, size, len(rest))):
        out[place], held[pick] = held[pick], rest[place]
    return np.concatenate([out, rng.permutation(held)])


def shard_paths(pattern: str) -> list[Path]:
    """The tar files that a pattern names: one or, in braces, many: ``shards-{000..009}.tar``."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError(
            f"data {pattern!r} are shards, which need the webdataset library ({error}): "
            "pip install webdataset, or pip install 'sparc-kernels[train]'"
        ) from error
    return [Path(name) for name in expand_urls(pattern)]


def scan_shards(pattern: str, image_size: int, progress: bool = False) -> Shards:
    """Decode every picture of the shards once and pair it with its caption."""
    paths = shard_paths(pattern)
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(
            f"data {pattern!r}: {len(missing)} of {len(paths)} shards are no files here, the first is {missing[0]!r} "
            "(shards are read from local disks: fetch remote ones first)"
        )
    shards = Shards(Path(os.path.commonpath([path.parent for path in paths])), image_size, name=pattern)
    keep = True
    for which, path in enumerate(tqdm(paths, desc="reading shards", unit="shard", disable=not progress)):
        for key, sample in _samples(path, shards.skipped):
            name = path / key
            try:
                picture, caption = _picture(sample, path), _caption(sample, path)
                pixels = load_image(picture, shards.stored_size)
            except Unusable as error:
                shards.skipped.append((name, str(error)))
                continue
            keep = keep and (len(shards) + 1) * shards.stored_size**2 * 3 <= CACHE_BYTES
            shards.add(name, picture, caption, picture.size, pixels if keep else None)
            shards.shard.append(which)
            masks = {suffix.removesuffix(".png"): member for suffix, member in sample.items() if _is_mask(suffix)}
            if masks:
                shards.masks[len(shards) - 1] = {word: _span(path, member) for word, member in masks.items()}
    if not shards.paths:
        detail = "".join(f"; {path.name}: {reason}" for path, reason in shards.skipped[:3])
        raise ValueError(f"no picture with a caption in the {len(paths)} shards of {pattern!r}{detail}")
    return shards


def _samples(path: Path, skipped: list[tuple[Path, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and files of each sample, grouped as the library groups them: by name up to the first dot."""
    from webdataset.tariterators import group_by_keys

    def members() -> Iterator[dict[str, Any]]:
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile() and not NOTES.match(member.name):
                        yield {"fname": member.name, "data": member, "__url__": str(path)}
            with open(path, "rb") as file:  # tarfile takes a header that is cut off for the end
                file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
                if any(file.read()):
                    skipped.append((path, "shard ends without the mark of an archive's end: it may be cut off"))
        except (tarfile.TarError, OSError) as error:
            skipped.append((path, f"shard cannot be read to its end ({error})"))

    def note(error: Exception) -> bool:
        skipped.append((path, f"file that cannot belong to a sample ({error.args[0]})"))
        return True

    for sample in group_by_keys(members(), handler=note):
        yield sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")}


def _picture(sample: dict[str, Any], path: Path) -> Span:
    suffix = next((suffix for suffix in PICTURES if suffix in sample), None)
    if suffix is None:
        raise Unusable(f"no picture ({', '.join(PICTURES)})")
    return _span(path, sample[suffix])


def _caption(sample: dict[str, Any], path: Path) -> str:
    suffix = next((suffix for suffix in CAPTIONS if suffix in sample), None)
    if suffix is None:
        raise Unusable(f"no caption ({', '.join(CAPTIONS)})")
    span = _span(path, sample[suffix])
    with open(path, "rb") as file:
        file.seek(span.start)
        data = file.read(span.size)
    if suffix == "json":
        try:
            value = json.loads(data)
        except ValueError as error:
            raise Unusable(f"caption cannot be read ({error})") from None
        if isinstance(value, dict):
            value = value.get("caption", value.get("text"))
        if not isinstance(value, str):
            raise Unusable('caption cannot be read (json without a string at "caption" or "text")')
        data = value.encode(errors="replace")
    return caption_of(data)


def _span(path: Path, member: tarfile.TarInfo) -> Span:
    return Span(path, member.offset_data, member.size)


def _is_mask(suffix: str) -> bool:
    return suffix.endswith(".png")

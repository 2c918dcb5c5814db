"""Training pairs addressed by their position in the run, and the held-out pairs.

Position ``step * batch_size + slot`` decides the pair and its crop, so a run resumes from its step number
alone, on any number of processes, each of which takes some of the slots.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparc_kernels.train.checkpoint import write_atomic
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data_folder import Folder, Pixels, Unusable, scan
from sparc_kernels.train.data_masks import masked
from sparc_kernels.train.data_scenes import Scene, caption, scene
from sparc_kernels.train.data_shards import are_shards, scan_shards
from sparc_kernels.train.signals import ignore_signals, killed_at_exit

_log = logging.getLogger(__name__)
TOKENIZER_CAPTIONS = 2000  # scenes whose captions train the tokenizer
Pair = tuple[Pixels, str]


class SceneStream(Dataset[Pair]):
    """Fresh scenes without end."""

    def __init__(self, config: TrainConfig) -> None:
        self.seed, self.image_size = config.seed, config.model.image_size

    def __getitem__(self, position: int) -> Pair:
        drawn = scene(self.seed, "train", position, self.image_size)
        return drawn.image, drawn.caption


class FolderStream(Dataset[Pair]):
    """Epochs of a folder's (or shards') pictures, each in its own order; what does not fill a batch is left out."""

    def __init__(self, folder: Folder, members: list[int], config: TrainConfig) -> None:
        if len(members) < config.batch_size:
            raise ValueError(
                f"batch size {config.batch_size} exceeds the {len(members)} training pairs of {str(folder.root)!r}"
            )
        self.folder, self.members, self.seed = folder, np.asarray(members), config.seed
        self.epoch_pairs = len(members) // config.batch_size * config.batch_size
        self._order: tuple[int, Tensor | np.ndarray] = (-1, self.members)
        self._said: set[str] = set()

    def __getitem__(self, position: int) -> Pair:
        epoch, place = divmod(position, self.epoch_pairs)
        if self._order[0] != epoch:
            self._order = (epoch, self.folder.order(self.members, np.random.default_rng((self.seed, 1, epoch))))
        try:
            return self._pair(int(self._order[1][place]), position)
        except Unusable as error:
            self._say(error)
        for number in np.random.default_rng((self.seed, 3, position)).permutation(self.members):
            with suppress(Unusable):
                return self._pair(int(number), position)
        raise ValueError(f"none of the pictures in {str(self.folder.root)!r} can be read any more")

    def _pair(self, number: int, position: int) -> Pair:
        pixels = self.folder.crop(number, np.random.default_rng((self.seed, 2, position)))
        return pixels, self.folder.captions[number]

    def _say(self, error: Unusable) -> None:
        if str(error) not in self._said:
            self._said.add(str(error))
            _log.warning("warning: %s; another pair takes its place", error)


@dataclass
class Data:
    """``train`` by position; held out: ``pixels`` [N, S, S, 3] uint8, ``captions``, and ``scenes``, which say what
    the words speak of, where that is known.

    ``fingerprint`` changes with the data, so that a run is not resumed on other pictures.
    """

    train: Dataset[Pair]
    train_captions: list[str]
    pixels: Pixels
    captions: list[str]
    fingerprint: str
    scenes: list[Scene] = field(default_factory=list)


def load_data(
    config: TrainConfig, write: Callable[[str], object] = print, progress: bool = False, keep_list: bool = True
) -> Data:
    """The data that ``config.data`` names; ``write`` receives the report on a folder or shards, and a file in
    ``config.out`` the list of what was skipped (``keep_list``)."""
    size = config.model.image_size
    if config.data == "scenes":
        scenes = [scene(config.seed, "heldout", index, size) for index in range(config.eval_pairs)]
        texts = [caption(config.seed, "train", index, size) for index in range(TOKENIZER_CAPTIONS)]
        pixels = np.stack([drawn.image for drawn in scenes])
        return Data(SceneStream(config), texts, pixels, [drawn.caption for drawn in scenes], "scenes", scenes)
    folder = scanned(config.data, size, progress)
    training, heldout = split(folder, config)
    scenes = masked(folder, heldout)
    folder.report(write)
    if keep_list:
        _list_skipped(folder, Path(config.out))
    spoken = sum(len(each.words) for each in scenes)
    words = f", {spoken} words of them with masks" if scenes else ""
    write(f"  {len(training)} pairs to train on, {len(heldout)} held out{words}")
    return Data(
        FolderStream(folder, training, config),
        [folder.captions[number] for number in training],
        np.stack([folder.crop(number) for number in heldout]),
        [folder.captions[number] for number in heldout],
        fingerprint(folder),
        scenes,
    )


def scanned(data: str, image_size: int, progress: bool = False) -> Folder:
    """What a folder or shards hold."""
    return (scan_shards if are_shards(data) else scan)(data, image_size, progress)


def fingerprint(folder: Folder) -> str:
    """Digest of the usable pictures' names, sizes in bytes and captions."""
    digest = hashlib.sha256()
    for path, size, text in zip(folder.paths, folder.sizes, folder.captions):
        digest.update(f"{path.relative_to(folder.root)}\0{size}\0{text}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def split(folder: Folder, config: TrainConfig) -> tuple[list[int], list[int]]:
    """A fifth of the pairs, at most ``eval_pairs``, held out; pairs with one caption stay on one side."""
    captions = sorted(set(folder.captions))
    if len(captions) < 2:
        raise ValueError(f"{str(folder.root)!r} has a single caption; two are needed, one to hold out")
    wanted = max(1, min(config.eval_pairs, len(folder) // 5))
    groups: dict[str, list[int]] = {}
    for number, text in enumerate(folder.captions):
        groups.setdefault(text, []).append(number)
    heldout: list[int] = []
    for which in np.random.default_rng((config.seed, 0)).permutation(len(captions))[:-1]:
        if len(heldout) >= wanted:
            break
        heldout += groups[captions[which]]
    away = set(heldout)
    return [number for number in range(len(folder)) if number not in away], sorted(heldout)


def batches(data: Data, config: TrainConfig, start: int, slots: range) -> Iterator[tuple[Tensor, list[str]]]:
    """``slots`` of the batches from step ``start`` to the last: ``pixels`` [B, 3, S, S] uint8 and captions."""
    size = config.batch_size
    positions = [[step * size + slot for slot in slots] for step in range(start, config.steps)]
    loader = DataLoader(
        data.train,
        batch_sampler=positions,
        collate_fn=_collate,
        num_workers=config.workers,
        persistent_workers=False,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # or the loader would draw from, and shift, the run's own generator
    )
    with killed_at_exit():
        return iter(loader)


def to_tensor(pixels: Pixels) -> Tensor:
    """[N, S, S, 3] -> [N, 3, S, S]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _collate(pairs: list[Pair]) -> tuple[Tensor, list[str]]:
    return to_tensor(np.stack([pixels for pixels, _ in pairs])), [text for _, text in pairs]


def _list_skipped(folder: Folder, out: Path) -> None:
    if folder.skipped:
        out.mkdir(parents=True, exist_ok=True)
        lines = (f"{path.relative_to(folder.root)}\t{reason}\n" for path, reason in folder.skipped)
        write_atomic(out / "skipped.txt", "".join(lines))

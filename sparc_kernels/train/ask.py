"""What a trained run is asked: ``evaluate`` on pairs, ``align`` on a picture and a caption of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import Data, fingerprint, load_data, scanned
from sparc_kernels.train.data_folder import Folder
from sparc_kernels.train.data_masks import masked
from sparc_kernels.train.data_shards import are_shards, shard_paths
from sparc_kernels.train.evaluate import evaluate
from sparc_kernels.train.figures import FORMATS, caption_maps, draw_alignment
from sparc_kernels.train.load import LoadedRun, compared_runs, load_run
from sparc_kernels.train.processes import Processes
from sparc_kernels.train.results import draw, write_results

EVALUATION = "evaluation"  # a run's folder of it, unless told otherwise


def ask(command: str, options: dict[str, Any], processes: Processes) -> int:
    """``evaluate`` or ``align``; the exit status."""
    if processes.size > 1:
        raise ValueError(f"{command} is the work of one process, got {processes.size}: start it without torchrun")
    if (threads := options.pop("threads")) is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if command == "evaluate":
        evaluate_run(**options)
    else:
        align_picture(**options)
    return 0


def loaded_runs(folder: Path, device: str) -> list[LoadedRun]:
    """The run in a folder, or those of a comparison."""
    return [load_run(part, device) for part in compared_runs(folder) or [folder]]


def evaluate_run(run: str, device: str, data: str | None, eval_pairs: int | None, out: str | None, quiet: bool) -> None:
    runs = loaded_runs(Path(run), device)
    pairs, said = pairs_of(runs[0], data, eval_pairs, progress=not quiet)
    results = {each.config.loss: evaluate(each, pairs) for each in runs}
    folder = Path(out or Path(run) / EVALUATION)
    write_results(folder, results, said)
    draw(folder / "alignment.png", lambda path: draw_alignment(runs, pairs, path))
    for name in ("results.json", "results.md"):
        print(folder / name)


def pairs_of(run: LoadedRun, data: str | None, at_most: int | None, progress: bool) -> tuple[Data, str]:
    """The pairs to evaluate on, and words for them: of the run's own data those that were held out, of a folder or
    shards that it was not trained on all, or a draw of ``at_most``."""
    config = run.config
    name = config.data if data is None else data if data == "scenes" else str(Path(data).resolve())
    config = replace(config, data=name, eval_pairs=config.eval_pairs if at_most is None else at_most)
    own = run.config.data
    if name != own and _share_files(name, own):
        raise ValueError(f"{name!r} shares pictures with {own!r}, on which the run was trained: leave out --data")
    if name not in ("scenes", own) and (are_shards(name) or Path(name).is_dir()):
        folder = scanned(name, config.model.image_size, progress)
        if fingerprint(folder) != run.data:  # else its pictures were moved
            return _whole(folder, config)
    if name != "scenes" and config.eval_pairs > run.config.eval_pairs:
        raise ValueError(
            f"eval_pairs must be at most the run's own, {run.config.eval_pairs}, got {at_most}: it was "
            "trained on the other pairs"
        )
    found = load_data(config, progress=progress, keep_list=False)
    if name == own and found.fingerprint != run.data:
        raise ValueError(
            f"the data in {name!r} have changed since the run, so pairs that it was trained on may be among those held "
            "out now; give another folder as --data"
        )
    return found, f"{len(found.captions)} held-out pairs of {name}"


def _share_files(name: str, own: str) -> bool:
    """Whether two folders, or two sets of shards, have files in common by their places."""
    if are_shards(name) and are_shards(own):
        return not set(shard_paths(name)).isdisjoint(shard_paths(own))
    return Path(name) in Path(own).parents or Path(own) in Path(name).parents


def _whole(folder: Folder, config: TrainConfig) -> tuple[Data, str]:
    chosen = sorted(np.random.default_rng((config.seed, 4)).permutation(len(folder))[: config.eval_pairs].tolist())
    pixels = np.stack([folder.crop(number) for number in chosen])
    captions = [folder.captions[number] for number in chosen]
    scenes = masked(folder, chosen)
    folder.report(print)
    said = f"{len(chosen)} of the {len(folder)} pairs in {folder.name or folder.root}"
    return Data(Dataset(), [], pixels, captions, "", scenes), said


def align_picture(run: str, device: str, picture: str, caption: str, out: str) -> None:
    target, words = Path(out), one_line(caption)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"--out must be a file that ends in {', '.join(FORMATS)}, got {out!r}")
    if target.exists() and Path(picture).exists() and os.path.samefile(target, picture):
        raise ValueError(f"--out is the picture itself, {picture!r}: give another file")
    runs = loaded_runs(Path(run), device)
    pixels = runs[0].transform.pixels(picture)
    pair = Data(Dataset(), [], pixels[None], [words], "")
    for line in unlearned(runs[0], words):
        print(line)
    for each in runs:
        print(f"{each.config.loss}, after step {each.step} of {each.config.steps}:")
        for word, weights in caption_maps(each, pair, 0):
            row, column = np.unravel_index(weights.argmax(), weights.shape)
            print(
                f"  {word}: most in row {row + 1}, column {column + 1} of {len(weights)} x {len(weights)} patches, "
                f"{100 * weights.max():.1f} % of its weight"
            )
    draw_alignment(runs, pair, target, words=len(words.split()))
    print(target)


def one_line(caption: str) -> str:
    """A caption as the data's are: words with single blanks between them."""
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise ValueError(f"caption must be text in UTF-8, got {caption!r}") from None
    words = " ".join(caption.replace("\0", " ").split())
    if not words:
        raise ValueError(f"caption must hold a word, got {caption!r}")
    return words


def unlearned(run: LoadedRun, caption: str) -> Iterator[str]:
    """What to know about words for which the tokenizer has no token, and about those beyond its longest caption."""
    batch = run.tokenizer([caption])
    place = 0
    pieces, cut = [], []
    for word in caption.split():
        start = caption.index(word, place)
        place = start + len(word)
        tokens = batch.tokens_of(0, start, place)
        if not tokens or batch.spans[0][tokens[-1]][1] < place:
            cut.append(repr(word))
        elif len(tokens) > 1:
            pieces.append(f"{word!r} in {len(tokens)}")
    if pieces:
        yield f"note: words that were not learned are read in pieces, their maps may mean little: {', '.join(pieces)}"
    if cut:
        most = run.tokenizer.max_tokens
        yield f"note: the caption is cut at {most} tokens: no map, or one of a beginning only, of {', '.join(cut)}"

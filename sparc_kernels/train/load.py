"""A run's checkpoint as something to use: its towers, its tokenizer, and what makes their input of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparc_kernels.train import checkpoint
from sparc_kernels.train.config import LOSSES, TrainConfig
from sparc_kernels.train.data_folder import MARGIN, Pixels, Unusable, load_image
from sparc_kernels.train.model import DualEncoder, tower_autocast
from sparc_kernels.train.processes import pick_device
from sparc_kernels.train.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Transform:
    """A picture as the held-out pictures of its run were prepared: upright, on white, padded to a square.

    Of a run on a folder, the middle is cut out of a slightly larger square, as its crops were; scenes fill theirs.
    """

    image_size: int
    stored_size: int

    def pixels(self, picture: str | Path) -> Pixels:
        """A picture's file -> [S, S, 3] uint8; ``ValueError`` if Pillow cannot read it."""
        try:
            whole = load_image(Path(picture), self.stored_size)
        except Unusable as error:
            raise ValueError(f"picture {str(picture)!r}: {error}") from error
        edge = (self.stored_size - self.image_size) // 2
        middle: Pixels = whole[edge : edge + self.image_size, edge : edge + self.image_size].copy()
        return middle

    def __call__(self, picture: str | Path) -> Tensor:
        """A picture's file -> [3, S, S] uint8, which ``model`` takes in batches."""
        return torch.from_numpy(self.pixels(picture)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class LoadedRun:
    """What :func:`load_run` gives.

    - ``model``: the towers, in evaluation mode on ``device``. ``model(pixels, ids, mask)``, of [B, 3, S, S] uint8 and
      twice [B, L], gives patches [B, P, D] and tokens [B, L, D].
    - ``tokenizer``: a list of captions to ``ids`` [B, L] int64, ``mask`` [B, L] bool (True = valid) and ``spans``, the
      characters of each token.
    - ``transform``: a picture's file to [3, S, S] uint8.
    - ``config``, ``step``: how the run was made, and how far it had come; S is ``config.model.image_size``, P
      ``config.model.patches``, row by row, and D ``config.model.embed_dim``.
    - ``data``: the fingerprint of the pictures that it was trained on.
    """

    model: DualEncoder
    tokenizer: CaptionTokenizer
    transform: Transform
    config: TrainConfig
    step: int
    data: str
    device: torch.device

    def autocast(self) -> torch.autocast:
        """What the towers were trained under: bfloat16, or nothing."""
        return tower_autocast(self.config, self.device)


def load_run(path: str | Path, device: str = "auto") -> LoadedRun:
    """The last checkpoint of the run in the folder ``path``; ``device``: "auto", "cpu" or "cuda".

    Tensors and plain values are loaded, never code. Raises ``ValueError`` where the folder holds no checkpoint, or one
    that is truncated, foreign, or of a configuration that this version does not know or its weights do not have.
    """
    run = Path(path)
    file = run / checkpoint.CHECKPOINT
    if not file.is_file() and (parts := compared_runs(run)):
        names = " or ".join(repr(str(part)) for part in parts)
        raise ValueError(f"{str(run)!r} holds the runs of a comparison, expected one run: {names}")
    state = checkpoint.load(run)
    if lacking := [name for name in ("config", "tokenizer", "model", "step", "data") if name not in state]:
        raise ValueError(f"{str(file)!r} is no checkpoint of this trainer: it has no {lacking[0]}")
    try:
        config = TrainConfig.from_dict(state["config"])
        tokenizer = CaptionTokenizer.from_json(state["tokenizer"], config.model.max_tokens)
        model = DualEncoder(config.model, tokenizer.vocab_size)
        model.load_state_dict(state["model"])
    except Exception as error:  # tokenizers raises Exception itself
        why = " ".join(str(error).split())
        raise ValueError(f"{str(file)!r} does not fit its configuration: {why:.300}") from error
    size = config.model.image_size
    transform = Transform(size, size if config.data == "scenes" else round(size * MARGIN))
    place = pick_device(device)
    step, data = state["step"], state["data"]
    return LoadedRun(model.eval().to(place), tokenizer, transform, config, step, data, place)


def compared_runs(folder: Path) -> list[Path]:
    """The folders of the runs that --compare left in ``folder``."""
    return [folder / loss for loss in sorted(LOSSES) if (folder / loss / checkpoint.CHECKPOINT).is_file()]

"""What a run is made of: the presets of the towers and every option of the trainer."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Sizes of both towers.

    - ``lr``: the peak rate that a run takes unless told otherwise.
    - ``conv_stem``: two overlapping convolutions make the patches, instead of one that cuts the picture up.
    - ``positions``: patches and tokens know where they stand.
    - ``text_reach``: how many tokens to either side (and itself) a token attends to; None = all of the caption.
    """

    image_size: int
    patch_size: int
    image_width: int
    image_layers: int
    image_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    embed_dim: int
    max_tokens: int
    vocab_size: int
    lr: float
    conv_stem: bool = False
    positions: bool = True
    text_reach: int | None = None

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2


# The paper's towers: 224 pixels, at most 55 tokens, D = 512; the text towers have CLIP's sizes.
PRESETS: dict[str, Preset] = {
    "tiny": Preset(64, 8, 64, 1, 4, 64, 1, 4, 64, 32, 2048, 3e-3, conv_stem=True, positions=False, text_reach=1),
    "vit-b-32": Preset(224, 32, 768, 12, 12, 512, 12, 8, 512, 55, 32768, 5e-4),
    "vit-b-16": Preset(224, 16, 768, 12, 12, 512, 12, 8, 512, 55, 32768, 5e-4),
    "vit-l-14": Preset(224, 14, 1024, 24, 16, 768, 12, 12, 512, 55, 32768, 2.5e-4),
}

LOSSES = ("sparc", "clip", "siglip", "filip", "pacl", "gloria")
IN_A_RING = ("clip", "siglip")  # whose texts can travel from process to process
ALL_TOKENS_MEET = ("filip", "gloria")  # whose tokens go to all processes, in captions of one length
PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
EXCHANGES = ("gather", "ring")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Two runs with equal configurations (``PLACE`` aside) follow the same loss curve, bit for bit
    where these and the number of processes are equal too, else up to rounding."""

    out: str = "runs/train"
    preset: str = "tiny"
    loss: str = "sparc"
    data: str = "scenes"  # or a folder of pictures with captions, or shards
    seed: int = 0
    steps: int = 1000
    batch_size: int = 64  # of all processes together
    accumulate: int = 1
    exchange: str = "gather"
    lr: float = 0.0  # 0 = the preset's
    min_lr: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta2: float = 0.98
    clip_norm: float = 1.0
    precision: str = "fp32"
    backend: str = "auto"
    global_weight: float = 0.5
    local_weight: float = 1.0
    similarity_threshold: float | None = None
    eval_pairs: int = 256
    checkpoint_every: int = 100
    log_every: int = 1
    workers: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        _one_of("preset", self.preset, tuple(PRESETS))
        _one_of("loss", self.loss, LOSSES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        _one_of("exchange", self.exchange, EXCHANGES)
        if self.exchange == "ring" and (self.loss not in IN_A_RING or self.backend == "eager"):
            against = "backend eager" if self.loss in IN_A_RING else f"the loss {self.loss}"
            raise ValueError(f"exchange must be 'gather' with {against}, got 'ring'")
        for name in ("steps", "batch_size", "accumulate", "eval_pairs", "checkpoint_every", "log_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("seed", "warmup_steps", "workers"):
            _at_least(name, getattr(self, name), 0)
        for name in ("weight_decay", "global_weight", "local_weight", "min_lr"):
            _at_least(name, getattr(self, name), 0)
        if self.threads is not None:
            _at_least("threads", self.threads, 1)
        if self.lr == 0:
            object.__setattr__(self, "lr", self.model.lr)
        for name in ("lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must lie in [0, 1), got {self.beta2}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")

    def check_share(self, processes: int) -> None:
        """Whether each of so many processes gets a pair for each of its chunks."""
        least = self.batch_size // processes
        if least < 1:
            raise ValueError(f"batch_size must be at least the number of processes, {processes}, got {self.batch_size}")
        if self.accumulate > least:
            raise ValueError(f"accumulate must be at most the {least} pairs of a process, got {self.accumulate}")

    @property
    def model(self) -> Preset:
        return PRESETS[self.preset]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The configuration that ``to_dict`` gave; a field this version does not know is an error."""
        check_keys(values)
        return cls(**values)


def check_keys(values: dict[str, Any], others: tuple[str, ...] = ()) -> None:
    """Whether each key is a field of ``TrainConfig``, or one of ``others``, with a value of its type."""
    kinds = {field.name: str(field.type) for field in dataclasses.fields(TrainConfig)} | dict.fromkeys(others, "bool")
    for key, value in values.items():
        if key not in kinds:
            (nearest,) = difflib.get_close_matches(key, kinds, 1, cutoff=0)
            raise ValueError(f"unknown key {key!r} in the configuration; the nearest known one is {nearest!r}")
        wanted, optional = kinds[key].removesuffix(" | None"), kinds[key].endswith(" | None")
        fits = type(value).__name__ == wanted or (wanted == "float" and type(value) is int)
        if not (fits or (optional and value is None)):
            raise TypeError(f"{key} in the configuration must be {TYPES[wanted]}, got {value!r}")


TYPES = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false"}

# Fields that say where and how often, not what is computed: a run may be resumed with other values of these.
PLACE = frozenset({"out", "accumulate", "exchange", "checkpoint_every", "log_every", "workers", "device", "threads"})


def differences(saved: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields that decide the loss curve and differ, as ``name: saved -> asked``."""
    return [
        f"{name}: {value!r} -> {getattr(asked, name)!r}"
        for name, value in saved.to_dict().items()
        if name not in PLACE and value != getattr(asked, name)
    ]


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")

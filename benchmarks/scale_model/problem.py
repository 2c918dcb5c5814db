"""What is to be planned: a global batch, spread over ranks."""

from __future__ import annotations

from dataclasses import dataclass

ITEMSIZE = {"bfloat16": 2, "float32": 4, "float64": 8}
SOFTMAX, SIGMOID = "softmax", "sigmoid"
FORWARD, BACKWARD = "forward", "backward"
PHASES = (FORWARD, BACKWARD)


@dataclass(frozen=True)
class Problem:
    """``batch`` pairs of embeddings of ``width`` channels on ``ranks`` ranks, as many on each."""

    batch: int
    width: int
    ranks: int
    dtype: str = "bfloat16"
    loss: str = SOFTMAX

    def __post_init__(self) -> None:
        for name in ("batch", "width", "ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch % self.ranks:
            raise ValueError(f"batch must be a multiple of the {self.ranks} ranks, got {self.batch}")
        if self.dtype not in ITEMSIZE:
            raise ValueError(f"dtype must be one of {', '.join(ITEMSIZE)}, got {self.dtype}")
        if self.loss not in (SOFTMAX, SIGMOID):
            raise ValueError(f"loss must be {SOFTMAX} or {SIGMOID}, got {self.loss}")

    @property
    def local(self) -> int:
        """Pairs of a rank."""
        return self.batch // self.ranks

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def wide(self) -> int:
        """Bytes of a number of the accumulation dtype."""
        return max(4, self.itemsize)

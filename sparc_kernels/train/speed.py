"""How much faster the fused loss runs than the eager one, in this very process."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from sparc_kernels.functional import fine_grained_loss

PAPER_SHAPE = (64, 196, 55, 512)  # B, P, L, D of ViT-B/16 at 224 pixels, with a batch that a CPU can hold


@dataclass(frozen=True)
class Timing:
    """Medians of one forward + backward in milliseconds."""

    shape: tuple[int, int, int, int]
    backend: str
    fused_ms: float
    eager_ms: float

    def __str__(self) -> str:
        size = " ".join(f"{name}={value}" for name, value in zip("BPLD", self.shape))
        return (
            f"fine-grained loss, forward + backward, {size}: {self.backend} {self.fused_ms:.2f} ms, "
            f"eager {self.eager_ms:.2f} ms, {self.eager_ms / self.fused_ms:.2f} x"
        )


def fused_backend(device: torch.device) -> tuple[str | None, str]:
    """The first kernel backend that serves the local loss here, or None and why the others do not."""
    reasons = []
    for backend in ("cpu",) if device.type == "cpu" else ("cuda", "triton"):
        small = torch.zeros(1, 1, 8, device=device)
        try:
            fine_grained_loss(small, small, backend=backend)
        except NotImplementedError as error:
            reasons.append(str(error))
        else:
            return backend, ""
    return None, "; ".join(reasons)


def compare_speed(shape: tuple[int, int, int, int], backend: str, device: torch.device, rounds: int = 9) -> Timing:
    """Medians over rounds in which both backends run once, in turn, on the same random embeddings."""
    batch, patches, tokens, dim = shape
    generator = torch.Generator().manual_seed(0)
    embeds = [
        torch.randn(batch, count, dim, generator=generator).to(device).requires_grad_() for count in (patches, tokens)
    ]
    seconds: dict[str, list[float]] = {backend: [], "eager": []}
    for turn in range(rounds + 1):
        for name, record in seconds.items():
            started = _now(device)
            fine_grained_loss(*embeds, backend=name).backward()
            if turn:  # the first turn warms up
                record.append(_now(device) - started)
            embeds[0].grad = embeds[1].grad = None
    fused, eager = (statistics.median(seconds[name]) * 1e3 for name in (backend, "eager"))
    return Timing(shape, backend, fused, eager)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

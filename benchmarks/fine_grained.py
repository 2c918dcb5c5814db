"""One setup for speed and memory of the fine-grained loss: inputs, the contenders, and the parity they are held to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.harness import PeakResidentMemory
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference

TOKENS, CHANNELS, SCALE = 55, 512, 1 / 0.07  # the paper's; patches and batch vary
PARITY = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative L2 distance to eager float32, loss and gradients
# Of the pairs: where rounding alone moves a similarity across the threshold, or makes another one the minimum, the
# gradient of that row jumps. Seen at B = 256, P = 196: one row of 14080.
PARITY_SHARE = 0.9


@dataclass
class Setup:
    """Inputs of one shape. Every contender is a function without arguments that does one forward and backward."""

    batch: int
    patches: int
    dtype: torch.dtype
    tokens: int = TOKENS
    channels: int = CHANNELS

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(rows: int, columns: int) -> Tensor:
            return torch.randn(self.batch, rows, columns, generator=generator).to(self.dtype)

        self.patch_embeds = draw(self.patches, self.channels).requires_grad_()
        self.token_embeds = draw(self.tokens, self.channels).requires_grad_()

    @property
    def gradient_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.patch_embeds, self.token_embeds))

    def _step(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            self.patch_embeds.grad = self.token_embeds.grad = None
            value = loss(self.patch_embeds, self.token_embeds)
            value.backward()
            return value.detach()

        return step

    def fused(self, backend: str = "cpu") -> Callable[[], Tensor]:
        return self._step(lambda v, t: sk.fine_grained_loss(v, t, logit_scale=SCALE, backend=backend))

    def fused_forward(self) -> Callable[[], Tensor]:
        """The forward pass alone: two products, and all that the backward pass computes again."""

        def forward() -> Tensor:
            with torch.no_grad():
                return sk.fine_grained_loss(self.patch_embeds, self.token_embeds, logit_scale=SCALE, backend="cpu")

        return forward

    def _eager_loss(self, compute_dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        scale = torch.tensor(SCALE)
        return lambda v, t: fine_grained_reference(v, t, None, None, scale, compute_dtype=compute_dtype).mean()

    def eager(self, compute_dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
        return self._step(self._eager_loss(compute_dtype or self.dtype))

    def compiled(self, compute_dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
        torch._dynamo.reset()
        return self._step(torch.compile(self._eager_loss(compute_dtype or self.dtype), dynamic=False))

    def bare_products(self, kept: bool = False) -> Callable[[], None]:
        """The 8 products of L x P x D per pair through torch.bmm and nothing else; 6 where the first two were kept."""
        v, t = self.patch_embeds.detach(), self.token_embeds.detach()
        weights = torch.randn(self.batch, self.tokens, self.patches).to(self.dtype)
        repeats = 1 if kept else 2

        def products() -> None:
            for _ in range(repeats):
                torch.bmm(t, v.mT)  # S
                torch.bmm(weights, v)  # C'
            torch.bmm(t, v.mT)  # C' V^T
            torch.bmm(weights.mT, t)  # dV, first part
            torch.bmm(weights.mT, t)  # dV, second part
            torch.bmm(weights, v)  # dT

        return products

    def assert_parity(self, step: Callable[[], Tensor]) -> dict[str, float]:
        """Relative distance to eager float32 of the loss, and of each gradient for ``PARITY_SHARE`` of the pairs."""

        def results(run: Callable[[], Tensor]) -> dict[str, Tensor]:
            loss = run()
            assert self.patch_embeds.grad is not None
            assert self.token_embeds.grad is not None
            return {"loss": loss[None], "patches": self.patch_embeds.grad, "tokens": self.token_embeds.grad}

        expected, found = results(self.eager(torch.float32)), results(step)
        distances = {}
        for name, truth in expected.items():
            rows = truth.double().flatten(1) if truth.dim() > 1 else truth.double()[:, None]
            errors = (found[name].double().reshape_as(rows) - rows).norm(dim=1) / rows.norm(dim=1)
            distances[name] = float(errors.quantile(PARITY_SHARE))
            if not distances[name] <= PARITY[self.dtype]:
                raise AssertionError(
                    f"{name} is {distances[name]:.2g} from eager float32, allowed {PARITY[self.dtype]}"
                )
        return distances


def print_peak_memory(name: str, batch: int, patches: int, dtype: str) -> None:
    """Peak resident bytes of one forward and backward beyond inputs and gradients, of ``fused`` or ``eager``."""
    kind = getattr(torch, dtype)
    small, full = Setup(2, 4, kind, 3, 16), Setup(batch, patches, kind)
    for step in (small.fused(), small.eager()):
        step()  # starts the threads and loads what is loaded on first use
    step = getattr(full, name)()
    with PeakResidentMemory() as peak:
        step()
    print(max(0, peak.bytes - full.gradient_bytes))


if __name__ == "__main__":
    print_peak_memory(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

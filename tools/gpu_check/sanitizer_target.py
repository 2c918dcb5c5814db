"""Every kernel once on small shapes, forward and backward: what ``compute-sanitizer`` watches.

``python -m tools.gpu_check.sanitizer_target`` prints a line per backend, dtype and shape; with no GPU it takes the CPU
backend, as a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.measure.machine import pick_device

# B, P, L, D: a pair in one tile, odd sizes, and more patches and tokens than one tile holds
SHAPES = ((2, 16, 8, 32), (2, 49, 13, 40), (1, 130, 20, 72), (1, 300, 70, 64))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Arguments:
    patches: Tensor  # [B, P, D]
    tokens: Tensor  # [B, L, D]
    patch_mask: Tensor  # [B, P]
    token_mask: Tensor  # [B, L]
    scale: Tensor  # []


def _loss(x: Arguments, backend: str) -> Tensor:
    return sk.fine_grained_loss(
        x.patches,
        x.tokens,
        x.token_mask,
        logit_scale=x.scale,
        patch_mask=x.patch_mask,
        reduction="none",
        backend=backend,
    )


# The one place that names ops.
CALLS: tuple[Callable[[Arguments, str], Tensor], ...] = (
    _loss,
    lambda x, backend: sk.language_grouped_embeddings(x.patches, x.tokens, patch_mask=x.patch_mask, backend=backend),
    lambda x, backend: sk.alignment_weights(x.patches, x.tokens, patch_mask=x.patch_mask, backend=backend),
)


def call(backend: str, dtype: torch.dtype, shape: tuple[int, int, int, int], device: torch.device) -> None:
    B, P, L, D = shape
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randn(B, count, D, generator=generator).to(device, dtype).requires_grad_()

    patches, tokens, scale = draw(P), draw(L), torch.full((), 14.0, device=device, requires_grad=True)
    token_mask = (torch.arange(L) < L - 2).expand(B, L).contiguous().to(device)
    patch_mask = (torch.arange(P) < P - 3).expand(B, P).contiguous().to(device)
    arguments = Arguments(patches, tokens, patch_mask, token_mask, scale)
    for result in [op(arguments, backend) for op in CALLS]:
        result.sum().backward()
    for name, leaf in (("patches", patches), ("tokens", tokens), ("scale", scale)):
        if leaf.grad is None or not bool(leaf.grad.isfinite().all()):
            raise AssertionError(f"{backend} {dtype} {shape}: gradient of {name} is missing or not finite")


def main() -> None:
    device = pick_device("auto")
    served = 0
    for backend in ("cuda", "triton") if device.type == "cuda" else ("cpu",):
        for dtype in DTYPES:
            for shape in SHAPES:
                try:
                    call(backend, dtype, shape, device)
                except NotImplementedError as error:
                    print(f"{backend} {dtype} {shape}: not usable: {error}", flush=True)
                else:
                    served += 1
                    print(f"{backend} {dtype} {shape}: ok", flush=True)
    if not served:
        raise RuntimeError("no kernel ran")


if __name__ == "__main__":
    main()

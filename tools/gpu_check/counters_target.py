"""The launches that Nsight Compute counts: the pair path of every op, forward and backward, at the model's shape.

``python -m tools.gpu_check.counters_target``; with no GPU it rehearses on the CPU backend, on a smaller batch.
"""

from __future__ import annotations

import torch

import sparc_kernels as sk
from benchmarks.measure.machine import pick_device
from tools.sass_model.chips import PAIRS
from tools.sass_model.measured import PAPER as SHAPE


def main() -> None:
    device = pick_device("auto")
    cuda = device.type == "cuda"
    pairs, backend = (PAIRS, "cuda") if cuda else (2, "cpu")
    torch.manual_seed(0)
    patches, tokens = (
        torch.randn(pairs, rows, SHAPE.channels, device=device, dtype=torch.bfloat16).requires_grad_()
        for rows in (SHAPE.patches, SHAPE.tokens)
    )
    scale = torch.tensor(10.0, device=device)
    loss = sk.fine_grained_loss(patches, tokens, logit_scale=scale, backend=backend)
    loss.backward()
    sk.language_grouped_embeddings(patches, tokens, backend=backend).float().square().sum().backward()
    if cuda:
        torch.cuda.synchronize()
    print(f"{backend}: fine_grained and grouping, forward and backward, {pairs} pairs")


if __name__ == "__main__":
    main()

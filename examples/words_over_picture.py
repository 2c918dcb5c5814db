"""Train on drawn scenes for some seconds, then draw where every word looks: words.png.

    pip install matplotlib && python examples/words_over_picture.py

The reference trainer (``python -m sparc_kernels.train --demo``, docs/training.md) does the same with real towers.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparc_kernels import SparcLoss, alignment_weights

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.2, 0.9), "yellow": (0.9, 0.8, 0.1)}
GRID, PATCH = 6, 8


def scenes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [B, 3, S, S] of three coloured squares, the words for them [B, 3], and where they are [B, 3]."""
    words = torch.rand(count, len(COLOURS)).argsort(1)[:, :3]
    cells = torch.rand(count, GRID * GRID).argsort(1)[:, :3]
    patches = torch.full((count, GRID * GRID, 3), 0.5)
    patches.scatter_(1, cells[..., None].expand(-1, -1, 3), torch.tensor([*COLOURS.values()])[words])
    pictures = patches.mT.unflatten(2, (GRID, GRID)).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return pictures + 0.05 * torch.randn_like(pictures), words, cells


def draw(picture: Tensor, words: list[str], weights: Tensor, path: str) -> None:
    """A picture [3, S, S], and beside it the weights [L, P] of every word over its patches."""
    figure = Figure(figsize=(2 * len(words) + 2, 2.3), layout="constrained")
    axes = figure.subplots(1, len(words) + 1, subplot_kw={"xticks": [], "yticks": []})
    for axis, title in zip(axes, ["", *words]):
        axis.imshow(picture.clamp(0, 1).permute(1, 2, 0))
        axis.set_title(title)
    for axis, row in zip(axes[1:], weights.unflatten(1, (GRID, GRID))):
        axis.imshow(row, cmap="gray", alpha=0.8, extent=(0, GRID * PATCH, GRID * PATCH, 0))
    figure.savefig(path)


def main(path: str = "words.png", steps: int = 100) -> float:
    torch.manual_seed(0)
    towers = nn.ModuleList([nn.Conv2d(3, 32, PATCH, PATCH), nn.Embedding(len(COLOURS), 32)])
    criterion = SparcLoss(global_weight=0.0)  # no global loss: with four words, other pictures have the same caption
    optimizer = torch.optim.AdamW([*towers.parameters(), *criterion.parameters()], lr=1e-2)
    for step in range(steps + 1):
        pictures, words, cells = scenes(64)
        patches, tokens = towers[0](pictures).flatten(2).mT, towers[1](words)  # [B, P, D], [B, L, D]
        if step < steps:
            optimizer.zero_grad()
            loss = criterion(patches, tokens)
            loss.backward()
            optimizer.step()
    weights = alignment_weights(patches, tokens).detach()  # [B, L, P], of scenes that it was not trained on
    draw(pictures[0], [[*COLOURS][word] for word in words[0]], weights[0], path)
    right = (weights.argmax(2) == cells).double().mean().item()
    print(f"loss {loss.item():.4f}; words whose strongest patch is theirs: {right:.0%}; picture in {path}")
    return right


if __name__ == "__main__":
    main()

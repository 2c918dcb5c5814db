"""Train on drawn scenes for some seconds, then draw where every word looks, into words.png.

pip install matplotlib && python examples/words_over_picture.py     # with real towers: docs/training.md
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparc_kernels import SparcLoss, alignment_weights

COLOURS = {"black": 0x000000, "white": 0xFFFFFF, "red": 0xE61A1A, "green": 0x1AB333, "blue": 0x1A33E6, "pink": 0xE666B3}
GRID, PATCH = 6, 8


def scenes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [B, 3, S, S] of three coloured squares, the words for them [B, 3], and where they are [B, 3]."""
    words = torch.rand(count, len(COLOURS)).argsort(1)[:, :3]
    cells = torch.rand(count, GRID * GRID).argsort(1)[:, :3]
    patches = torch.full((count, GRID * GRID, 3), 0.5)
    rgb = torch.tensor([list(colour.to_bytes(3, "big")) for colour in COLOURS.values()]) / 255
    patches.scatter_(1, cells[..., None].expand(-1, -1, 3), rgb[words])
    pictures = patches.mT.unflatten(2, (GRID, GRID)).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return pictures + 0.05 * torch.randn_like(pictures), words, cells


def draw(picture: Tensor, words: list[str], weights: Tensor, path: str) -> None:
    """A picture [3, S, S], and beside it the weights [L, P] of every word over its patches."""
    figure = Figure(figsize=(2 * len(words) + 2, 2.3), layout="constrained")
    axes = figure.subplots(1, len(words) + 1, subplot_kw={"xticks": [], "yticks": []})
    axes[0].imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
    for axis, word, row in zip(axes[1:], words, weights.unflatten(1, (GRID, GRID))):
        axis.imshow(row.numpy(), cmap="gray")
        axis.set_title(word)
    figure.savefig(path)


def main(path: str = "words.png", steps: int = 300) -> float:
    torch.manual_seed(0)
    image_tower = nn.Sequential(nn.Conv2d(3, 64, PATCH, PATCH), nn.GELU(), nn.Conv2d(64, 32, 1))
    text_tower, criterion = nn.Embedding(len(COLOURS), 32), SparcLoss()
    optimizer = torch.optim.AdamW(nn.ModuleList([image_tower, text_tower, criterion]).parameters(), lr=3e-3)
    for step in range(steps + 1):
        pictures, words, cells = scenes(64)
        patches, tokens = image_tower(pictures).flatten(2).mT, text_tower(words)  # [B, P, D], [B, L, D]
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

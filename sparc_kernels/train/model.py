"""The towers: a ViT over pixels, a transformer over tokens, each with a linear adapter to the shared D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparc_kernels.train.config import Preset, TrainConfig


class Tower(nn.Module):
    """Learned positions (or none) and pre-norm transformer layers: [B, N, width] -> [B, N, embed_dim]."""

    def __init__(self, length: int, width: int, layers: int, heads: int, embed_dim: int, positions: bool) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02) if positions else None
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.adapter = nn.Linear(width, embed_dim, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and name != "positions":
                nn.init.normal_(parameter, std=width**-0.5)
        for block in self.encoder.layers:
            nn.init.zeros_(block.self_attn.out_proj.weight)  # patches and tokens start out speaking for themselves

    def forward(self, embeds: Tensor, blocked: Tensor | None = None) -> Tensor:
        """``blocked`` [B, N, N] bool, True = the row does not attend to the column."""
        hidden = embeds if self.positions is None else embeds + self.positions[: embeds.shape[1]]
        mask = None if blocked is None else blocked.repeat_interleave(self.heads, 0)
        out: Tensor = self.adapter(self.encoder(hidden, mask))
        return out


class DualEncoder(nn.Module):
    """Pictures and captions to patch embeddings [B, P, D] and token embeddings [B, L, D]."""

    def __init__(self, preset: Preset, vocab_size: int) -> None:
        super().__init__()
        p = preset
        self.reach = p.text_reach
        self.stem = conv_stem(p) if p.conv_stem else nn.Conv2d(3, p.image_width, p.patch_size, p.patch_size)
        self.image_tower = Tower(p.patches, p.image_width, p.image_layers, p.image_heads, p.embed_dim, p.positions)
        self.words = nn.Embedding(vocab_size, p.text_width)
        nn.init.normal_(self.words.weight, std=0.02)
        self.text_tower = Tower(p.max_tokens, p.text_width, p.text_layers, p.text_heads, p.embed_dim, p.positions)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """``pixels`` [B, 3, S, S] uint8 -> [B, P, D]."""
        patches: Tensor = self.stem(pixels.to(self.words.weight.dtype) / 127.5 - 1).flatten(2).transpose(1, 2)
        embeds: Tensor = self.image_tower(patches)
        return embeds

    def encode_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """``ids``, ``mask`` [B, L] -> [B, L, D]; ``mask`` True = valid."""
        embeds: Tensor = self.text_tower(self.words(ids), blocked_pairs(mask, self.reach))
        return embeds

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_images(pixels), self.encode_texts(ids, mask)


def conv_stem(preset: Preset) -> nn.Module:
    """[B, 3, S, S] -> [B, width, grid, grid] by two strided convolutions that look beyond the patch's edge.

    Both are centred on their patch, and repeat the picture's edge beyond it: with zeros there, patches could tell that
    they lie at the border.
    """
    if preset.patch_size % 2:
        raise ValueError(f"a convolutional stem needs an even patch size, got {preset.patch_size}")
    stride, half = preset.patch_size // 2, preset.image_width // 2
    return nn.Sequential(
        nn.Conv2d(3, half, stride + 2, stride, 1, padding_mode="replicate"),
        nn.GELU(),
        nn.Conv2d(half, preset.image_width, 4, 2, 1, padding_mode="replicate"),
    )


def blocked_pairs(mask: Tensor, reach: int | None) -> Tensor:
    """[B, L] validity to [B, L, L]: True where a token must not attend. Every token may attend to itself."""
    place = torch.arange(mask.shape[1], device=mask.device)
    distance = (place[:, None] - place[None, :]).abs()
    blocked = ~mask[:, None, :] if reach is None else ~mask[:, None, :] | (distance > reach)
    return blocked & (distance > 0)


def pooled(token_embeds: Tensor, token_mask: Tensor) -> Tensor:
    """Mean over valid tokens: [B, L, D], [B, L] -> [B, D]."""
    weights = token_mask.to(token_embeds.dtype).unsqueeze(-1)
    return (token_embeds * weights).sum(1) / weights.sum(1).clamp_min(1)


def tower_autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """What the towers run under, and the loss does not."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

"""Captions and patches in PyTorch, for the eager definitions of the family."""

from __future__ import annotations

import torch
from torch import Tensor


def padded_captions(text_tokens: Tensor, offsets: Tensor, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Packed captions [N, D] as [J, max_tokens, D] with their mask."""
    place = torch.arange(max_tokens, device=offsets.device)
    valid = place < offsets.diff()[:, None]  # [J, max_tokens]
    index = torch.where(valid, offsets[:-1, None] + place, 0)
    tokens = torch.cat([text_tokens, text_tokens.new_zeros((1, text_tokens.shape[1]))])  # may hold no token
    return tokens[index], valid


def valid_tokens(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens with zeros in padding, so that what stands there reaches no gradient, and the mask."""
    if mask is None:
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return torch.where(mask[:, :, None], tokens, 0), mask


def flat_products(patches: Tensor, tokens: Tensor) -> Tensor:
    """[I, J, L, P]: products of all tokens [J, L, D] with all patches [I, P, D]."""
    i, p, d = patches.shape
    j, l, _ = tokens.shape
    flat = patches.reshape(i * p, d) @ tokens.reshape(j * l, d).T
    return flat.view(i, p, j, l).permute(0, 2, 3, 1)

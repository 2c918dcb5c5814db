"""Fewer tokens per image, before its late interaction with all captions: learned weighted sums, or the best of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparc_kernels import _validate
from sparc_kernels.modules._module import Module


class _OfTokens(Module):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.width = _validate.count("width", width)
        self.tokens = _validate.count("tokens", tokens)

    def _checked(self, image_tokens: Tensor, image_mask: Tensor | None, weight: Tensor) -> Tensor:
        """The tokens, with zeros where they are not valid."""
        _validate.embeddings("image_tokens", image_tokens, "[B, P, D]")
        if image_tokens.shape[2] != self.width:
            raise ValueError(f"image_tokens must have width {self.width}, got {list(image_tokens.shape)}")
        kind = image_tokens.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if image_tokens.dtype != weight.dtype and not mixed:
            raise TypeError(
                f"image_tokens must have the dtype of the module's parameters, {weight.dtype}, got {image_tokens.dtype}"
            )
        _validate.same_device("image_tokens", image_tokens, "the module's parameters", weight)
        _validate.mask("image_mask", image_mask, "image_tokens", image_tokens)
        return image_tokens if image_mask is None else image_tokens.masked_fill(~image_mask[..., None], 0.0)

    def extra_repr(self) -> str:
        return f"width={self.width}, tokens={self.tokens}"


class TokenReduction(_OfTokens):
    """Wukong's token reduction: K learned weighted sums of an image's P patches.

    "Wukong: A 100 Million Large-scale Chinese Cross-modal Pre-training Benchmark" (Gu et al., 2022, arXiv 2202.06767),
    reduced-token interaction, in the form of its public code (huawei-noah/Pretrained-Language-Model, Noah_WuKong):
    with patches x [P, D], a grouped W_1 [D, D], W_2 [K, D] and a grouped W_3 [D, D], all without bias,

        A = softmax over patches of W_2 W_1 LayerNorm(x)        [K, P]
        y = A (W_3 x)                                           [K, D]

    It is a TokenLearner (Ryoo et al., 2021, arXiv 2106.11297) whose attention maps are linear. Parameters have the same
    names and shapes as there. The class token is taken off before.

    Args:
        width: D.
        tokens: K; the published models take 12 or 24.
        groups: of W_1 and W_3; divides D.

    Raises:
        TypeError, ValueError: a size that is no positive integer, or ``groups`` that do not divide ``width``.
    """

    def __init__(self, width: int, tokens: int, *, groups: int = 8) -> None:
        super().__init__(width, tokens)
        self.groups = _validate.count("groups", groups)
        if width % groups:
            raise ValueError(f"groups must divide width {width}, got {groups}")
        self.norm = nn.LayerNorm(width)
        self.attention_maps = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=groups, bias=False), nn.Conv2d(width, tokens, 1, bias=False)
        )
        self.feat_conv = nn.Conv2d(width, width, 1, groups=groups, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the public code does."""
        self.norm.reset_parameters()
        for layer in (*self.attention_maps, self.feat_conv):
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def attention(self, image_tokens: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """[B, K, P]: what each of the K tokens takes of each patch; 0 of a patch that is not valid."""
        patches = self._checked(image_tokens, image_mask, self.norm.weight)
        return self._attention(patches, image_mask)

    def forward(self, image_tokens: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """
        Args:
            image_tokens: [B, P, D] patch embeddings in the dtype of the parameters (any under autocast).
            image_mask: [B, P] bool, True = valid; None = all are.

        Returns:
            [B, K, D], all of them valid: zeros for an image without a valid patch, which scores 0 with every caption.

        Raises:
            TypeError, ValueError: shapes, dtypes or devices that do not fit, with the argument's name.
        """
        patches = self._checked(image_tokens, image_mask, self.norm.weight)
        return self._attention(patches, image_mask) @ _convolved(self.feat_conv, patches)

    def _attention(self, patches: Tensor, image_mask: Tensor | None) -> Tensor:
        maps = _convolved(self.attention_maps, self.norm(patches)).transpose(1, 2)
        if image_mask is not None:  # not -inf: where no patch is valid, weights would be NaN
            maps = maps.masked_fill(~image_mask[:, None], torch.finfo(maps.dtype).min)
        weights = maps.softmax(2)
        return weights if image_mask is None else weights.masked_fill(~image_mask[:, None], 0.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def _convolved(layer: nn.Module, tokens: Tensor) -> Tensor:
    """[B, P, D] through convolutions of one pixel."""
    found: Tensor = layer(tokens.transpose(1, 2)[..., None])
    return found[..., 0].transpose(1, 2)


class SelectedTokens(NamedTuple):
    """What :class:`TokenSelection` returns, best token first."""

    tokens: Tensor
    """[B, K, D], each times its gate; zeros in padding."""
    mask: Tensor
    """[B, K] bool, True = valid: False where an image has fewer valid patches than K."""
    indices: Tensor
    """[B, K] int64, the patch each of them was."""


class TokenSelection(_OfTokens):
    """The K patches of an image that a learned direction rates highest, times their gates.

    Top-k pooling as in "Graph U-Nets" (Gao and Ji, 2019, arXiv 1905.05178, equation 2): with patches x [P, D] and a
    learned w [D],

        s = x w / |w|        the K patches of largest s, the first ones where several share it
        y = x sigmoid(s)     of these

    The choice has no gradient, the gate has: what a loss makes of ``y`` teaches w. A length is no part of a cosine, so
    a loss that normalises its tokens gives w no gradient; take scores with ``normalize=False`` of tokens that were
    normalised before they were selected (docs/losses.md, token selection), or select before further layers.

    Args:
        width: D.
        tokens: K.

    Raises:
        TypeError, ValueError: a size that is no positive integer.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__(width, tokens)
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.width**-0.5)

    def forward(self, image_tokens: Tensor, image_mask: Tensor | None = None) -> SelectedTokens:
        """
        Args:
            image_tokens: [B, P, D] patch embeddings in the dtype of the parameters (any under autocast), P at least K.
            image_mask: [B, P] bool, True = valid; None = all are.

        Raises:
            TypeError, ValueError: shapes, dtypes or devices that do not fit, with the argument's name.
        """
        patches = self._checked(image_tokens, image_mask, self.weight)
        if patches.shape[1] < self.tokens:
            raise ValueError(f"image_tokens must have at least {self.tokens} tokens, got {list(patches.shape)}")
        direction = self.weight / self.weight.norm().clamp(min=1e-12)
        scores = (patches * direction).sum(2)  # no product of matrices, which autocast would round
        rated = scores.detach() if image_mask is None else scores.detach().masked_fill(~image_mask, -torch.inf)
        # topk does not say which of equal ones it takes
        indices = rated.sort(dim=1, descending=True, stable=True).indices[:, : self.tokens]
        if image_mask is None:
            mask = torch.ones_like(indices, dtype=torch.bool)
        else:
            mask = image_mask.gather(1, indices)
        gates = scores.gather(1, indices).sigmoid()
        chosen = patches.gather(1, indices[..., None].expand(-1, -1, self.width))
        return SelectedTokens(chosen * gates[..., None], mask, indices)

"""The losses of the trainer, called alike: patches [B, P, D], tokens [B, L, D] and their mask [B, L] to a loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparc_kernels.functional import contrastive_loss, filip_loss, late_interaction_scores, sigmoid_loss
from sparc_kernels.modules import SparcLoss
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.model import pooled

INITIAL_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0


class LearnedScale(nn.Module):
    """A loss with a learned scale. ``group``: the processes whose pairs are the batch, as in the functions."""

    def __init__(self, scale: float, backend: str = "auto", group: str | None = None) -> None:
        super().__init__()
        self.backend, self.group = backend, group
        self.log_logit_scale = nn.Parameter(torch.tensor([scale]).log())  # FSDP2 shards no 0-dim parameter

    @property
    def logit_scale(self) -> Tensor:
        """[]: the current 1 / temperature, without gradient. Under FSDP2 all processes have to ask together."""
        return whole(self.log_logit_scale).exp().reshape(())

    def clamp_logit_scale(self) -> None:
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(LARGEST_SCALE))

    def options(self) -> dict[str, Any]:
        """Of the functions, with the scale as it is now, clamped."""
        self.clamp_logit_scale()
        return {"logit_scale": self.log_logit_scale.exp(), "group": self.group, "backend": self.backend}


class GlobalLoss(LearnedScale):
    """A loss over the pairs of the batch alone, on mean-pooled patches and tokens.

    CLIP's softmax, or the sigmoid of Zhai et al. (2023), which learns a bias too and starts at their 10 and -10.
    ``exchange``: how the texts of the processes come to each other, as in :func:`sparc_kernels.contrastive_loss`.
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self, sigmoid: bool = False, backend: str = "auto", group: str | None = None, exchange: str = "gather"
    ) -> None:
        super().__init__(SIGMOID_SCALE if sigmoid else INITIAL_SCALE, backend, group)
        self.exchange = exchange
        self.register_parameter("logit_bias", nn.Parameter(torch.tensor([SIGMOID_BIAS])) if sigmoid else None)

    def forward(self, patch_embeds: Tensor, token_embeds: Tensor, token_mask: Tensor) -> Tensor:
        """[B, P, D], [B, L, D], [B, L] -> scalar."""
        images, texts = patch_embeds.mean(1), pooled(token_embeds, token_mask)
        options = self.options() | {"exchange": self.exchange}
        if self.logit_bias is None:
            return contrastive_loss(images, texts, **options)
        return sigmoid_loss(images, texts, logit_bias=self.logit_bias, **options)


class FilipLoss(LearnedScale):
    """FILIP's, on all patches and tokens; with several processes L has to be the same in all of them."""

    def forward(self, patch_embeds: Tensor, token_embeds: Tensor, token_mask: Tensor) -> Tensor:
        """[B, P, D], [B, L, D], [B, L] -> scalar."""
        return filip_loss(patch_embeds, token_embeds, None, token_mask, **self.options())


def whole(x: Tensor) -> Tensor:
    """A tensor without its gradient; a DTensor, which lies in pieces in all processes, put together by all of them."""
    x = x.detach()
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def build_loss(config: TrainConfig, group: str | None = None) -> SparcLoss | LearnedScale:
    """The loss of ``config`` over the batches of all processes in ``group`` (None: of this one)."""
    if config.loss == "sparc":
        return SparcLoss(
            logit_scale=INITIAL_SCALE,
            similarity_threshold=config.similarity_threshold,
            global_weight=config.global_weight,
            local_weight=config.local_weight,
            return_components=True,
            group=group,
            backend=config.backend,
        )
    # No other loss is written in CUDA C++; --backend cuda is about SPARC's local one.
    backend = "auto" if config.backend == "cuda" else config.backend
    if config.loss == "filip":
        return FilipLoss(INITIAL_SCALE, backend, group)
    return GlobalLoss(config.loss == "siglip", backend, group, config.exchange)


def filip_scores(patches: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[N, P, D], [N, L, D], [N, L] -> twice [N, N]: what FILIP ranks captions by, and what it ranks images by."""
    image_scores, text_scores = late_interaction_scores(patches, tokens, None, mask)
    assert image_scores is not None
    assert text_scores is not None
    return image_scores, text_scores


# How losses score the pairs of images and captions where that is not by the cosines of pooled embeddings.
SCORES = {"filip": filip_scores}

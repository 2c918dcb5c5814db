"""The losses of the trainer, called alike: patches [B, P, D], tokens [B, L, D] and their mask [B, L] to a loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparc_kernels.functional import (
    SparcLossOutput,
    attention_pooled_scores,
    contrastive_loss,
    filip_loss,
    gloria_loss,
    late_interaction_scores,
    pacl_loss,
    sigmoid_loss,
)
from sparc_kernels.modules import SparcLoss
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.model import pooled

INITIAL_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0
# As their functions have them by default, for the losses and for what evaluates them.
PACL_SCALE, GLORIA_SCALE = 10.0, 10.0
PACL: dict[str, Any] = {"weights": "sigmoid", "attention_scale": 10.0}
GLORIA: dict[str, Any] = {"attention_scale": 4.0, "pooling_scale": 5.0}


class ScaledLoss(nn.Module):
    """A loss with a scale, learned or fixed. ``group``: the processes whose pairs are the batch."""

    log_logit_scale: Tensor

    def __init__(self, scale: float, backend: str = "auto", group: str | None = None, learned: bool = True) -> None:
        super().__init__()
        self.backend, self.group = backend, group
        log_scale = torch.tensor([scale]).log()  # FSDP2 shards no 0-dim parameter
        if learned:
            self.log_logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_logit_scale", log_scale)

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


class GlobalLoss(ScaledLoss):
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


class FilipLoss(ScaledLoss):
    """FILIP's, on all patches and tokens; with several processes L has to be the same in all of them."""

    def forward(self, patch_embeds: Tensor, token_embeds: Tensor, token_mask: Tensor) -> Tensor:
        """[B, P, D], [B, L, D], [B, L] -> scalar."""
        return filip_loss(patch_embeds, token_embeds, None, token_mask, **self.options())


class PaclLoss(ScaledLoss):
    """PACL's, of all patches with the mean-pooled tokens of each caption."""

    def forward(self, patch_embeds: Tensor, token_embeds: Tensor, token_mask: Tensor) -> Tensor:
        """[B, P, D], [B, L, D], [B, L] -> scalar."""
        return pacl_loss(patch_embeds, pooled(token_embeds, token_mask), **PACL, **self.options())


class GloriaLoss(ScaledLoss):
    """GLoRIA's: its global loss and its local one, as many times each as in its paper, with its fixed scale of 10."""

    def forward(self, patch_embeds: Tensor, token_embeds: Tensor, token_mask: Tensor) -> SparcLossOutput:
        """[B, P, D], [B, L, D], [B, L] -> the sum, and its two parts."""
        options = self.options()
        global_loss = 2 * contrastive_loss(patch_embeds.mean(1), pooled(token_embeds, token_mask), **options)
        local_loss = gloria_loss(patch_embeds, token_embeds, None, token_mask, **GLORIA, **options)
        return SparcLossOutput(global_loss + local_loss, global_loss, local_loss)


def whole(x: Tensor) -> Tensor:
    """A tensor without its gradient; a DTensor, which lies in pieces in all processes, put together by all of them."""
    x = x.detach()
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def build_loss(config: TrainConfig, group: str | None = None) -> SparcLoss | ScaledLoss:
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
    if config.loss == "pacl":
        return PaclLoss(PACL_SCALE, backend, group)
    if config.loss == "gloria":
        return GloriaLoss(GLORIA_SCALE, backend, group, learned=False)
    return GlobalLoss(config.loss == "siglip", backend, group, config.exchange)


def filip_scores(patches: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[I, P, D], [J, L, D], [J, L] -> twice [I, J]: what ranks captions, and what ranks images."""
    image_scores, text_scores = late_interaction_scores(patches, tokens, None, mask)
    assert image_scores is not None
    assert text_scores is not None
    return image_scores, text_scores


def pacl_scores(patches: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As ``filip_scores``."""
    scores = attention_pooled_scores(patches, pooled(tokens, mask), **PACL)
    return scores, scores


def gloria_scores(patches: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As ``filip_scores``, of the local part alone: the global one ranks by cosines of pooled embeddings."""
    kind: dict[str, Any] = {"normalize": False, "weights": "words_softmax", "pooling": "logsumexp"}
    scores = attention_pooled_scores(patches, tokens, None, mask, **kind, **GLORIA)
    return scores, scores


# How losses score images and captions where that is not by the cosines of pooled embeddings.
SCORES = {"filip": filip_scores, "pacl": pacl_scores, "gloria": gloria_scores}

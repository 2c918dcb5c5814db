"""The fine-grained loss the way the paper's own listing computes it, for the sake of comparison only.

Bica et al., "Improving fine-grained understanding in image-text pre-training" (2024), appendix C describes the loss as
a sequence of array operations; this is that sequence in PyTorch. What it leaves undefined is left undefined here:

- a row of equal similarities is 0/0 and gives NaN;
- padded tokens still go through every product, and NaN in padding reaches the loss: masks are multiplied and
  subtracted, so that they scale what stands there instead of removing it;
- the listing's global loss averages token embeddings over padding too (sparc_kernels averages valid tokens). That part
  is not measured here.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1e9  # subtracted from the logits of padded columns


def _cross_entropy(queries: Tensor, keys: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """Mean over valid tokens of the cross-entropy of each row against its own position: [B, L, D] twice, [B, L]."""
    logits = scale * torch.einsum("bmd,bnd->bmn", queries, keys).float()
    logits = logits - LARGE * (1 - mask[:, None, :])
    diagonal = logits.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return -(diagonal * mask).sum() / mask.sum()


def fine_grained_listing(patches: Tensor, tokens: Tensor, mask: Tensor | None, scale: Tensor) -> Tensor:
    """[B, P, D], [B, L, D], [B, L] bool or None, [] -> []."""
    valid = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask.float()
    similarity = torch.einsum("bld,bpd->blp", tokens, patches)
    low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
    similarity = (similarity - low) / (high - low)
    similarity = torch.where(similarity < 1 / patches.shape[1], 0, similarity)
    weights = similarity / similarity.sum(-1, keepdim=True)
    groups = torch.einsum("blp,bpd->bld", weights, patches)
    groups = groups / groups.norm(dim=-1, keepdim=True)
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    return (_cross_entropy(groups, tokens, valid, scale) + _cross_entropy(tokens, groups, valid, scale)) / 2

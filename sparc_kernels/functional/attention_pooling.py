"""Attention-pooled similarity over the batch: every token of every caption attends to the patches of every image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Fact, Group, ranks_of
from sparc_kernels.functional._captions import (
    Batch,
    check_flag,
    checked,
    refuse_traced,
    with_all_captions,
    without_padding,
)
from sparc_kernels.functional._common import recordable
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.attention_pooling.autograd import AttentionPooledFunction
from sparc_kernels.ops.attention_pooling.reference import attention_pooled_reference

WEIGHTS = ("softmax", "softmax_sink", "sigmoid", "words_softmax")
POOLINGS = ("mean", "logsumexp")


def attention_pooled_scores(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    weights: str = "softmax",
    attention_scale: float = 10.0,
    pooling: str = "mean",
    pooling_scale: float = 5.0,
    normalize: bool = True,
    group: Group = None,
    backend: str = "auto",
) -> Tensor:
    """Scores of all images with all captions by attention, without the similarities or contexts of all their tokens.

    Each token of a caption weighs the patches of an image by their similarity; its cosine with the weighted sum of the
    patches is pooled over the tokens. With tokens that are words this is the local similarity of GLoRIA
    (``weights="words_softmax"``, ``pooling="logsumexp"``; Huang et al., ICCV 2021); with one embedding per caption
    ([J, D]) the compatibility of PACL (Mukhoti et al., arXiv 2212.04994) and the text-conditioned image of FLAIR (Xiao
    et al., arXiv 2412.03561). Kept for the backward pass are the inputs, a norm per token and a number per pair: it
    computes the similarities again.

    Args:
        image_tokens: [I, P, D] patch embeddings; float16, bfloat16, float32 or float64.
        text_tokens: [J, L, D] token embeddings of the same dtype and device, or [J, D]: one per caption, or packed
            [N, D] with ``cu_seqlens``.
        image_mask: [I, P] bool, True = valid; None = all are.
        text_mask: [J, L] bool, True = valid; None = all are. None where captions are packed or have one embedding.
        cu_seqlens: [J + 1] int32 or int64, rising from 0 to N: caption j is ``cu_seqlens[j]`` to ``cu_seqlens[j + 1]``.
        max_seqlen: the longest packed caption, or more (not looked at on a GPU). None: asked of ``cu_seqlens``, for
            which the host waits; it has to be given where the call is traced or transformed, and with meta tensors.
        weights: of a token's similarities s with the valid patches. ``"softmax"`` of ``attention_scale * s``;
            ``"softmax_sink"``: with a further logit 0 whose value is 0 (an empty token), which only shortens the sum:
            its cosine is that of ``"softmax"`` until the sum is shorter than 1e-12, and then goes to 0; ``"sigmoid"``
            of ``attention_scale * s``; ``"words_softmax"``: for each patch a softmax of s over the caption's valid
            tokens, then for each token a softmax over patches of ``attention_scale`` times it.
        attention_scale: 1 / temperature, a positive number.
        pooling: ``"mean"`` over valid tokens, or ``"logsumexp"`` of ``pooling_scale`` times their cosines.
        pooling_scale: a positive number.
        normalize: patches and tokens are normalised first; False: similarities are products of the embeddings as they
            are, and so is the sum of patches.
        group: ``"world"`` or a process group, as in :func:`late_interaction_scores`: J are the captions of all ranks.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [I, J] in float32 (float64 for float64 embeddings). An image without a valid patch, or a caption without a valid
        token, scores 0 and has gradient 0. NaN in a valid token makes the scores of its image or caption NaN.

    Raises:
        TypeError: an argument is no tensor, or of another dtype than it has to be.
        ValueError: shapes, devices, offsets or options that do not fit, with the argument's name.
        NotImplementedError: the backend cannot serve the call, or ``group`` is given where it is traced.
    """
    for name, value, known in (("weights", weights, WEIGHTS), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    for name, scale in (("attention_scale", attention_scale), ("pooling_scale", pooling_scale)):
        _validate.weight(name, scale)
        if scale <= 0:
            raise ValueError(f"{name} must be positive, got {scale}")
    check_flag("normalize", normalize)
    ranks = ranks_of(group, "mean", "attention_pooled_scores")
    if cu_seqlens is None and isinstance(text_tokens, Tensor) and text_tokens.dim() == 2:
        if text_mask is not None:
            raise ValueError("text_mask must be None where text_tokens has shape [J, D]")
        text_tokens = text_tokens[:, None]
    batch = checked(image_tokens, text_tokens, image_mask, text_mask, cu_seqlens, max_seqlen)
    backend = resolve("attention_pooling", backend, batch.image_tokens.device, batch.image_tokens.dtype)
    options = (normalize, weights, float(attention_scale), pooling, float(pooling_scale))
    if ranks is None:
        return _scores(batch, options, backend)
    refuse_traced("attention_pooled_scores", group)
    facts: dict[str, Fact] = {
        "weights": (weights, WEIGHTS),
        "attention_scale": float(attention_scale),
        "pooling": (pooling, POOLINGS),
        "pooling_scale": float(pooling_scale),
        "normalize": normalize,
    }
    batch, spread = with_all_captions(batch, max_seqlen, facts, ranks)
    return without_padding(_scores(batch, options, backend), spread)


def _scores(batch: Batch, options: tuple[Any, ...], backend: str) -> Tensor:
    if backend == "eager":
        inputs: list[Any] = [*map(recordable, batch[:-1]), batch.max_tokens, *options]
        return attention_pooled_reference(*inputs)
    scores, *_ = apply(AttentionPooledFunction, "attention_pooled_forward", *batch, *options, backend)
    found: Tensor = scores
    return found

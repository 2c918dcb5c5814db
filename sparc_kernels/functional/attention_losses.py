"""Losses on attention-pooled scores: GLoRIA's local loss, PACL, and FLAIR's text-conditioned sigmoid loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.distributed import Fact, Group, Ranks, Spread, ranks_of, replicated
from sparc_kernels.functional._candidates import checked_scale, checked_single
from sparc_kernels.functional._captions import Batch, check_captions, checked, with_all_captions
from sparc_kernels.functional._score_losses import sigmoid_of_pairs, symmetric_cross_entropy
from sparc_kernels.functional.attention_pooling import pooled_scores

PACL_WEIGHTS = ("sigmoid", "softmax")


def gloria_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    attention_scale: float = 4.0,
    pooling_scale: float = 5.0,
    logit_scale: float | Tensor = 10.0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The local loss of GLoRIA: cross-entropy both ways on log-sum-exps of the words' cosines with their regions.

    "GLoRIA: A Multimodal Global-Local Representation Learning Framework" (Huang et al., ICCV 2021), section 3.2, as its
    public code computes it (marshuang80/gloria, ``local_loss``), with regions v_p of an image and words t_l of a
    caption, both as they are:

        b_lp = softmax over words of t_l . v_p          a_lp = softmax over regions of attention_scale b_lp
        c_l = sum_p a_lp v_p                             Z = log sum_l exp(pooling_scale cos(t_l, c_l))

    and the loss is the cross-entropy of ``logit_scale`` Z over captions plus that over images, each a mean over the
    batch. Its global loss is ``2 * contrastive_loss(images, texts, logit_scale=10.0)``.

    Args:
        image_tokens: [B, P, D] regions, and all else, as in :func:`attention_pooled_scores`.
        text_tokens: [B, L, D] words, or packed [N, D].
        attention_scale, pooling_scale: the code's ``temp1`` and ``temp2``, positive numbers.
        logit_scale: its ``temp3``, a number or a one-element tensor (which receives a gradient in its shape).
        group: ``"world"`` or a process group: the loss is that of the batches of all its ranks, and each rank returns
            it (docs/distributed.md). What a rank comes with is said at :func:`attention_pooled_scores`; all numbers
            are the same on all. Can be traced. None: this process alone.
        gradients: what happens to the gradients of the ranks afterwards: ``"mean"`` (DDP, FSDP2) or ``"sum"``. With
            ``"mean"`` the gradient of ``logit_scale`` is that of the loss on every rank.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch. A caption without a valid word, or an
        image without a valid region, has Z = 0 with everybody.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention_pooled_scores`; as many images as captions are
            needed.
    """
    ranks = ranks_of(group, gradients, "gloria_loss")
    _validate.positive("attention_scale", attention_scale)
    _validate.positive("pooling_scale", pooling_scale)
    batch = checked(image_tokens, text_tokens, image_mask, text_mask, cu_seqlens, max_seqlen)
    check_captions(batch)
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_tokens", batch.image_tokens), ranks)
    pooling = _Pooling(False, "words_softmax", float(attention_scale), "logsumexp", float(pooling_scale))
    scores, spread = _scores(batch, max_seqlen, pooling, _facts(scale), ranks, backend)
    return 2 * symmetric_cross_entropy(scores, scores, scale, spread)


def pacl_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    *,
    weights: str = "sigmoid",
    attention_scale: float = 10.0,
    logit_scale: float | Tensor = 10.0,
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The loss of PACL: CLIP's, of the cosines of captions with the patches that each of them weighs.

    "Open Vocabulary Semantic Segmentation with Patch Aligned Contrastive Learning" (Mukhoti et al., 2022, arXiv
    2212.04994), section 3: with patches v_p of an image and the embedding t of a caption, both of length 1,

        a_p = sigmoid(attention_scale t . v_p)     or     softmax over patches of it
        score = cos(t, sum_p a_p v_p)

    for every image with every caption, and the mean of the cross-entropies of ``logit_scale`` times it over captions
    and over images. Weights and numbers are those of the re-implementation NMS05/Patch-Aligned-Contrastive-Learning,
    which differs in two points: it pools an image for its own caption alone, and sums patches of any length. With
    ``weights="softmax"`` they sum to 1, which is taken to be the paper's form.

    Args:
        image_tokens: [B, P, D] patch embeddings, and all else, as in :func:`attention_pooled_scores`.
        text_tokens: [B, D]: one embedding per caption.
        weights: ``"sigmoid"`` or ``"softmax"``.
        attention_scale: a positive number.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        group, gradients: as in :func:`gloria_loss`.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch. An image without a valid patch scores 0
        with everybody.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention_pooled_scores`; as many images as captions are
            needed.
    """
    ranks = ranks_of(group, gradients, "pacl_loss")
    check_pacl_weights(weights)
    _validate.positive("attention_scale", attention_scale)
    batch = _checked_of_captions(image_tokens, text_tokens, image_mask)
    check_captions(batch)
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_tokens", batch.image_tokens), ranks)
    pooling = _Pooling(True, weights, float(attention_scale))
    scores, spread = _scores(batch, None, pooling, _facts(scale), ranks, backend)
    return symmetric_cross_entropy(scores, scores, scale, spread)


def flair_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    *,
    captions_per_image: int = 1,
    attention_scale: float | None = None,
    logit_scale: float | Tensor = 10.0,
    logit_bias: float | Tensor = -10.0,
    group: Group = None,
    gradients: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The text-conditioned sigmoid loss of FLAIR, of every image with every caption.

    "FLAIR: VLM with Fine-grained Language-informed Image Representations" (Xiao et al., 2024, arXiv 2412.03561),
    section 3: with patches v_p of an image and the embedding t of a caption, both as they are,

        a_p = softmax over patches of attention_scale t . v_p
        z = logit_scale cos(t, sum_p a_p v_p) + logit_bias
        loss = 1 / B sum over all pairs of log(1 + exp(-y z)), with y = 1 for an image and its own captions, else -1

    The paper's empty token, one more patch whose product and value are 0, shortens the sum and changes no cosine.
    Projections are the model's: with ``image_tokens = norm(patches) @ M`` this is FLAIR's pooling in one head, with M
    for its value and output projections and M transposed for its query and key projections. FLAIR has 8 heads, and
    norms and projections of their own for queries, keys and values. Its public code draws one caption of every other
    image as a negative and divides by B + K - 1; with all captions and B, as here, that is the same for K = 1.

    Args:
        image_tokens: [B, P, D] patch embeddings, and all else, as in :func:`attention_pooled_scores`.
        text_tokens: [B K, D]: one embedding per caption; captions K i to K i + K - 1 belong to image i.
        captions_per_image: K.
        attention_scale: a positive number; None: 1 / sqrt(D), as in attention.
        logit_scale: 1 / temperature, a number or a one-element tensor (which receives a gradient in its shape).
        logit_bias: added to every logit, a number or a one-element tensor.
        group, gradients: as in :func:`gloria_loss`, and for ``logit_bias`` too.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch. An image without a valid patch scores 0
        with everybody.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention_pooled_scores`; K times as many captions as
            images are needed.
    """
    ranks = ranks_of(group, gradients, "flair_loss")
    _validate.count("captions_per_image", captions_per_image)
    if attention_scale is not None:
        _validate.positive("attention_scale", attention_scale)
    batch = _checked_of_captions(image_tokens, text_tokens, image_mask)
    check_captions(batch, captions_per_image)
    scale = replicated(checked_scale("logit_scale", logit_scale, "image_tokens", batch.image_tokens), ranks)
    bias = replicated(checked_single("logit_bias", logit_bias, "image_tokens", batch.image_tokens), ranks)
    attention = batch.image_tokens.shape[2] ** -0.5 if attention_scale is None else float(attention_scale)
    facts = _facts(scale) | {
        "captions_per_image": captions_per_image,
        "logit_bias requires_grad": bias.requires_grad,
    }
    scores, spread = _scores(batch, None, _Pooling(False, "softmax", attention), facts, ranks, backend)
    return sigmoid_of_pairs(scores, scale, bias, captions_per_image, spread)


class _Pooling(NamedTuple):
    """The op's arguments of these names."""

    normalize: bool
    weights: str
    attention_scale: float
    pooling: str = "mean"
    pooling_scale: float = 1.0


def _scores(
    batch: Batch,
    max_seqlen: int | None,
    pooling: _Pooling,
    facts: dict[str, Fact],
    ranks: Ranks | None,
    backend: str,
) -> tuple[Tensor, Spread | None]:
    """[I, J], and where the captions of all ranks are."""
    backend = resolve("attention_pooling", backend, batch.image_tokens.device, batch.image_tokens.dtype)
    if ranks is None:
        return pooled_scores(batch, pooling, backend), None
    facts |= {
        "image_tokens requires_grad": batch.image_tokens.requires_grad,
        "weights": (pooling.weights, (*PACL_WEIGHTS, "words_softmax")),
        "attention_scale": pooling.attention_scale,
        "pooling_scale": pooling.pooling_scale,
    }
    batch, spread = with_all_captions(batch, max_seqlen, facts, ranks)
    return pooled_scores(batch, pooling, backend), spread


def _facts(scale: Tensor) -> dict[str, Fact]:
    return {"logit_scale requires_grad": scale.requires_grad}


# Checks


def check_pacl_weights(weights: object) -> None:
    if weights not in PACL_WEIGHTS:
        raise ValueError(f"weights must be {' or '.join(map(repr, PACL_WEIGHTS))}, got {weights!r}")


def _checked_of_captions(image_tokens: Tensor, text_tokens: Tensor, image_mask: Tensor | None) -> Batch:
    """With one token per caption."""
    _validate.embeddings("text_tokens", text_tokens, "[B, D]")
    return checked(image_tokens, text_tokens[:, None], image_mask, None, None, None)

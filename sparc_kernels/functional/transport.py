"""Optimal transport between the tokens of an image and those of its own caption."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels._dispatch import resolve
from sparc_kernels.functional._common import checked_pair, recordable, scalar
from sparc_kernels.ops._registration import apply
from sparc_kernels.ops.optimal_transport.autograd import TransportFunction
from sparc_kernels.ops.optimal_transport.reference import transport_reference


class _Pairs(NamedTuple):
    """Checked arguments of the op, under its names."""

    image_tokens: Tensor
    text_tokens: Tensor
    image_mask: Tensor | None
    text_mask: Tensor | None
    beta: Tensor
    iterations: int
    proximal: bool


def optimal_transport_distance(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    iterations: int = 50,
    proximal: bool = True,
    backend: str = "auto",
) -> Tensor:
    """What it costs to transport the tokens of each caption to the patches of its image, at 1 - cosine a unit.

    Every valid token has the same weight, and so has every valid patch; the plan is that of ``iterations`` steps of
    the inexact proximal point method (IPOT: Xie et al., 2018, arXiv 1802.04307), as in UNITER's word-region alignment
    (Chen et al., 2019, arXiv 1909.11740), whose ``beta`` and number of steps are the defaults. Gradients flow through
    the costs, with the plan as a constant, as in UNITER's code: at an optimal plan that is the whole derivative. Only
    logarithms of scalings are iterated on where a kernel matrix would run out of range, so any ``beta`` will do.

    Args:
        image_tokens: [B, P, D] patch or region embeddings; float16, bfloat16, float32 or float64. Not normalised by the
            caller.
        text_tokens: [B, L, D] token embeddings of the same dtype and device.
        image_mask: [B, P] bool, True = valid; None = all are.
        text_mask: [B, L] bool, True = valid; None = all are.
        beta: step size of the proximal method, positive; the smaller it is, the fewer steps are needed.
        iterations: number of steps, at least 1.
        proximal: False: entropic transport instead, ``iterations`` steps of Sinkhorn (Cuturi, 2013, arXiv 1306.0895)
            with ``beta`` as the weight of the entropy.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"eager"``.

    Returns:
        [B] in float32 (float64 for float64 embeddings); 0, with gradient 0, where an image or a caption has nothing
        valid. NaN in a valid token makes its pair NaN.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: shapes, devices or options that do not fit, with the argument's name.
        NotImplementedError: the backend cannot serve the call.
    """
    pairs = _checked(image_tokens, text_tokens, image_mask, text_mask, beta, iterations, proximal)
    backend = resolve("optimal_transport", backend, pairs.image_tokens.device, pairs.image_tokens.dtype)
    if backend == "eager":
        return _eager(pairs)[0].sum(1)
    costs, _, _ = apply(TransportFunction, "transport_forward", *pairs, False, backend)
    return costs.sum(1)


@torch.no_grad()
def transport_plan(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    iterations: int = 50,
    proximal: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The plan behind :func:`optimal_transport_distance`, whose arguments and errors are these: how much of each token
    goes to each patch.

    Returns:
        [B, L, P] without gradient, in float32 (float64 for float64 embeddings). Rows of the n valid tokens sum to 1 /
        n; columns of the m valid patches to 1 / m in the limit of many steps; 0 where a token or patch is not valid.
    """
    pairs = _checked(image_tokens, text_tokens, image_mask, text_mask, beta, iterations, proximal)
    backend = resolve("optimal_transport", backend, pairs.image_tokens.device, pairs.image_tokens.dtype)
    if backend == "eager":
        return _eager(pairs)[1]
    return apply(TransportFunction, "transport_forward", *pairs, True, backend)[2]


def word_region_alignment_loss(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    matched: Tensor | None = None,
    beta: float = 0.5,
    iterations: int = 50,
    backend: str = "auto",
) -> Tensor:
    """UNITER's word-region alignment: transport is to be cheap where image and caption belong together, dear elsewhere.

    Chen et al., 2019 (arXiv 1909.11740), section 3.3; with captions that were exchanged, as ``pretrain.py`` of UNITER:
    the distances of matched pairs minus those of the others, over the number of pairs.

    Args:
        image_tokens: [B, P, D], and all else, as in :func:`optimal_transport_distance`.
        text_tokens: [B, L, D].
        matched: [B] bool, whether image and caption belong together; None: all do, and the loss is their mean distance.

    Returns:
        [] in float32 (float64 for float64 embeddings); 0 for an empty batch.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`optimal_transport_distance`.
    """
    distance = optimal_transport_distance(
        image_tokens, text_tokens, image_mask, text_mask, beta=beta, iterations=iterations, backend=backend
    )
    if matched is not None:
        _check_matched(matched, image_tokens)
        distance = torch.where(matched, distance, -distance)
    return distance.sum() / max(distance.shape[0], 1)


def _eager(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Costs and plan by the definition."""
    inputs: list[Any] = [*map(recordable, pairs[:5]), *pairs[5:]]
    return transport_reference(*inputs)


# Checks


def _checked(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    beta: object,
    iterations: object,
    proximal: object,
) -> _Pairs:
    image_tokens, text_tokens = checked_pair(
        ("image_tokens", image_tokens, "[B, P, D]"), ("text_tokens", text_tokens, "[B, L, D]"), {"B": 0, "D": 2}
    )
    _validate.mask("image_mask", image_mask, "image_tokens", image_tokens)
    _validate.mask("text_mask", text_mask, "text_tokens", text_tokens)
    _validate.weight("beta", beta)
    if not beta > 0:  # type: ignore[operator]
        raise ValueError(f"beta must be positive, got {beta}")
    if isinstance(iterations, bool) or not isinstance(iterations, (int, torch.SymInt)):
        raise TypeError(f"iterations must be an integer, got {type(iterations).__name__}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not isinstance(proximal, bool):
        raise TypeError(f"proximal must be True or False, got {proximal!r}")
    step = scalar(beta, image_tokens)  # type: ignore[arg-type]
    return _Pairs(image_tokens, text_tokens, image_mask, text_mask, step, iterations, proximal)  # type: ignore[arg-type]


def _check_matched(matched: object, image_tokens: Tensor) -> None:
    if not isinstance(matched, Tensor):
        raise TypeError(f"matched must be a bool torch.Tensor or None, got {type(matched).__name__}")
    if matched.dtype != torch.bool:
        raise TypeError(f"matched must have dtype torch.bool (True = matched), got {matched.dtype}")
    if matched.shape != image_tokens.shape[:1]:
        raise ValueError(f"matched must have shape [{image_tokens.shape[0]}], got {list(matched.shape)}")
    _validate.same_device("matched", matched, "image_tokens", image_tokens)

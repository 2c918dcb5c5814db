"""Global losses with the names, arguments and calls of open_clip's, so that a swap is one import.

    from sparc_kernels.modules import ClipLoss, DistillClipLoss, SigLipLoss      # instead of: from open_clip import ...

Signatures are those of open_clip 3.3 (``open_clip/loss.py``); ``backend`` is ours, and by keyword only. What differs:

- The similarity matrix is never stored.
- Similarities are cosines: features are normalised here, too. open_clip's models hand them out normalised, which makes
  the second time a matter of rounding: the loss, and all gradients from the model's own normalisation back, are the
  same. The gradient of the features themselves lacks the part along the features, which that normalisation discards
  anyway. Features that are not normalised, whose length scales open_clip's logits, give the loss of their directions.
- Losses are float32 for half-precision features (float64 for float64), where open_clip's are in the features' dtype.
- One process: ``world_size > 1`` raises NotImplementedError. Arguments that only say how to distribute
  (``local_loss``, ``gather_with_grad``, ``rank``, ``use_horovod``, ``dist_impl``) or how to keep labels
  (``cache_labels``; there are none) are kept as attributes and have no effect.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparc_kernels import _validate
from sparc_kernels.functional.contrastive import contrastive_loss, sigmoid_loss
from sparc_kernels.functional.similarity import Labels, Teacher, similarity_logsumexp

DIST_IMPLS = ("bidir", "shift", "reduce", "gather")


class _OneProcess(nn.Module):
    def __init__(self, cache_labels: bool, rank: int, world_size: int, backend: str) -> None:
        super().__init__()
        if world_size != 1:
            raise NotImplementedError(
                "world_size must be 1: the losses are not distributed yet (each process computes the loss of its own "
                f"batch), got {world_size}"
            )
        _validate.backend(backend)
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.backend = backend

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"


class ClipLoss(_OneProcess):
    """open_clip's ``ClipLoss``: cross-entropy of both directions against the diagonal (Radford et al., 2021).

    Args:
        local_loss, gather_with_grad, cache_labels, rank, use_horovod: without effect, as said above.
        world_size: 1.
        backend: as in :func:`sparc_kernels.contrastive_loss`.

    Raises:
        NotImplementedError: ``world_size`` is not 1.
        ValueError: no such backend.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(cache_labels, rank, world_size, backend)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """[B, D], [B, D] and 1 / temperature to the loss [], or to ``{"contrastive_loss": loss}``.

        ``logit_bias``, one number, moves every logit alike and so changes no softmax: its gradient is exactly 0, and is
        returned as 0, since optimizers and DDP expect one.

        Raises:
            TypeError, ValueError, NotImplementedError: as :func:`sparc_kernels.contrastive_loss`.
        """
        loss = contrastive_loss(image_features, text_features, logit_scale=logit_scale, backend=self.backend)
        if logit_bias is not None:
            _validate.scalar("logit_bias", logit_bias, "image_features", image_features)
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.reshape(()).to(loss.dtype)
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(_OneProcess):
    """open_clip's ``SigLipLoss``: each pair a binary classification (Zhai et al., 2023, equation 1).

    Args:
        cache_labels, rank, dist_impl: without effect, as said above.
        world_size: 1.
        backend: as in :func:`sparc_kernels.sigmoid_loss`.

    Raises:
        NotImplementedError: ``world_size`` is not 1.
        ValueError: no such backend or ``dist_impl``.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(cache_labels, rank, world_size, backend)
        if dist_impl not in (None, *DIST_IMPLS):
            raise ValueError(f"dist_impl must be None or one of {', '.join(map(repr, DIST_IMPLS))}, got {dist_impl!r}")
        self.dist_impl = dist_impl or "bidir"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """[B, D], [B, D], 1 / temperature and the bias of the logits (None: 0) to the sum over all pairs divided by B,
        or to ``{"contrastive_loss": loss}``.

        Raises:
            TypeError, ValueError, NotImplementedError: as :func:`sparc_kernels.sigmoid_loss`.
        """
        loss = sigmoid_loss(
            image_features,
            text_features,
            logit_scale=logit_scale,
            logit_bias=0.0 if logit_bias is None else logit_bias,
            backend=self.backend,
        )
        return {"contrastive_loss": loss} if output_dict else loss


class DistillClipLoss(ClipLoss):
    """open_clip's ``DistillClipLoss``: the loss of CLIP, and cross-entropy against a teacher's softmax.

    Both come from one sweep over the similarities. The arguments are those of :class:`ClipLoss`.
    """

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """The contrastive and the distillation loss, each [], each the mean of both directions.

        The teacher's features ``dist_image_features`` and ``dist_text_features`` [B, K] may have a width of their own;
        they are normalised as the student's are, and the teacher gets no gradient. With ``output_dict``:
        ``{"contrastive_loss": ..., "distill_loss": ...}``.

        Raises:
            TypeError, ValueError, NotImplementedError: as :func:`sparc_kernels.functional.similarity_logsumexp`, for
                a teacher of another batch too.
        """
        _validate.embeddings("image_features", image_features, "[B, D]")
        _validate.embeddings("text_features", text_features, "[B, D]")
        _validate.same("text_features", text_features, "image_features", image_features, {"B": 0, "D": 1})
        batch = image_features.shape[0]
        ids = torch.arange(batch, device=image_features.device)
        # The diagonal is named as a target, not excluded: the distillation needs its probability, and what is
        # subtracted within the sweep is subtracted before anything is rounded.
        found = similarity_logsumexp(
            image_features,
            text_features,
            row_scale=logit_scale,
            targets=Labels(ids, ids),
            teacher=Teacher(dist_image_features, dist_text_features, dist_logit_scale),
            backend=self.backend,
        )
        row_lse, col_lse, row_target, col_target, row_soft, col_soft = (x for x in found if x is not None)
        lse, count = row_lse + col_lse, 2 * max(batch, 1)
        contrastive = (lse - row_target - col_target).sum() / count
        distill = (lse - row_soft - col_soft).sum() / count
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill

"""Global losses with the names, arguments and calls of open_clip's, so that a swap is one import.

    from sparc_kernels.modules import ClipLoss, DistillClipLoss, SigLipLoss      # instead of: from open_clip import ...

Signatures are those of open_clip 3.3 (``open_clip/loss.py``); ``backend`` is ours, and by keyword only. What differs:

- The similarity matrix is never stored.
- Similarities are cosines: features are normalised here, too. open_clip's models hand them out normalised, which makes
  the second time a matter of rounding: the loss, and all gradients from the model's own normalisation back, are the
  same. The gradient of the features themselves lacks the part along the features, which that normalisation discards
  anyway. Features that are not normalised, whose length scales open_clip's logits, give the loss of their directions.
- Losses are float32 for half-precision features (float64 for float64), where open_clip's are in the features' dtype.
- With ``world_size > 1`` the loss is the global one, and every rank returns it, whatever ``local_loss`` and
  ``dist_impl`` say: they are ways to compute it. ``gather_with_grad=False`` is refused, since its gradients are not
  those of the loss (docs/distributed.md); so is ``use_horovod``. ``group``, ``gradients`` and ``exchange`` are ours, by
  keyword only: ``world_size > 1`` is ``group="world"``. ``cache_labels`` is without effect, for there are no labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.distributed import Group, check_gradients, check_group, global_ratios, ranks_of, replicated
from sparc_kernels.functional.contrastive import contrastive_loss, sigmoid_loss
from sparc_kernels.functional.similarity import Labels, Teacher, similarity_logsumexp
from sparc_kernels.modules._module import Module

DIST_IMPLS = ("bidir", "shift", "reduce", "gather")


class _GlobalLoss(Module):
    exchanges: tuple[str, ...] = ("gather", "ring")

    def __init__(
        self,
        cache_labels: bool,
        rank: int,
        world_size: int,
        group: Group,
        gradients: str,
        exchange: str,
        backend: str,
    ) -> None:
        super().__init__()
        for name, value, least in (("rank", rank, 0), ("world_size", world_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        check_group(group)
        check_gradients(gradients)
        if exchange not in self.exchanges:
            raise ValueError(f"exchange must be {' or '.join(map(repr, self.exchanges))}, got {exchange!r}")
        _validate.backend(backend)
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.group = "world" if group is None and world_size > 1 else group
        self.gradients = gradients
        self.exchange = exchange
        self.backend = backend

    def _checked_group(self) -> Group:
        """
        Raises:
            ValueError: ``world_size`` or ``rank`` is not what the process group says.
        """
        if self.world_size > 1:
            ranks = ranks_of(self.group, self.gradients, type(self).__name__)
            found = (1, 0) if ranks is None else (ranks.size, ranks.rank)
            for name, given, actual in zip(("world_size", "rank"), (self.world_size, self.rank), found):
                if given != actual:
                    raise ValueError(f"{name} must be that of the process group, {actual}, got {given}")
        return self.group

    def extra_repr(self) -> str:
        spread = ""
        if self.group is not None:
            spread = f"group={self.group!r}, gradients={self.gradients!r}, exchange={self.exchange!r}, "
        return f"{spread}backend={self.backend!r}"


class ClipLoss(_GlobalLoss):
    """open_clip's ``ClipLoss``: cross-entropy of both directions against the diagonal (Radford et al., 2021).

    Args:
        local_loss, cache_labels: without effect, as said above.
        gather_with_grad: has to be True where ``world_size`` is more than 1.
        rank, world_size: of this process; more than one is ``group="world"``.
        use_horovod: False.
        group, gradients, exchange, backend: as in :func:`sparc_kernels.contrastive_loss`.

    Raises:
        NotImplementedError: ``use_horovod`` with several processes.
        ValueError: no such backend; several processes without ``gather_with_grad``.
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
        group: Group = None,
        gradients: str = "mean",
        exchange: str = "gather",
        backend: str = "auto",
    ) -> None:
        super().__init__(cache_labels, rank, world_size, group, gradients, exchange, backend)
        if world_size > 1 and not gather_with_grad:
            gone = "point elsewhere" if local_loss else f"are {1 / world_size:.3g} of the loss's"
            raise ValueError(
                f"gather_with_grad must be True where world_size is {world_size}, got False: what ranks give each "
                f"other's embeddings would be lost, and the towers' gradients {gone}"
            )
        if world_size > 1 and use_horovod:
            raise NotImplementedError("use_horovod must be False: the exchange is torch.distributed's, got True")
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
        loss = contrastive_loss(
            image_features,
            text_features,
            logit_scale=logit_scale,
            group=self._checked_group(),
            gradients=self.gradients,
            exchange=self.exchange,
            backend=self.backend,
        )
        if logit_bias is not None:
            _validate.scalar("logit_bias", logit_bias, "image_features", image_features)
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.reshape(()).to(loss.dtype)
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(_GlobalLoss):
    """open_clip's ``SigLipLoss``: each pair a binary classification (Zhai et al., 2023, equation 1).

    Args:
        cache_labels, dist_impl: without effect, as said above.
        rank, world_size: of this process; more than one is ``group="world"``.
        group, gradients, exchange, backend: as in :func:`sparc_kernels.sigmoid_loss`.

    Raises:
        ValueError: no such backend or ``dist_impl``.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        *,
        group: Group = None,
        gradients: str = "mean",
        exchange: str = "gather",
        backend: str = "auto",
    ) -> None:
        super().__init__(cache_labels, rank, world_size, group, gradients, exchange, backend)
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
            group=self._checked_group(),
            gradients=self.gradients,
            exchange=self.exchange,
            backend=self.backend,
        )
        return {"contrastive_loss": loss} if output_dict else loss


class DistillClipLoss(ClipLoss):
    """open_clip's ``DistillClipLoss``: the loss of CLIP, and cross-entropy against a teacher's softmax.

    Both come from one sweep over the similarities. The arguments are those of :class:`ClipLoss`, but that a ring does
    not serve a teacher.
    """

    exchanges = ("gather",)

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
        group = self._checked_group()
        ranks = ranks_of(group, self.gradients, type(self).__name__)
        _validate.scalar("logit_scale", logit_scale, "image_features", image_features)
        if ranks is not None and isinstance(logit_scale, Tensor):
            logit_scale = replicated(logit_scale, ranks)
        ids = torch.arange(batch, device=image_features.device)
        if ranks is not None:
            ids = ids * ranks.size + ranks.rank  # no other rank's
        # The diagonal is named as a target, not excluded: the distillation needs its probability, and what is
        # subtracted within the sweep is subtracted before anything is rounded.
        found = similarity_logsumexp(
            image_features,
            text_features,
            row_scale=logit_scale,
            targets=Labels(ids, ids),
            teacher=Teacher(dist_image_features, dist_text_features, dist_logit_scale),
            group=group,
            backend=self.backend,
        )
        row_lse, col_lse, row_target, col_target, row_soft, col_soft = (x for x in found if x is not None)
        lse = row_lse + col_lse
        sums = torch.stack([(lse - row_target - col_target).sum(), (lse - row_soft - col_soft).sum()]) / 2
        contrastive, distill = global_ratios(sums, torch.full_like(sums, batch).detach(), ranks).unbind()
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill

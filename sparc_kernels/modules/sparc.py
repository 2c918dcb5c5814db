"""The SPARC loss with a learnable temperature."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.distributed import Group, check_gradients, check_group
from sparc_kernels.functional import DEFAULT_LOGIT_SCALE, SparcLossOutput, sparc_loss
from sparc_kernels.functional.alignment import check_reduction, check_similarity_threshold
from sparc_kernels.modules._scales import LearnedScales, positive


class SparcLoss(LearnedScales):
    """The SPARC loss with a learnable temperature (:func:`sparc_kernels.sparc_loss`).

    The parameter ``log_logit_scale`` [1] holds log(1 / temperature), as in CLIP (Radford et al., 2021); it is clamped
    in place to log(``max_logit_scale``) before each use in training mode. Under FSDP2 the forward pass sees a gathered
    copy of it, so call :meth:`clamp_logit_scale` after each step of the optimizer as well.

    On several processes the module belongs inside the model that ``DistributedDataParallel`` or ``fully_shard`` wraps:
    beside it, nobody averages the gradient of the scale, and each process learns one of its own.

    Args:
        logit_scale: initial 1 / temperature.
        local_logit_scale: initial 1 / temperature of the fine-grained loss, which then learns a scale of its own
            (``log_local_logit_scale``); None = both losses share one scale, as in the paper.
        similarity_threshold: sigma of eq 3, in [0, 1]; None = 1 / (number of valid patches of the image).
        global_weight: lambda_g of eq 7.
        local_weight: lambda_f of eq 7.
        reduction: ``"token"``, ``"caption"`` or ``"none"``, as in :func:`sparc_kernels.fine_grained_loss`.
        return_components: return a :class:`sparc_kernels.SparcLossOutput` instead of the loss alone.
        group: ``"world"`` or a process group, as in :func:`sparc_kernels.sparc_loss`.
        gradients: ``"mean"`` or ``"sum"``, what happens to the gradients of the ranks afterwards.
        backend: of both losses, as in :func:`sparc_kernels.sparc_loss`.
        learn_scale: False keeps the scales fixed (buffers instead of parameters).
        max_logit_scale: upper bound of the scales.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`sparc_kernels.sparc_loss`.
    """

    log_local_logit_scale: Tensor | None

    def __init__(
        self,
        *,
        logit_scale: float = DEFAULT_LOGIT_SCALE,
        local_logit_scale: float | None = None,
        similarity_threshold: float | None = None,
        global_weight: float = 0.5,
        local_weight: float = 1.0,
        reduction: str = "token",
        return_components: bool = False,
        group: Group = None,
        gradients: str = "mean",
        backend: str = "auto",
        learn_scale: bool = True,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__(max_logit_scale)
        check_similarity_threshold(similarity_threshold)
        _validate.weight("global_weight", global_weight)
        _validate.weight("local_weight", local_weight)
        check_reduction(reduction)
        check_group(group)
        check_gradients(gradients)
        _validate.backend(backend)
        self.similarity_threshold = similarity_threshold
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.reduction = reduction
        self.group = group
        self.gradients = gradients
        self.return_components = return_components
        self.backend = backend
        self.register_scale("log_logit_scale", positive("logit_scale", logit_scale), learn_scale)
        if local_logit_scale is None:
            self.register_parameter("log_local_logit_scale", None)
        else:
            value = positive("local_logit_scale", local_logit_scale)
            self.register_scale("log_local_logit_scale", value, learn_scale)

    def forward(
        self,
        patch_embeds: Tensor,
        token_embeds: Tensor,
        token_mask: Tensor | None = None,
        *,
        patch_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
    ) -> Tensor | SparcLossOutput:
        """The loss of one batch; the arguments are those of :func:`sparc_kernels.sparc_loss`."""
        if self.training:
            self.clamp_logit_scale()
        local = self.log_local_logit_scale
        return sparc_loss(
            patch_embeds,
            token_embeds,
            token_mask,
            logit_scale=self.log_logit_scale.exp(),
            local_logit_scale=None if local is None else local.exp(),
            patch_mask=patch_mask,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            similarity_threshold=self.similarity_threshold,
            global_weight=self.global_weight,
            local_weight=self.local_weight,
            reduction=self.reduction,
            return_components=self.return_components,
            group=self.group,
            gradients=self.gradients,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, global_weight={self.global_weight}, "
            f"local_weight={self.local_weight}, similarity_threshold={self.similarity_threshold}, "
            f"reduction={self.reduction!r}, backend={self.backend!r}"
        )

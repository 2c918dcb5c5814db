"""The loss of FILIP with a learnable temperature."""

from __future__ import annotations

from torch import Tensor

from sparc_kernels import _validate
from sparc_kernels.distributed import Group, check_gradients, check_group
from sparc_kernels.functional import DEFAULT_LOGIT_SCALE, filip_loss
from sparc_kernels.modules._scales import LearnedScales, positive


class FilipLoss(LearnedScales):
    """The loss of FILIP with a learnable temperature (:func:`sparc_kernels.filip_loss`).

    The parameter ``log_logit_scale`` [1] holds log(1 / temperature); it is clamped as that of
    :class:`sparc_kernels.SparcLoss`.

    Args:
        logit_scale: initial 1 / temperature.
        group: ``"world"`` or a process group, as in :func:`sparc_kernels.filip_loss`.
        gradients: ``"mean"`` or ``"sum"``, what happens to the gradients of the ranks afterwards.
        backend: as in :func:`sparc_kernels.filip_loss`.
        learn_scale: False keeps the scale fixed (a buffer instead of a parameter).
        max_logit_scale: upper bound of the scale.

    Raises:
        TypeError, ValueError: a scale that is no positive number, no process group, or no such backend.
    """

    def __init__(
        self,
        *,
        logit_scale: float = DEFAULT_LOGIT_SCALE,
        group: Group = None,
        gradients: str = "mean",
        backend: str = "auto",
        learn_scale: bool = True,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__(max_logit_scale)
        check_group(group)
        check_gradients(gradients)
        _validate.backend(backend)
        self.group = group
        self.gradients = gradients
        self.backend = backend
        self.register_scale("log_logit_scale", positive("logit_scale", logit_scale), learn_scale)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """The loss [] of one batch; the arguments are those of :func:`sparc_kernels.filip_loss`."""
        if self.training:
            self.clamp_logit_scale()
        return filip_loss(
            image_tokens,
            text_tokens,
            image_mask,
            text_mask,
            logit_scale=self.log_logit_scale.exp(),
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            group=self.group,
            gradients=self.gradients,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        spread = "" if self.group is None else f"group={self.group!r}, gradients={self.gradients!r}, "
        return f"{super().extra_repr()}, {spread}backend={self.backend!r}"

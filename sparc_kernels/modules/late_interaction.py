"""Losses of all images with all captions, token by token, with a learnable temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparc_kernels import _validate
from sparc_kernels.distributed import Group, check_gradients, check_group
from sparc_kernels.functional import DEFAULT_LOGIT_SCALE, filip_loss, flair_loss, gloria_loss, pacl_loss
from sparc_kernels.functional.attention_losses import check_pacl_weights
from sparc_kernels.modules._scales import LearnedScales, positive


class _ScoreLoss(LearnedScales):
    """The scale ``log_logit_scale`` [1], and what all of these losses take."""

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

    def _shared(self) -> dict[str, Any]:
        """The function's arguments of these names."""
        if self.training:
            self.clamp_logit_scale()
        return {
            "logit_scale": self.log_logit_scale.exp(),
            "group": self.group,
            "gradients": self.gradients,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        spread = "" if self.group is None else f"group={self.group!r}, gradients={self.gradients!r}, "
        return f"{super().extra_repr()}, {spread}backend={self.backend!r}"


class FilipLoss(_ScoreLoss):
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
        return filip_loss(
            image_tokens,
            text_tokens,
            image_mask,
            text_mask,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            **self._shared(),
        )


class GloriaLoss(_ScoreLoss):
    """The local loss of GLoRIA (:func:`sparc_kernels.gloria_loss`).

    Args:
        attention_scale, pooling_scale: as in the function.
        logit_scale: initial 1 / temperature.
        learn_scale: True makes ``log_logit_scale`` [1] a parameter; the public code keeps it fixed.
        options: ``group``, ``gradients``, ``backend`` and ``max_logit_scale``, as :class:`FilipLoss` takes them.

    Raises:
        TypeError, ValueError: a scale that is no positive number, no process group, or no such backend.
    """

    def __init__(
        self,
        *,
        attention_scale: float = 4.0,
        pooling_scale: float = 5.0,
        logit_scale: float = 10.0,
        learn_scale: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(logit_scale=logit_scale, learn_scale=learn_scale, **options)
        self.attention_scale = positive("attention_scale", attention_scale)
        self.pooling_scale = positive("pooling_scale", pooling_scale)

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
        """The loss [] of one batch; the arguments are those of :func:`sparc_kernels.gloria_loss`."""
        return gloria_loss(
            image_tokens,
            text_tokens,
            image_mask,
            text_mask,
            attention_scale=self.attention_scale,
            pooling_scale=self.pooling_scale,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            **self._shared(),
        )

    def extra_repr(self) -> str:
        own = f"attention_scale={self.attention_scale:g}, pooling_scale={self.pooling_scale:g}"
        return f"{own}, {super().extra_repr()}"


class PaclLoss(_ScoreLoss):
    """The loss of PACL (:func:`sparc_kernels.pacl_loss`).

    Args:
        weights, attention_scale: as in the function.
        logit_scale: initial 1 / temperature.
        learn_scale: True makes ``log_logit_scale`` [1] a parameter; the public code keeps it fixed.
        options: ``group``, ``gradients``, ``backend`` and ``max_logit_scale``, as :class:`FilipLoss` takes them.

    Raises:
        TypeError, ValueError: a scale that is no positive number, no such weights, process group or backend.
    """

    def __init__(
        self,
        *,
        weights: str = "sigmoid",
        attention_scale: float = 10.0,
        logit_scale: float = 10.0,
        learn_scale: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(logit_scale=logit_scale, learn_scale=learn_scale, **options)
        check_pacl_weights(weights)
        self.weights = weights
        self.attention_scale = positive("attention_scale", attention_scale)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """The loss [] of one batch; the arguments are those of :func:`sparc_kernels.pacl_loss`."""
        return pacl_loss(
            image_tokens,
            text_tokens,
            image_mask,
            weights=self.weights,
            attention_scale=self.attention_scale,
            **self._shared(),
        )

    def extra_repr(self) -> str:
        return f"weights={self.weights!r}, attention_scale={self.attention_scale:g}, {super().extra_repr()}"


class FlairLoss(_ScoreLoss):
    """The text-conditioned sigmoid loss of FLAIR (:func:`sparc_kernels.flair_loss`) with a learnable scale and bias.

    Args:
        captions_per_image, attention_scale: as in the function.
        logit_scale: initial 1 / temperature.
        logit_bias: initial value of the parameter ``logit_bias`` [1].
        learn_scale: False keeps scale and bias fixed (buffers instead of parameters).
        options: ``group``, ``gradients``, ``backend`` and ``max_logit_scale``, as :class:`FilipLoss` takes them.

    Raises:
        TypeError, ValueError: a scale that is no positive number, a bias that is none, captions that are no positive
            integer, no process group, or no such backend.
    """

    logit_bias: Tensor

    def __init__(
        self,
        *,
        captions_per_image: int = 1,
        attention_scale: float | None = None,
        logit_scale: float = 10.0,
        logit_bias: float = -10.0,
        learn_scale: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(logit_scale=logit_scale, learn_scale=learn_scale, **options)
        self.captions_per_image = _validate.count("captions_per_image", captions_per_image)
        self.attention_scale = None if attention_scale is None else positive("attention_scale", attention_scale)
        _validate.weight("logit_bias", logit_bias)
        self._initial_bias = float(logit_bias)
        bias = torch.full((1,), self._initial_bias)
        if learn_scale:
            self.register_parameter("logit_bias", nn.Parameter(bias))
        else:
            self.register_buffer("logit_bias", bias)

    def reset_parameters(self) -> None:
        """Set scale and bias to their initial values."""
        super().reset_parameters()
        with torch.no_grad():
            self.logit_bias.fill_(self._initial_bias)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """The loss [] of one batch; the arguments are those of :func:`sparc_kernels.flair_loss`."""
        return flair_loss(
            image_tokens,
            text_tokens,
            image_mask,
            captions_per_image=self.captions_per_image,
            attention_scale=self.attention_scale,
            logit_bias=self.logit_bias,
            **self._shared(),
        )

    def extra_repr(self) -> str:
        scale = "" if self.attention_scale is None else f"attention_scale={self.attention_scale:g}, "
        return f"captions_per_image={self.captions_per_image}, {scale}{super().extra_repr()}"

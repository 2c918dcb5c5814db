"""Learnable temperatures, as the losses over batches have them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparc_kernels import _validate
from sparc_kernels.modules._module import Module


def positive(name: str, value: float) -> float:
    _validate.positive(name, value)
    return float(value)


class LearnedScales(Module):
    """Holds logarithms of scales in parameters [1], of which ``log_logit_scale`` is the first one."""

    log_logit_scale: Tensor

    def __init__(self, max_logit_scale: float) -> None:
        super().__init__()
        self.max_logit_scale = positive("max_logit_scale", max_logit_scale)
        self._initial: dict[str, float] = {}

    def register_scale(self, name: str, value: float, learn: bool) -> None:
        """A scale of that initial value, under the name of its logarithm: a parameter, or a buffer."""
        value = math.log(min(value, self.max_logit_scale))
        self._initial[name] = value
        tensor = torch.full((1,), value)  # FSDP2 shards no 0-dim parameter
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def reset_parameters(self) -> None:
        """Set the scales to their initial values, as after ``to_empty`` of a module made on the meta device."""
        with torch.no_grad():
            for name, value in self._initial.items():
                getattr(self, name).fill_(value)

    def clamp_logit_scale(self) -> None:
        """Clamp the scales in place to ``max_logit_scale``, DTensors too."""
        with torch.no_grad():
            for name in self._initial:
                getattr(self, name).clamp_(max=math.log(self.max_logit_scale))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._initial:  # checkpoints from before the scales had a dimension
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dim() == 0:
                state_dict[prefix + name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def logit_scale(self) -> Tensor:
        """[]: the current 1 / temperature, without gradient. Under FSDP2 all processes have to ask together."""
        scale = self.log_logit_scale.detach()
        whole = scale.full_tensor() if hasattr(scale, "full_tensor") else scale
        return whole.exp().clamp(max=self.max_logit_scale).reshape(())

    def extra_repr(self) -> str:
        readable = type(self.log_logit_scale) in (Tensor, nn.Parameter) and not self.log_logit_scale.is_meta
        scale = f"{float(self.logit_scale):.4g}" if readable else f"<{self.log_logit_scale.device.type}>"
        return f"logit_scale={scale}"

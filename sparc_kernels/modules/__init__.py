"""``nn.Module`` shells over :mod:`sparc_kernels.functional`; no mathematics of their own."""

from sparc_kernels.modules.contrastive import ClipLoss, DistillClipLoss, SigLipLoss
from sparc_kernels.modules.late_interaction import FilipLoss
from sparc_kernels.modules.sparc import SparcLoss

__all__ = ["ClipLoss", "DistillClipLoss", "FilipLoss", "SigLipLoss", "SparcLoss"]

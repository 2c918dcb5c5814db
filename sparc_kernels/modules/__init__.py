"""``nn.Module`` shells over :mod:`sparc_kernels.functional`, without mathematics of their own; and two models of few
lines, token reduction and token selection."""

from sparc_kernels.modules.contrastive import ClipLoss, DistillClipLoss, SigLipLoss
from sparc_kernels.modules.late_interaction import FilipLoss, FlairLoss, GloriaLoss, PaclLoss
from sparc_kernels.modules.sparc import SparcLoss
from sparc_kernels.modules.token_reduction import SelectedTokens, TokenReduction, TokenSelection

__all__ = [
    "ClipLoss",
    "DistillClipLoss",
    "FilipLoss",
    "FlairLoss",
    "GloriaLoss",
    "PaclLoss",
    "SelectedTokens",
    "SigLipLoss",
    "SparcLoss",
    "TokenReduction",
    "TokenSelection",
]

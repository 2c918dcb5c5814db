"""The public, stateless API: validate, choose a backend, call the op. One file per family of ops."""

from sparc_kernels.functional.alignment import (
    DEFAULT_LOGIT_SCALE,
    SparcLossOutput,
    alignment_weights,
    contrastive_loss,
    fine_grained_loss,
    language_grouped_embeddings,
    sparc_loss,
)

__all__ = [
    "DEFAULT_LOGIT_SCALE",
    "SparcLossOutput",
    "alignment_weights",
    "contrastive_loss",
    "fine_grained_loss",
    "language_grouped_embeddings",
    "sparc_loss",
]

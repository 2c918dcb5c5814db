"""The public, stateless API: validate, choose a backend, call the op. One file per family of ops.

**Autocast.** Inside ``torch.autocast`` the embeddings are cast to the autocast dtype, as for a matrix product;
similarities, softmaxes and losses are accumulated in float32 all the same, and losses are float32. float64 embeddings
are left alone.

**Dtypes.** Losses come in the accumulation dtype: float64 for float64 embeddings, float32 for float32, bfloat16 and
float16.
"""

from sparc_kernels.functional._candidates import Above, Ids, Labels, Pairs, Teacher
from sparc_kernels.functional._common import DEFAULT_LOGIT_SCALE
from sparc_kernels.functional._streamed import SimilarityLogsumexp
from sparc_kernels.functional.alignment import alignment_weights, fine_grained_loss, language_grouped_embeddings
from sparc_kernels.functional.attention_losses import flair_loss, gloria_loss, pacl_loss
from sparc_kernels.functional.attention_pooling import attention_pooled_scores
from sparc_kernels.functional.contrastive import contrastive_loss, sigmoid_loss
from sparc_kernels.functional.late_interaction import LateInteractionScores, filip_loss, late_interaction_scores
from sparc_kernels.functional.mining import mine_negatives
from sparc_kernels.functional.similarity import (
    paired_cosines,
    similarity_logsumexp,
    similarity_softplus,
)
from sparc_kernels.functional.sparc import SparcLossOutput, sparc_loss
from sparc_kernels.functional.transport import (
    optimal_transport_distance,
    transport_plan,
    word_region_alignment_loss,
)
from sparc_kernels.functional.within_pairs import mgca_local_loss, relevance_mask, subcaption_grouping_loss

__all__ = [
    "DEFAULT_LOGIT_SCALE",
    "Above",
    "Ids",
    "Labels",
    "LateInteractionScores",
    "Pairs",
    "SimilarityLogsumexp",
    "SparcLossOutput",
    "Teacher",
    "alignment_weights",
    "attention_pooled_scores",
    "contrastive_loss",
    "filip_loss",
    "fine_grained_loss",
    "flair_loss",
    "gloria_loss",
    "language_grouped_embeddings",
    "late_interaction_scores",
    "mgca_local_loss",
    "mine_negatives",
    "optimal_transport_distance",
    "pacl_loss",
    "paired_cosines",
    "relevance_mask",
    "sigmoid_loss",
    "similarity_logsumexp",
    "similarity_softplus",
    "sparc_loss",
    "subcaption_grouping_loss",
    "transport_plan",
    "word_region_alignment_loss",
]

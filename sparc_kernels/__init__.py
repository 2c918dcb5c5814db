"""Fused kernels for fine-grained image-text alignment: the SPARC loss, forward and backward.

    from sparc_kernels import sparc_loss
    loss = sparc_loss(patch_embeds, token_embeds, token_mask, logit_scale=scale)   # [B, P, D], [B, L, D], [B, L]

``python -m sparc_kernels`` prints which backends this machine can use, and why not.
"""

from sparc_kernels._dispatch import available_backends
from sparc_kernels._version import __version__
from sparc_kernels.functional import (
    Above,
    Ids,
    Labels,
    LateInteractionScores,
    Pairs,
    SimilarityLogsumexp,
    SparcLossOutput,
    Teacher,
    alignment_weights,
    attention_pooled_scores,
    contrastive_loss,
    filip_loss,
    fine_grained_loss,
    flair_loss,
    gloria_loss,
    language_grouped_embeddings,
    late_interaction_scores,
    mgca_local_loss,
    mine_negatives,
    optimal_transport_distance,
    pacl_loss,
    paired_cosines,
    relevance_mask,
    sigmoid_loss,
    similarity_logsumexp,
    similarity_softplus,
    sparc_loss,
    subcaption_grouping_loss,
    transport_plan,
    word_region_alignment_loss,
)
from sparc_kernels.modules import (
    ClipLoss,
    DistillClipLoss,
    FilipLoss,
    FlairLoss,
    GloriaLoss,
    PaclLoss,
    SelectedTokens,
    SigLipLoss,
    SparcLoss,
    TokenReduction,
    TokenSelection,
)
from sparc_kernels.ops._registration import register
from sparc_kernels.ops._room import rooms
from sparc_kernels.ops.fine_grained.autograd import FineGrainedLossFunction
from sparc_kernels.ops.grouping.autograd import AlignmentWeightsFunction, LanguageGroupedEmbeddingsFunction

register(rooms())

__all__ = [
    "Above",
    "AlignmentWeightsFunction",
    "ClipLoss",
    "DistillClipLoss",
    "FilipLoss",
    "FineGrainedLossFunction",
    "FlairLoss",
    "GloriaLoss",
    "Ids",
    "Labels",
    "LanguageGroupedEmbeddingsFunction",
    "LateInteractionScores",
    "PaclLoss",
    "Pairs",
    "SelectedTokens",
    "SigLipLoss",
    "SimilarityLogsumexp",
    "SparcLoss",
    "SparcLossOutput",
    "Teacher",
    "TokenReduction",
    "TokenSelection",
    "__version__",
    "alignment_weights",
    "attention_pooled_scores",
    "available_backends",
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

// The fine-grained loss of one image-text pair: what the kernels of every instruction set take. The
// mathematics is in sparc_kernels/ops/fine_grained/MATH.md.
#pragma once

#include "alignment/alignment_pair.h"
#include "common/kernel_set.h"

namespace sparc {

enum FineGrainedStat {
  kRowMin,
  kRowMax,
  kGroupNorm,
  kTokenNorm,
  kRowLogSumExp,
  kColumnLogSumExp,
  kScaleDerivative,
  kFineGrainedStats
};

struct FineGrainedPair : AlignmentPair {
  double logit_scale;

  // Forward
  void* token_loss;      // [L] Acc
  void* pooled_patches;  // [D] In, null where not asked for
  void* pooled_tokens;   // [D] In, null where not asked for

  // Backward
  const void* grad_token_loss;  // [L] Acc, element stride grad_stride
  int64_t grad_stride;
  const void* grad_pooled_patches;  // [D] In, or null
  const void* grad_pooled_tokens;   // [D] In, or null
};

struct FineGrainedKernel {
  // See workspace_of.
  size_t (*workspace)(int64_t tokens, int64_t patches, int64_t channels);
  void (*forward)(const FineGrainedPair& pair, void* workspace);
  void (*backward)(const FineGrainedPair& pair, void* workspace);
};

}  // namespace sparc

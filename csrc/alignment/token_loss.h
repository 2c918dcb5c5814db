// A loss of every token of one image-text pair, each against its weighted mean of the patches (eq 5-6): what
// the kernels of every instruction set take, whatever the weights.
#pragma once

#include "alignment/alignment_pair.h"
#include "common/kernel_set.h"

namespace sparc {

enum TokenLossStat {
  kFirstOfRow,   // of its similarities: the minimum; of a softmax the maximum
  kSecondOfRow,  // the maximum; of a softmax the sum
  kGroupNorm,
  kTokenNorm,
  kRowLogSumExp,
  kColumnLogSumExp,
  kScaleDerivative,
  kTokenLossStats
};

struct TokenLossPair : AlignmentPair {
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

struct TokenLossKernel {
  // See workspace_of.
  size_t (*workspace)(int64_t tokens, int64_t patches, int64_t channels);
  void (*forward)(const TokenLossPair& pair, void* workspace);
  void (*backward)(const TokenLossPair& pair, void* workspace);
};

}  // namespace sparc

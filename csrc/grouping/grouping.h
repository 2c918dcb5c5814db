// Language-grouped embeddings and alignment weights of one image-text pair: what the kernels of every
// instruction set take. The mathematics is in sparc_kernels/ops/grouping/MATH.md.
#pragma once

#include "alignment/alignment_pair.h"
#include "common/kernel_set.h"

namespace sparc {

enum GroupingStat { kMinimum, kMaximum, kWeightSum, kGroupingStats };

// N is D for the embeddings and P for the weights; all tokens of a pair are valid.
struct GroupingPair : AlignmentPair {
  void* output;      // forward: [L, N] In, contiguous
  const void* grad;  // backward: [L, N] In
  int64_t grad_strides[2];
};

struct GroupingKernel {
  // See workspace_of.
  size_t (*workspace)(int64_t tokens, int64_t patches, int64_t channels);
  void (*embeddings_forward)(const GroupingPair& pair, void* workspace);
  void (*embeddings_backward)(const GroupingPair& pair, void* workspace);
  void (*weights_forward)(const GroupingPair& pair, void* workspace);
  void (*weights_backward)(const GroupingPair& pair, void* workspace);
};

}  // namespace sparc

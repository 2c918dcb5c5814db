// Language-grouped embeddings and alignment weights on CUDA: what the kernels take. The mathematics is in
// sparc_kernels/ops/grouping/MATH.md.
#pragma once

#include "grouping/grouping.h"
#include "pairs/launch_plan.h"

namespace sparc {

// N is D for the embeddings and P for the weights. There is no token mask.
struct GroupingArguments {
  PairInputs in;
  const float* threshold;  // sigma []; null: 1 / valid patches
  bool weights;            // the weights are asked for, not the embeddings
  int64_t stats_stride;    // B * L

  // Forward
  void* output;  // [B, L, N] contiguous
  float* stats;  // [3, B, L]

  // Backward
  MatrixView grad;     // [B, L, N]
  void* grad_patches;  // [B, P, D] contiguous, null where not asked for
  void* grad_tokens;   // [B, L, D] contiguous, null where not asked for
};

template <>
struct WarpgroupPasses<GroupingArguments> {
  static constexpr bool kForward = true, kBackward = true;
};

}  // namespace sparc

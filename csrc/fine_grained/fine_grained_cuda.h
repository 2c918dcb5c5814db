// The fine-grained loss on CUDA: what the kernels take. The mathematics is in
// sparc_kernels/ops/fine_grained/MATH.md.
#pragma once

#include "fine_grained/fine_grained.h"
#include "pairs/launch_plan.h"

namespace sparc {

struct FineGrainedArguments {
  PairInputs in;
  const float* threshold;    // sigma []; null: 1 / valid patches
  const float* logit_scale;  // []
  int64_t stats_stride;      // B * L

  // Forward
  float* token_loss;     // [B, L]
  float* stats;          // [7, B, L]; read by the backward pass
  void* pooled_patches;  // [B, D], null where not asked for
  void* pooled_tokens;   // [B, D], null where not asked for

  // Backward
  const float* grad_token_loss;  // [B, L]
  int64_t grad_batch_stride, grad_stride;
  const void* grad_pooled_patches;  // [B, D] contiguous, or null
  const void* grad_pooled_tokens;   // [B, D] contiguous, or null
  void* grad_patches;               // [B, P, D] contiguous, null where not asked for
  void* grad_tokens;                // [B, L, D] contiguous, null where not asked for
  void* saved_groups;               // where a pair's C' waits: grad_tokens, or [grid, L, D] of scratch
};

template <>
struct WarpgroupPasses<FineGrainedArguments> {
  static constexpr bool kForward = true, kBackward = true;
};

}  // namespace sparc

// The fine-grained loss on CUDA: what the kernels take. The mathematics is in
// sparc_kernels/ops/fine_grained/MATH.md.
#pragma once

#include "common/kernel_types.h"
#include "fine_grained/fine_grained.h"

namespace sparc {

struct FineGrainedArguments {
  PairInputs in;
  const float* logit_scale;  // []
  int64_t stats_stride;      // B * L

  // Forward
  float* token_loss;  // [B, L]
  float* stats;       // [6, B, L]; read by the backward pass

  // Backward
  const float* grad_token_loss;  // [B, L]
  int64_t grad_batch_stride, grad_stride;
  void* grad_patches;       // [B, P, D] contiguous
  void* grad_tokens;        // [B, L, D] contiguous
  float* grad_logit_scale;  // [B]
};

}  // namespace sparc

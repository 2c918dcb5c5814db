// The fine-grained loss of one image-text pair: what the per-instruction-set kernels take and where they are.
// The mathematics is in sparc_kernels/ops/fine_grained/MATH.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/types.h"

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

// In: the embeddings' dtype. Acc: float64 for float64, else float32.
struct FineGrainedPair {
  Rows patches;         // of [P, D]
  Rows tokens;          // of [L, D]
  int64_t all_patches;  // P
  int64_t all_tokens;   // L
  int64_t channels;     // D
  double logit_scale;
  double threshold;  // sigma; negative: 1 / valid patches

  // Forward
  void* token_loss;  // [L] Acc
  void* stats;       // [7, L] Acc with row stride stats_stride; read by the backward pass
  int64_t stats_stride;
  void* pooled_patches;  // [D] In, null where not asked for
  void* pooled_tokens;   // [D] In, null where not asked for

  // Backward
  const void* grad_token_loss;  // [L] Acc, element stride grad_stride
  int64_t grad_stride;
  const void* grad_pooled_patches;  // [D] In, or null
  const void* grad_pooled_tokens;   // [D] In, or null
  void* grad_patches;               // [P, D] In, contiguous; null where not needed
  void* grad_tokens;                // [L, D] In, contiguous; null where not needed
};

struct FineGrainedKernel {
  // Bytes of working memory that a pair of at most these sizes needs, 64-byte aligned.
  size_t (*workspace)(int64_t tokens, int64_t patches, int64_t channels);
  void (*forward)(const FineGrainedPair& pair, void* workspace);
  void (*backward)(const FineGrainedPair& pair, void* workspace);
};

// One set per instruction set (fine_grained_<isa>.cpp).
struct FineGrainedKernels {
  FineGrainedKernel float32, float64, bfloat16;
};

namespace baseline {
FineGrainedKernels fine_grained_kernels();
}
namespace avx2 {
FineGrainedKernels fine_grained_kernels();
}
namespace avx512 {
FineGrainedKernels fine_grained_kernels();
}
namespace avx512_bf16 {
FineGrainedKernel fine_grained_bfloat16();
}

}  // namespace sparc

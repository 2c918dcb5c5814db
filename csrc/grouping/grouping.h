// Language-grouped embeddings and alignment weights of one image-text pair: what the per-instruction-set
// kernels take and where they are. The mathematics is in sparc_kernels/ops/grouping/MATH.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/types.h"

namespace sparc {

enum GroupingStat { kMinimum, kMaximum, kWeightSum, kGroupingStats };

// In: the embeddings' dtype. Acc: float64 for float64, else float32. N is D for the embeddings and P for the
// weights.
struct GroupingPair {
  Rows patches;         // of [P, D]
  Rows tokens;          // of [L, D], all of them
  int64_t all_patches;  // P
  int64_t channels;     // D
  double threshold;     // sigma; negative: 1 / valid patches

  // Forward
  void* output;  // [L, N] In, contiguous
  void* stats;   // [3, L] Acc with row stride stats_stride
  int64_t stats_stride;

  // Backward
  const void* grad;  // [L, N] In
  int64_t grad_strides[2];
  void* grad_patches;  // [P, D] In, contiguous; null where not needed
  void* grad_tokens;   // [L, D] In, contiguous; null where not needed
};

struct GroupingKernel {
  // Bytes of working memory that a pair of at most these sizes needs, 64-byte aligned.
  size_t (*workspace)(int64_t tokens, int64_t patches, int64_t channels);
  void (*embeddings_forward)(const GroupingPair& pair, void* workspace);
  void (*embeddings_backward)(const GroupingPair& pair, void* workspace);
  void (*weights_forward)(const GroupingPair& pair, void* workspace);
  void (*weights_backward)(const GroupingPair& pair, void* workspace);
};

// One set per instruction set (grouping_<isa>.cpp).
struct GroupingKernels {
  GroupingKernel float32, float64, bfloat16;
};

namespace baseline {
GroupingKernels grouping_kernels();
}
namespace avx2 {
GroupingKernels grouping_kernels();
}
namespace avx512 {
GroupingKernels grouping_kernels();
}
namespace avx512_bf16 {
GroupingKernel grouping_bfloat16();
}

}  // namespace sparc

// What the kernels of this family take of one image-text pair.
#pragma once

#include "pairs/valid_rows.h"

namespace sparc {

// In: the embeddings' dtype. Acc: float64 for float64, else float32.
struct AlignmentPair {
  ValidRows patches;       // of [P, D]
  ValidRows tokens;        // of [L, D]
  int64_t all_patches;     // P
  int64_t all_tokens;      // L
  int64_t channels;        // D
  double threshold;        // sigma; negative: 1 / valid patches
  double attention_scale;  // of similarities whose softmax are the weights
  void* stats;             // [the op's, L] Acc with row stride stats_stride
  int64_t stats_stride;
  void* grad_patches;  // [P, D] In, contiguous; null where not needed
  void* grad_tokens;   // [L, D] In, contiguous; null where not needed
};

}  // namespace sparc

// Optimal transport between the tokens of an image and those of its text: what the kernels of every
// instruction set take of one pair. The mathematics is in sparc_kernels/ops/optimal_transport/MATH.md.
#pragma once

#include "common/kernel_set.h"
#include "pairs/valid_rows.h"

namespace sparc {

// In: the embeddings' dtype. Acc: float64 for float64, else float32.
struct TransportPair {
  ValidRows patches;    // of [P, D]
  ValidRows tokens;     // of [L, D]
  int64_t all_patches;  // P
  int64_t all_tokens;   // L
  int64_t channels;     // D
  double beta;
  int64_t iterations;
  bool proximal;
  void* potentials;        // [L + P] Acc: of the tokens, of the patches; the forward pass writes them
  void* costs;             // forward: [L] Acc
  void* plan;              // forward: [L, P] Acc, or null
  const void* grad_costs;  // backward: [L] Acc, grad_stride apart
  int64_t grad_stride;
  void* grad_patches;  // backward: [P, D] In, contiguous; null where not needed
  void* grad_tokens;   // backward: [L, D] In, contiguous; null where not needed
};

struct TransportKernel {
  size_t (*workspace)(int64_t tokens, int64_t patches, int64_t channels);
  void (*forward)(const TransportPair& pair, void* workspace);
  void (*backward)(const TransportPair& pair, void* workspace);
};

}  // namespace sparc

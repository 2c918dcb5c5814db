// Cosines of row i and column i: what a call of the op is made of, as the kernels of every instruction set
// take it. The mathematics is in sparc_kernels/ops/contrastive/MATH.md.
#pragma once

#include "contrastive/contrastive.h"

namespace sparc {

// Rows that a thread takes at a time.
constexpr int64_t kPairedRows = 32;

// Per pair in `stats`.
enum PairedStat { kRowInverseNorm, kColInverseNorm, kPairCosine, kPairedStats };

struct PairedCall {
  EmbedView rows, cols;       // of one count and width
  void* cosines = nullptr;    // forward: [count] Acc
  void* stats = nullptr;      // [kPairedStats, count] Acc
  VectorView upstream;        // backward: of the cosines
  void* grad_rows = nullptr;  // [count, width] In, contiguous, or null
  void* grad_cols = nullptr;
};

// A pass over some pairs, from `item * kPairedRows` on, with `workspace` of the calling thread.
using PairedStep = void (*)(const PairedCall& call, int64_t item, void* workspace);

struct PairedKernel {
  size_t (*thread_bytes)(const PairedCall& call);  // of the workspace
  PairedStep forward, backward;
};

}  // namespace sparc

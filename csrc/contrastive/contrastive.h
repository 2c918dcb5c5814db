// Statistics of a similarity matrix: what a call of the ops is made of, as the kernels of every instruction
// set take it. The mathematics is in sparc_kernels/ops/contrastive/MATH.md.
//
// A pass is a sequence of steps; the items of a step are independent of one another and can run on any
// thread, a step begins when the one before is done. What an item computes depends on the sizes alone, and
// sums over items are taken in their order, so the results do not depend on the number of threads.
#pragma once

#include "common/kernel_set.h"

namespace sparc {

// Rows of similarities that are worked on together, and columns: the tile, the packed rows and the
// accumulated gradient of 48 rows stay in an L2 of 1 MB up to a width of about 1,000.
constexpr int64_t kTileRows = 48;
constexpr int64_t kTileCols = 512;
// Rows that one step of G^T X takes. Chunks consist of whole ones, so that the sums do not depend on the
// chunk.
constexpr int64_t kDepthRows = 8 * kTileRows;
// Parts that the rows are split into in the forward pass; each keeps sums for all columns.
constexpr int64_t kMaxRowParts = 64;
// What G takes at a time: enough for several tiles of rows per thread, within these bounds.
constexpr int64_t kGradientBytes = int64_t{16} << 20, kMostGradientBytes = int64_t{64} << 20;
constexpr int64_t kTilesPerThread = 4;

// Marks the cosine of a pair that takes no part. Cosines lie in [-1, 1]; this one stays finite in what
// follows.
constexpr int kExcluded = -8;
// Scales up to this one need no maximum: exp neither overflows nor does a sum of it.
constexpr int kLargestPlainScale = 60;

// [count, width]; strides in elements.
struct EmbedView {
  const void* data = nullptr;
  int64_t count = 0, width = 0, row_stride = 0, column_stride = 0;
};

// A number per item, one for all (stride 0), or nothing (data is null).
struct VectorView {
  const void* data = nullptr;
  int64_t stride = 0;
};

// Per item in `stats`.
enum SimilarityStat { kInverseNorm, kLse, kGuideInverseNorm, kGuideLse, kSimilarityStats };
// Results of a direction, and their upstream gradients. The softplus op has the first one of the rows.
enum SimilarityResult { kLogsumexp, kTarget, kSoft, kSimilarityResults };

// The rows or the columns.
struct SimilaritySide {
  EmbedView embeds, guide;
  VectorView ids, scale;
  void* stats = nullptr;                         // [kSimilarityStats, count]
  void* results[kSimilarityResults] = {};        // forward: [count], or null
  VectorView upstream[kSimilarityResults] = {};  // backward; total: of the rows' results, its weights
  bool scale_per_item = false;
  bool need_embeds = false, need_scale = false;
  void* grad_embeds = nullptr;  // [count, width] In, contiguous
  void* grad_scale = nullptr;   // [count] or one number
};

struct SimilarityCall {
  SimilaritySide rows, cols;
  VectorView indptr, indices;    // pairs that take no part, CSR
  int64_t pairs = 0;             // numbers in `indices`
  VectorView threshold;          // of the guide's cosines
  double guide_scale = 0;        // of the soft targets
  double bias = 0;               // of the softplus op, whose scale is the rows'
  void* grad_bias = nullptr;     // one number
  void* similarities = nullptr;  // [M, N] where they are kept: written forward, read backward
  bool soft = false;             // soft targets are wanted
  bool targets = false;          // equal ids are targets; else they take no part
  bool softplus = false;         // which op
  bool one_sweep = false;        // backward: nothing is known yet, and the results of the rows are wanted too
  int64_t first = 0, last = 0;   // backward: rows of the chunk
  int64_t chunk = 0;             // rows of a chunk
  int64_t parts = 0;             // forward: parts of the rows
  void* memory = nullptr;        // call_bytes
};

// A step of a pass: work(call, item, memory of the thread).
using SimilarityStep = void (*)(const SimilarityCall& call, int64_t item, void* workspace);

struct SimilarityKernel {
  size_t (*forward_bytes)(const SimilarityCall& call);  // of call.memory
  size_t (*backward_bytes)(const SimilarityCall& call);
  size_t (*thread_bytes)(const SimilarityCall& call);  // of the workspace
  int64_t panel_width;                                 // columns of a panel
  int64_t gradient_bytes;                              // of a number of G
  SimilarityStep pack_cols_forward;                    // item: tile of columns
  SimilarityStep forward;                              // item: part of the rows
  SimilarityStep merge;                                // item: tile of columns
  SimilarityStep pack_cols_backward;                   // item: tile of columns
  SimilarityStep pack_rows;                            // item: kTileCols rows
  SimilarityStep gradient;    // item: tile of the chunk's rows; G, and with it the rows' gradient
  SimilarityStep transposed;  // item: (panel of channels, tile of columns); adds the chunk's G^T X
  SimilarityStep finish;      // item: tile of columns; the columns' gradient
  void (*finish_scales)(const SimilarityCall& call);
  double (*total)(const SimilarityCall& call);  // the weighted sum of the rows' results
  void (*scale)(const void* values, int64_t count, double factor,
                void* out);  // of the type of the embeddings
};

}  // namespace sparc

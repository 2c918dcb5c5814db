// All pairs of rows and columns by products of warpgroups: what the kernel takes. The steps around it are
// those of sparc_kernels/ops/contrastive/triton_losses.py.
#pragma once

#include <cstdint>

namespace sparc {

// Columns that a block keeps, each with instances of its own; multiples of 32.
#define SPARC_SWEEP_COLUMNS(X) X(96) X(128) X(192)

constexpr int kSweepRows = 64;  // of a tile

struct SweepArguments {
  const void* rows;          // [M, D], whole pieces
  const void* cols;          // [N, D]
  const float* row_inverse;  // [M], of norms
  const float* col_inverse;  // [N]
  const float* scale;        // []
  const float* bias;         // []
  const float* weights;      // [M]: what each row's sum is multiplied with
  const float* power;        // [2]: a power of two in front of G (float16), or null
  void* gradient;            // G [M, padded N], or null
  float* partials;           // [3, blocks of columns, M]: SCALE, BIAS, VALUE of triton_whole.py
  int64_t row_stride, col_stride, gradient_stride;
  int n_rows, n_cols;
  int padded_cols;       // that G has room for
  int channels, chunks;  // chunks: blocks of columns
  int runs, run_tiles;   // of rows; tiles of a run
  int diagonal;          // column less row of the pairs that take no part
};

// Columns of G with their padding: its rows start at multiples of 32 bytes.
inline int sweep_padded(int n_cols) { return (n_cols + 15) / 16 * 16; }
// Tiles of each of so many runs of rows; the last runs may have fewer or none.
inline int sweep_run_tiles(int n_rows, int runs) {
  const int tiles = (n_rows + kSweepRows - 1) / kSweepRows;
  return (tiles + runs - 1) / runs;
}

}  // namespace sparc

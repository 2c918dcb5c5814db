// How the host describes tensors to the CUDA kernels.
#pragma once

#include <cstdint>

namespace sparc {

// [B, rows, columns] of the embeddings' dtype; strides in elements.
struct MatrixView {
  const void* data;
  int64_t batch_stride, row_stride, column_stride;
  bool wide;  // column_stride 1, every row 16-byte aligned: rows can be copied 16 bytes at a time
};

// [B, rows] bool, or all valid.
struct MaskView {
  const bool* data;  // null: all valid
  int64_t batch_stride, stride;
};

// What every op reads. Sizes of one pair fit 32 bits; offsets between pairs are 64 bits wide.
struct PairInputs {
  MatrixView patch_embeds, token_embeds;  // [B, P, D], [B, L, D]
  MaskView patch_mask, token_mask;
  int64_t pairs;                  // B
  int patches, tokens, channels;  // P, L, D
  const float* threshold;         // sigma []; null: 1 / valid patches
};

// How a pair-path kernel streams V and T through shared memory.
struct Streaming {
  int chunk;   // channels at a time, a multiple of 32
  int stages;  // buffers: 1 to 3
};

// What the pair path can hold: valid tokens and patches of one pair.
constexpr int kPairTokens = 64, kPairPatches = 256;

// Working memory of a tiled-path kernel: `bytes` for each block of the grid.
struct TiledMemory {
  void* base;
  int64_t bytes;
  bool beside_pair_path;  // leave alone what the pair path holds
};

}  // namespace sparc

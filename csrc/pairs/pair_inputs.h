// Pairs of images and texts: what every op on them reads, and how a launch works through them.
#pragma once

#include "common/views.h"

namespace sparc {

// Sizes of one pair fit 32 bits; offsets between images and between texts are 64 bits wide.
struct PairInputs {
  MatrixView image_embeds, text_embeds;  // [B, P, D], [B, L, D]
  MaskView image_mask, text_mask;
  int64_t pairs;                        // B: image i and text i
  int image_rows, text_rows, channels;  // P, L, D
};

// How a pair-path kernel streams the rows of both through shared memory.
struct Streaming {
  int chunk;   // channels at a time: 32 or 64
  int stages;  // buffers: 1 to 3, of warpgroups 3 to 8
};

// What the pair path can hold: valid rows of one pair.
constexpr int kPairTextRows = 64, kPairImageRows = 256;

// Working memory of a tiled-path kernel: `bytes` for each block of the grid.
struct TiledMemory {
  void* base;
  int64_t bytes;
  bool beside_pair_path;  // leave alone what the pair path holds
};

}  // namespace sparc

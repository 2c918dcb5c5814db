// Maxima of half-precision cosines by products of warpgroups: what the kernel takes and how it divides its
// memory. The steps around it are those of sparc_kernels/ops/late_interaction/triton.py.
#pragma once

#include <cstdint>

#include "common/block.cuh"
#include "common/warpgroup.cuh"

namespace sparc {

// Columns of a tile of products, each with instances of its own.
#define SPARC_MAXIMA_COLUMNS(X) X(104) X(128) X(200) X(256)

constexpr int kGranule = 16;  // slots of a caption that lie together
constexpr int64_t kMaximaSharedBytes = 227 << 10;

struct MaximaArguments {
  const void* images;           // [I, P, D], or a copy [I, PATCH_SLOTS, D] of it; rows of whole pieces
  const void* slotted;          // [SLOTS, D], contiguous
  const float* image_inverse;   // [I * P], of norms
  const int32_t* patch_slots;   // [I, PATCH_SLOTS] numbers of patches, or null
  const int32_t* patch_counts;  // [I], or null: all
  const float* slot_inverse;    // [SLOTS]
  const int32_t* captions;      // [GRANULES] whose granule
  const int32_t* codes;         // [GRANULES] twice the granule's rank in its caption, 1 more for the last one
  const int32_t* run_lengths;   // [RUNS] granules
  uint32_t* token_keys;         // [images of this launch, chunks, SLOTS], or null
  uint32_t* patch_keys;         // [images of this launch, J, P] by patch slots where there are some, or null
  int64_t image_stride, patch_stride, first_image, n_captions, slots;
  int runs, run_granules, patches, n_patch_slots, channels, chunks;
};

// Shared memory: the patches of a chunk in panels of `columns` rows and 64 channels; stages of tokens, each
// of so many channels as are multiplied between two barriers; numbers of columns.
struct MaximaLayout {
  static constexpr int kMostStages = 5;

  int panels, slice_panels, slices, stages;
  int tokens, factors;  // offsets; patches lie at the start
  int64_t used;

  SPARC_HOST_DEVICE MaximaLayout(int channels, int columns) {
    panels = (channels + 63) / 64;
    slice_panels = panels <= 4 ? panels : 2;
    slices = (panels + slice_panels - 1) / slice_panels;
    tokens = panels * columns * 128;
    const int64_t left = kMaximaSharedBytes - tokens - 8 * columns;
    stages = left < 0 ? 0 : at_most(static_cast<int>(left / stage_bytes()), kMostStages);
    factors = tokens + stages * stage_bytes();
    used = factors + 8 * columns;
  }

  // Fewer stages would have a slice copied over one that is being multiplied.
  SPARC_HOST_DEVICE bool fits() const { return stages >= 3; }
  SPARC_HOST_DEVICE int stage_bytes() const { return slice_panels * device::kPanelBytes; }
};

}  // namespace sparc

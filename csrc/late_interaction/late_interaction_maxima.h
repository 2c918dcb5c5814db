// Maxima of half-precision cosines by products of warpgroups: what the kernel takes. The steps around it are
// those of sparc_kernels/ops/late_interaction/triton.py.
#pragma once

#include <cstdint>

namespace sparc {

// Columns of a tile of products, each with instances of its own.
#define SPARC_MAXIMA_COLUMNS(X) X(104) X(128) X(200) X(256)

constexpr int kGranule = 16;        // slots of a caption that lie together
constexpr int kMostChannels = 512;  // of a token

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

}  // namespace sparc

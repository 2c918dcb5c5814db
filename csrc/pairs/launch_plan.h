// Which kernel serves a call, and with how much memory: the one table of tile choices. The reasons are counts
// of registers and shared memory and the cost model (docs/cuda_resources.md); what of it was timed on a GPU,
// 9.0 alone, stands in docs/performance_log.md.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pairs/pair_inputs.h"

namespace sparc {

// What the host needs to know of a device.
struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes;  // that one block can have
  bool warpgroups;       // whether the op has products of warpgroups for the pass, and the device
};

// The passes of an op for which it has them (pairs/warpgroup_tile.cuh): specialised by those that do.
template <class Arguments>
struct WarpgroupPasses {
  static constexpr bool kForward = false, kBackward = false;
};

// Both launches of a call, one of which may be left out. Where both are used, each leaves the other's pairs
// alone: only the device knows how many rows the masks let through.
struct LaunchPlan {
  struct {
    bool used;
    bool warpgroups;  // by products of warpgroups
    int strips;       // image rows / 32 that a block's registers hold
    Streaming streaming;
    int64_t grid, shared_bytes;
  } pair;
  struct {
    bool used;
    int64_t grid, shared_bytes;
    int64_t scratch_bytes;  // of one block
  } tiled;
};

// Instances of the pair path: at most 64 text rows and 32 strips image rows, so many channels at a time. The
// sums of S take 8 strips registers of each of 256 threads.
//
//   strips  rows    channels  reason
//   2       1-64    64        ViT-B/32 (49): 16 registers of S, the rest of the register file hides latency
//   8       65-256  64        ViT-B/16 (196), L/14 (256): 64 registers of S, as many of U; twice that spills.
//                             Steps past the last row are skipped at run time: more instances between 65
//                             and 196 would save registers only
//   8       1-256   32        where shared memory is short (below): never with few rows on a chip there is
#define SPARC_PAIR_INSTANCES(X) X(2, 64) X(8, 64) X(8, 32)

// The same by products of warpgroups: a block's two share the strips, and an instruction takes all of one.
//
//   strips  rows     reason
//   2       1-64     ViT-B/32 (49)
//   7       65-224   ViT-B/16 (196): the image panels of five stages fit beside U
//   8       225-256  L/14 (256)
#define SPARC_WARPGROUP_STRIPS(X) X(2) X(7) X(8)

// Stages of their streams, of 64 channels: as many as fit, since chunks that are still there when a pass
// turns round are not copied again. Eight hold all of 512 channels (the forward pass of 64 rows), seven all
// but one (its backward pass); five are what fits beside 224 rows.
constexpr int kWarpgroupStages[] = {8, 7, 5, 4, 3};

// Ways to stream channels, first choice first; the first one whose shared memory fits is taken.
//
//   chunk  stages  reason
//   64     3       128 bytes of each row at a time, two chunks in flight while one is used. Where a
//                  block has 227 KB (9.0, 10.0): all but the backward pass of 256 rows
//   64     2       one chunk in flight: 256 image rows there, 196 where a block has 163 KB (8.0)
//   32     2       half of the shared memory: the backward pass of 256 rows on 8.0, forward passes
//                  of 196 and more where a block has 99 KB (8.6, 8.9, 12.0)
//   32     1       nothing in flight: what is left to the latter before the tiled path
constexpr Streaming kStreamings[] = {{64, 3}, {64, 2}, {32, 2}, {32, 1}};

// Masks of texts and images up to this size are looked through for pairs that the pair path can serve:
// CLIP's context of 77 tokens is mostly padding. The list of valid rows lies in shared memory.
constexpr int kLargestMasked = 1024;

// Scratch of all blocks of a tiled launch together, at most (but one block can always have its own).
constexpr int64_t kScratchBudget = int64_t{256} << 20;

// Blocks of the pair path that share a multiprocessor: one. V and T of the pairs in flight are read again
// from L2; at 257 KB a pair (196 and 55 rows of 512 channels in half precision) those of 132 blocks take
// 34 MB of an H100's 50 MB, those of twice as many would not fit.
constexpr int kPairBlocksPerMultiprocessor = 1;
// Of the tiled path: two, so that one computes while the other waits at a barrier; it reads from scratch
// anyway.
constexpr int kTiledBlocksPerMultiprocessor = 2;

// layout_bytes(streaming, warpgroups) gives the bytes of the pair path, tiled_shared and tiled_scratch those
// of the tiled path.
template <class LayoutBytes>
LaunchPlan plan_launch(const PairInputs& in, bool half_precision, const DeviceLimits& limits,
                       const LayoutBytes& layout_bytes, int64_t tiled_shared, int64_t tiled_scratch) {
  LaunchPlan plan = {};
  const bool all_small = in.text_rows <= kPairTextRows && in.image_rows <= kPairImageRows;
  const auto may_be_small = [](int rows, int most, const MaskView& mask) {
    return rows <= most || (mask.data != nullptr && rows <= kLargestMasked);
  };
  if (half_precision && may_be_small(in.text_rows, kPairTextRows, in.text_mask) &&
      may_be_small(in.image_rows, kPairImageRows, in.image_mask)) {
    const auto use = [&](const Streaming& streaming, bool warpgroups) {
      const int64_t bytes = plan.pair.used ? 0 : layout_bytes(streaming, warpgroups);
      if (plan.pair.used || bytes > limits.shared_bytes) return;
      plan.pair.used = true;
      plan.pair.warpgroups = warpgroups;
      plan.pair.streaming = streaming;
      plan.pair.shared_bytes = bytes;
    };
    // their copies are of whole pieces of 16 bytes
    if (limits.warpgroups && in.image_embeds.wide && in.text_embeds.wide && in.channels % 8 == 0) {
      for (const int stages : kWarpgroupStages) {
        if (stages == 3 || (stages - 2) * 64 < in.channels + 64) use({64, stages}, true);
      }
    }
    for (const Streaming& streaming : kStreamings) use(streaming, false);
  }
  if (plan.pair.used) {
    const int rows = std::min(in.image_rows, kPairImageRows);
#define SPARC_PICK_STRIPS(strips_) \
  if (plan.pair.strips == 0 && rows <= 32 * strips_) plan.pair.strips = strips_;
#define SPARC_PICK_INSTANCE(strips_, chunk_) \
  if (plan.pair.streaming.chunk == chunk_) { \
    SPARC_PICK_STRIPS(strips_)               \
  }
    if (plan.pair.warpgroups) {
      SPARC_WARPGROUP_STRIPS(SPARC_PICK_STRIPS)
    } else {
      SPARC_PAIR_INSTANCES(SPARC_PICK_INSTANCE)
    }
#undef SPARC_PICK_INSTANCE
#undef SPARC_PICK_STRIPS
    plan.pair.grid =
        std::min<int64_t>(in.pairs, int64_t{limits.multiprocessors} * kPairBlocksPerMultiprocessor);
  }
  plan.tiled.used = !plan.pair.used || !all_small;
  if (plan.tiled.used) {
    plan.tiled.shared_bytes = tiled_shared;
    plan.tiled.scratch_bytes = tiled_scratch;
    plan.tiled.grid =
        std::min<int64_t>({in.pairs, int64_t{limits.multiprocessors} * kTiledBlocksPerMultiprocessor,
                           std::max<int64_t>(1, kScratchBudget / tiled_scratch)});
  }
  return plan;
}

}  // namespace sparc

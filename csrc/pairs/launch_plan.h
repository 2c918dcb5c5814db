// Which kernel serves a call, and with how much memory: the one table of tile choices. The reasons are counts
// of registers and shared memory and the cost model (docs/cuda_resources.md); what of it was timed on a GPU,
// 9.0 alone, stands in docs/performance_log.md.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/host_device.h"
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
// So many blocks share a multiprocessor; fewer where their shared memory leaves less than three stages, or
// where the batch has no more pairs than there are multiprocessors.
//
//   strips  rows     blocks  reason
//   2       1-64     2       ViT-B/32 (49): fits 128 registers, and one block issues in 0.4 of the cycles.
//                            V and T of 264 pairs take 28 of 50 MB of L2 at 512 channels. At more, chunks
//                            read long ago come from DRAM again: by count no slower than one block, since
//                            passes turn round (docs/performance_log.md)
//   7       65-224   1       ViT-B/16 (196): the image panels of five stages fit beside U
//   8       225-256  1       L/14 (256)
#define SPARC_WARPGROUP_INSTANCES(X) X(2, 2) X(7, 1) X(8, 1)

struct WarpgroupInstance {
  int strips, blocks;
};

// The one for images of so many rows, of which a pair of this path has kPairImageRows at most.
SPARC_HOST_DEVICE constexpr WarpgroupInstance warpgroup_instance(int image_rows) {
  const int rows = image_rows < kPairImageRows ? image_rows : kPairImageRows;
#define SPARC_PICK_INSTANCE(strips_, blocks_) \
  if (rows <= 32 * strips_) return {strips_, blocks_};
  SPARC_WARPGROUP_INSTANCES(SPARC_PICK_INSTANCE)
#undef SPARC_PICK_INSTANCE
  return {};
}

// Stages of their streams, of 64 channels: as many as fit, since chunks that are still there when a pass
// turns round are not copied again. Of 64 rows two blocks have five each (forward) or three (backward); one
// that is alone has eight, which hold all of 512 channels, or seven. Five are what fits beside 224 rows.
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

// Blocks of the pair path by mma.sync that share a multiprocessor: one. V and T of the pairs in flight are
// read again from L2; at 257 KB a pair (196 and 55 rows of 512 channels in half precision) those of 132
// blocks take 34 MB of an H100's 50 MB, those of twice as many would not fit.
constexpr int kPairBlocksPerMultiprocessor = 1;
// Of the tiled path: two, so that one computes while the other waits at a barrier; it reads from scratch
// anyway.
constexpr int kTiledBlocksPerMultiprocessor = 2;

// A multiprocessor keeps so much of its shared memory for itself with every block; the largest block that
// there can be takes all that is left (9.0: 1,024 and 232,448 of 233,472 bytes; CUDA C++ Programming Guide,
// compute capabilities).
constexpr int64_t kReservedSharedBytes = 1024;

// What each of so many blocks that share a multiprocessor can have.
inline int64_t shared_bytes_each(const DeviceLimits& limits, int blocks) {
  return (limits.shared_bytes + kReservedSharedBytes) / blocks - kReservedSharedBytes;
}

// Strips of the pair path's instance for images of so many rows, so many channels at a time.
inline int pair_strips(int image_rows, int chunk) {
  const int rows = std::min(image_rows, kPairImageRows);
#define SPARC_PICK_INSTANCE(strips_, chunk_) \
  if (chunk == chunk_ && rows <= 32 * strips_) return strips_;
  SPARC_PAIR_INSTANCES(SPARC_PICK_INSTANCE)
#undef SPARC_PICK_INSTANCE
  return 0;
}

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
    const auto use = [&](const Streaming& streaming, bool warpgroups, int strips, int blocks) {
      if (plan.pair.used) return;
      const int64_t bytes = layout_bytes(streaming, warpgroups);
      if (bytes > shared_bytes_each(limits, blocks)) return;
      const int64_t grid = std::min<int64_t>(in.pairs, int64_t{limits.multiprocessors} * blocks);
      plan.pair = {true, warpgroups, strips, streaming, grid, bytes};
    };
    // their copies are of whole pieces of 16 bytes
    if (limits.warpgroups && in.image_embeds.wide && in.text_embeds.wide && in.channels % 8 == 0) {
      const WarpgroupInstance instance = warpgroup_instance(in.image_rows);
      // a multiprocessor's only pair has all of its memory
      for (int blocks = in.pairs > limits.multiprocessors ? instance.blocks : 1; blocks > 0; --blocks) {
        for (const int stages : kWarpgroupStages) {
          if (stages == 3 || (stages - 2) * 64 < in.channels + 64) {
            use({64, stages}, true, instance.strips, blocks);
          }
        }
      }
    }
    for (const Streaming& streaming : kStreamings) {
      use(streaming, false, pair_strips(in.image_rows, streaming.chunk), kPairBlocksPerMultiprocessor);
    }
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

// What a block of late interaction's maxima works at, its shared memory, and the tokens on their way there.
#pragma once

#include "late_interaction/late_interaction_maxima.h"
#include "pairs/panel_stream.cuh"

namespace sparc {

constexpr int64_t kMaximaSharedBytes = 227 << 10;  // of a block, on compute capability 9.0

// Shared memory: the patches of a chunk in panels of `columns` rows and 64 channels; stages of tokens, each
// of so many channels as are multiplied between two barriers; inverse norms of its patches.
struct MaximaLayout {
  static constexpr int kMostStages = 5;

  int panels, slice_panels, slices, stages;
  int tokens, inverses;  // offsets; patches lie at the start
  int64_t used;

  SPARC_HOST_DEVICE MaximaLayout(int channels, int columns) {
    panels = (channels + 63) / 64;
    slice_panels = panels <= 4 ? panels : 2;
    slices = (panels + slice_panels - 1) / slice_panels;
    tokens = panels * columns * 128;
    const int64_t left = kMaximaSharedBytes - tokens - 4 * columns;
    stages = left < 0 ? 0 : at_most(static_cast<int>(left / stage_bytes()), kMostStages);
    inverses = tokens + stages * stage_bytes();
    used = inverses + 4 * columns;
  }

  // Fewer stages would have a slice copied over one that is being multiplied.
  SPARC_HOST_DEVICE bool fits() const { return stages >= 3; }
  SPARC_HOST_DEVICE int stage_bytes() const { return slice_panels * device::kPanelBytes; }
};

// What a block works at.
struct MaximaPlace {
  int run, chunk, first_patch, patches;  // patches: that count, from first_patch on
  int64_t own, image;                    // of this launch, of all

  SPARC_DEVICE explicit MaximaPlace(const MaximaArguments& in, int columns) {
    const int64_t block = device::block_index(), blocks = device::block_count() / in.runs;
    // images first: blocks of one time share captions in the L2 cache
    run = static_cast<int>(block / blocks);
    own = block % blocks / in.chunks;
    chunk = static_cast<int>(block % in.chunks);
    image = in.first_image + own;
    first_patch = chunk * columns;
    const int all = in.patch_counts == nullptr ? in.patches : in.patch_counts[image];
    patches = at_most(all - first_patch, columns);
  }
};

// Tokens on their way to shared memory, a slice of a tile at a time, in the order of the products: tiles of
// the two warpgroups in turn. The rows of a tile are a granule of each of its warps. The warpgroup that
// multiplies copies, since the other one has more to do.
template <class E>
struct TokenStream {
  static constexpr int kGroupWarps = kWarps / 2;

  const MaximaLayout& layout;
  const E* begin;        // the run's tokens; this thread's row of a granule, and column
  int granules, turns;   // of the run; of a warp
  int channels, column;  // of all; this thread's in a panel
  int tile = 0, slice = 0, stage = 0;

  SPARC_DEVICE TokenStream(const MaximaArguments& in, const MaximaLayout& divided, const MaximaPlace& place,
                           int run_granules)
      : layout(divided), granules(run_granules), turns((run_granules + kWarps - 1) / kWarps) {
    channels = in.channels;
    column = (device::thread_index() & 7) * 8;
    const int64_t slot = static_cast<int64_t>(place.run) * in.run_granules * kGranule + row();
    begin = static_cast<const E*>(in.slotted) + slot * channels;
  }

  SPARC_DEVICE static int row() { return device::thread_index() >> 3 & 15; }

  // Where `mine`, starts the copies of the next slice, if there is one; closes the group.
  SPARC_DEVICE void load(bool mine) {
    if (mine && tile < 2 * turns) {
      const int granule = (tile & 1) * kGroupWarps * turns + (tile >> 1);
      const int end = at_most(layout.panels, (slice + 1) * layout.slice_panels);
      int at = layout.tokens + stage * layout.stage_bytes();
      const uint32_t granule_bytes = static_cast<uint32_t>(channels) * kGranule * sizeof(E);
      SPARC_NO_UNROLL
      for (int panel = slice * layout.slice_panels; panel < end; ++panel) {
        const Panel<E> to = {at, 64};
        const int channel = panel * Panel<E>::kColumns + column;
        SPARC_UNROLL
        for (int warp = 0; warp < kGroupWarps; ++warp) {
          const int own = granule + warp * turns;
          device::copy_async_if(
              (channel < channels) & (own < granules),
              device::address_of(device::shared_at<Piece>(to.piece(row() + kGranule * warp, column))),
              device::further(begin + channel, own, granule_bytes));
        }
        at += device::kPanelBytes;
      }
    }
    device::copy_async_commit();
    stage = stage + 1 == layout.stages ? 0 : stage + 1;
    slice = slice + 1 == layout.slices ? 0 : slice + 1;
    if (slice == 0) ++tile;
  }
};

}  // namespace sparc

// What a block of late interaction's maxima works at, its shared memory, and the tokens on their way there.
#pragma once

#include "late_interaction/late_interaction_maxima.h"
#include "pairs/panel_stream.cuh"

namespace sparc {

constexpr int64_t kMaximaSharedBytes = 227 << 10;  // of a block, on compute capability 9.0

// Shared memory: the patches of a chunk in panels of `columns` rows and 64 channels; stages of tokens, as
// many for each of two warpgroups, of a panel each; inverse norms of the patches.
struct MaximaLayout {
  static constexpr int kGroups = 2, kMostStages = 8;

  int panels, stages;    // stages: of a warpgroup
  int tokens, inverses;  // offsets; patches lie at the start
  int64_t used;

  SPARC_HOST_DEVICE constexpr MaximaLayout(int channels, int columns)
      : panels((channels + 63) / 64), stages(0), tokens(panels * columns * 128), inverses(0), used(0) {
    const int64_t left = kMaximaSharedBytes - tokens - 4 * columns;
    stages = left < 0 ? 0 : at_most(static_cast<int>(left / (kGroups * device::kPanelBytes)), kMostStages);
    inverses = tokens + kGroups * stages * device::kPanelBytes;
    used = inverses + 4 * columns;
  }

  // Fewer stages would have a panel copied over one that is being multiplied.
  SPARC_HOST_DEVICE bool fits() const { return stages >= 3; }
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

// The tokens of a warpgroup on their way to shared memory, a panel of a tile at a time, in the order of its
// products. The rows of a tile are a granule of each of its warps. Its own threads copy them: what changes
// from panel to panel is kept, since the compiler would make it anew from the thread's index each time.
template <class E>
struct TokenStream {
  static constexpr int kGroupWarps = kWarps / MaximaLayout::kGroups;

  const MaximaLayout& layout;
  int granules, turns;  // of the run; of a warp
  int channels;
  uint64_t first_operand;       // the panel of the first stage
  int stage = 0;                // of the next products
  const E* from;                // this thread's next piece of the tile's first granule
  int to, stages_end;           // its place; behind the last stage
  int granule, end, panel = 0;  // of the next copies: of the tile's first warp; behind that warp's last one
  int left;                     // channels from that piece on; none where there is no granule
  uint32_t apart[kGroupWarps - 1];  // bytes from the tile's first granule to each other one

  SPARC_DEVICE TokenStream(const MaximaArguments& in, const MaximaLayout& divided, const MaximaPlace& place,
                           int run_granules)
      : layout(divided),
        granules(run_granules),
        turns((run_granules + kWarps - 1) / kWarps),
        channels(in.channels) {
    const int group = device::same_in_warp(device::warp_index()) / kGroupWarps;
    const Panel<E> first = {layout.tokens + group * layout.stages * device::kPanelBytes, 64};
    first_operand = device::made_here(first.operand(0, 0));
    granule = group * kGroupWarps * turns;
    end = at_most(granule + turns, granules);
    const int row = device::thread_index() >> 3 & 15;
    const int64_t slot = (static_cast<int64_t>(place.run) * in.run_granules + granule) * kGranule + row;
    from = static_cast<const E*>(in.slotted) + slot * channels + column();
    to = first.piece(row, column());
    stages_end = first.offset + layout.stages * device::kPanelBytes;
    begin_tile();
  }

  SPARC_DEVICE static int column() { return (device::thread_index() & 7) * 8; }

  // A warp that has no granule left gets the first one's once more: nobody asks for its keys.
  SPARC_DEVICE void begin_tile() {
    left = granule < end ? channels - column() : 0;
    const uint32_t bytes = static_cast<uint32_t>(turns * channels) * kGranule * sizeof(E);
    SPARC_UNROLL
    for (int warp = 1; warp < kGroupWarps; ++warp) {
      apart[warp - 1] = granule + warp * turns < granules ? warp * bytes : 0;
    }
  }

  // Waits for this thread's part of the panel that is multiplied next, stages - 3 before the last one under
  // way, or of a later one. kLeast: no fewer stages at any number of channels.
  template <int kLeast>
  SPARC_DEVICE void wait() const {
    if constexpr (kLeast >= 6) {
      device::copy_async_wait<kLeast - 3>();
    } else {
      device::copy_async_wait<3>();
      if (layout.stages < 6) device::copy_async_wait<1>();
      if (layout.stages < 4) device::copy_async_wait<0>();
    }
  }

  // That panel.
  SPARC_DEVICE uint64_t next_operand() {
    const uint64_t operand = device::operand_behind(first_operand, stage * device::kPanelBytes);
    stage = stage + 1 == layout.stages ? 0 : stage + 1;
    return operand;
  }

  // Starts the copies of the next panel; behind the last tile they write zeros. Closes the group of copies.
  SPARC_DEVICE void load() {
    SPARC_UNROLL
    for (int warp = 0; warp < kGroupWarps; ++warp) {
      device::copy_async_if(
          left > 0, device::address_of(device::shared_at<Piece>(to + warp * kGranule * Panel<E>::kRowBytes)),
          reinterpret_cast<const char*>(from) + (warp > 0 ? apart[warp - 1] : 0));
    }
    device::copy_async_commit();
    to += device::kPanelBytes;
    if (to >= stages_end) to -= layout.stages * device::kPanelBytes;
    from += Panel<E>::kColumns;
    left -= Panel<E>::kColumns;
    if (++panel == layout.panels) {
      panel = 0;
      from += kGranule * channels - layout.panels * Panel<E>::kColumns;
      ++granule;
      begin_tile();
    }
  }
};

}  // namespace sparc

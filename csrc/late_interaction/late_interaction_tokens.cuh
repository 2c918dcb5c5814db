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

  SPARC_HOST_DEVICE MaximaLayout(int channels, int columns) {
    panels = (channels + 63) / 64;
    tokens = panels * columns * 128;
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
  int granules, turns;                // of the run; of a warp
  int channels, stages;               // stages: the offset of the first one
  const E* from;                      // this thread's next piece of the tile's first granule
  int to;                             // its place
  int granule, panel = 0, stage = 0;  // of the next copies; granule: of the tile's first warp
  int end;                            // of that warp's granules

  SPARC_DEVICE TokenStream(const MaximaArguments& in, const MaximaLayout& divided, const MaximaPlace& place,
                           int run_granules)
      : layout(divided), granules(run_granules), turns((run_granules + kWarps - 1) / kWarps) {
    const int group = device::same_in_warp(device::warp_index()) / kGroupWarps;
    channels = in.channels;
    granule = group * kGroupWarps * turns;
    end = granule + turns;
    stages = layout.tokens + group * layout.stages * device::kPanelBytes;
    const int row = device::thread_index() >> 3 & 15;
    const int64_t slot = (static_cast<int64_t>(place.run) * in.run_granules + granule) * kGranule + row;
    from = static_cast<const E*>(in.slotted) + slot * channels + column();
    to = panel_at(0).piece(row, column());
  }

  SPARC_DEVICE static int column() { return (device::thread_index() & 7) * 8; }
  SPARC_DEVICE Panel<E> panel_at(int of_stage) const { return {stages + of_stage * device::kPanelBytes, 64}; }

  // Starts the copies of the next panel; behind the last tile and the run's last granule they write zeros.
  // Closes the group of copies.
  SPARC_DEVICE void load() {
    const uint32_t granule_bytes = static_cast<uint32_t>(channels) * kGranule * sizeof(E);
    const bool there = (granule < end) & (panel * Panel<E>::kColumns + column() < channels);
    SPARC_UNROLL
    for (int warp = 0; warp < kGroupWarps; ++warp) {
      device::copy_async_if(
          there & (granule + warp * turns < granules),
          device::address_of(device::shared_at<Piece>(to + warp * kGranule * Panel<E>::kRowBytes)),
          device::further(from, warp * turns, granule_bytes));
    }
    device::copy_async_commit();
    const bool around = ++stage == layout.stages, next = ++panel == layout.panels;
    to += device::kPanelBytes - (around ? layout.stages * device::kPanelBytes : 0);
    stage = around ? 0 : stage;
    from += Panel<E>::kColumns;
    if (next) {
      from += kGranule * channels - layout.panels * Panel<E>::kColumns;
      panel = 0;
      ++granule;
    }
  }
};

}  // namespace sparc

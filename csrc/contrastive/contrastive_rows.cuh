// What a block of a sweep over pairs works at, its shared memory, and the rows on their way there.
#pragma once

#include "contrastive/contrastive_sweep.h"
#include "pairs/panel_stream.cuh"

namespace sparc {

constexpr int64_t kSweepSharedBytes = 227 << 10;  // of a block, on compute capability 9.0

// Shared memory: the block's columns in panels of 64 channels; stages of a panel of rows each, which both
// warpgroups use; inverse norms of the columns.
struct SweepLayout {
  static constexpr int kStages = 4;
  static constexpr int kAhead = kStages - 2;  // panels of the next tile that the warpgroup before copies

  int panels;         // of a row: kAhead at least, so that a warpgroup copies for its successor alone
  int rows, factors;  // offsets; columns lie at the start
  int64_t used;

  SPARC_HOST_DEVICE SweepLayout(int channels, int columns) {
    panels = channels > 64 ? (channels + 63) / 64 : kAhead;
    rows = panels * columns * 128;
    factors = rows + kStages * device::kPanelBytes;
    used = factors + 4 * columns;
  }
  SPARC_HOST_DEVICE bool fits() const { return used <= kSweepSharedBytes; }
};

// What a block works at: a run of rows and a chunk of the columns. Blocks of one time share rows in the L2
// cache.
struct SweepPlace {
  int chunk;
  int first_row, end_row, tiles;

  SPARC_DEVICE explicit SweepPlace(const SweepArguments& in) {
    const int64_t block = device::block_index();
    chunk = static_cast<int>(block % in.chunks);
    const int64_t run_rows = static_cast<int64_t>(in.run_tiles) * kSweepRows;
    const int64_t first = block / in.chunks * run_rows, left = in.n_rows - first;
    first_row = static_cast<int>(first);
    end_row = static_cast<int>(first + (left < run_rows ? left : run_rows));
    tiles = (end_row - first_row + kSweepRows - 1) / kSweepRows;
  }
};

// Rows on their way to shared memory, a panel of a tile at a time, in the order in which all panels of the
// run are multiplied: two warpgroups have every other tile. The one whose tile is multiplied copies kAhead
// panels ahead, and so the first ones of the other one's next tile too: four stages do for both, where stages
// of their own would be six.
template <class E>
struct RowStream {
  static constexpr int kStages = SweepLayout::kStages, kStrips = kSweepRows / 16;

  const SweepLayout& layout;
  const E* from;                 // this thread's piece of the next copies' first 16 rows
  int64_t stride;                // of rows
  int left, channels;            // left: rows of the run from this thread's first row of that tile on
  int panel = 0, stage = 0, to;  // of the next copies

  SPARC_DEVICE RowStream(const SweepArguments& in, const SweepLayout& divided, const SweepPlace& place)
      : layout(divided), stride(in.row_stride), channels(in.channels) {
    const int row = device::thread_index() >> 3 & 15;
    from = static_cast<const E*>(in.rows) + static_cast<int64_t>(place.first_row + row) * stride + column();
    left = place.end_row - place.first_row - row;
    to = panel_at(0).piece(row, column());
  }

  SPARC_DEVICE static int column() { return (device::thread_index() & 7) * 8; }
  SPARC_DEVICE Panel<E> panel_at(int of_stage) const {
    return {layout.rows + of_stage * device::kPanelBytes, kSweepRows};
  }
  SPARC_DEVICE static int later(int stage, int panels) { return (stage + panels) & (kStages - 1); }

  // Starts the copies of the next panel; zeros behind the run's last row. Closes the group of copies.
  SPARC_DEVICE void load() {
    const bool there = panel * Panel<E>::kColumns + column() < channels;
    const uint32_t strip_bytes = static_cast<uint32_t>(stride) * 16 * sizeof(E);
    SPARC_UNROLL
    for (int strip = 0; strip < kStrips; ++strip) {
      const int at = to + stage * device::kPanelBytes + strip * 16 * Panel<E>::kRowBytes;
      device::copy_async_if(there & (strip * 16 < left), device::address_of(device::shared_at<Piece>(at)),
                            device::further(from, strip, strip_bytes));
    }
    device::copy_async_commit();
    stage = later(stage, 1);
    from += Panel<E>::kColumns;
    if (++panel == layout.panels) {
      panel = 0;
      from -= layout.panels * Panel<E>::kColumns;
      next_tile();
    }
  }
  SPARC_DEVICE void next_tile() {
    from += kSweepRows * stride;
    left -= kSweepRows;
  }
  // Behind what the other warpgroup copies: so many panels.
  SPARC_DEVICE void skip(int panels) {
    stage = later(stage, panels);
    if (panels == layout.panels) return next_tile();
    panel += panels;
    from += panels * Panel<E>::kColumns;
    if (panel == layout.panels) {
      panel = 0;
      from -= layout.panels * Panel<E>::kColumns;
      next_tile();
    }
  }
};

}  // namespace sparc

// The rows of one pair through shared memory as operands of a warpgroup's products (common/warpgroup.cuh):
// panels of 64 channels, and a stream whose products run on while the next copies are queued.
#pragma once

#include "common/warpgroup.cuh"
#include "pairs/launch_plan.h"
#include "pairs/pair_stream.cuh"

namespace sparc {

// Rows of 64 columns, 128 bytes each, swizzled; more columns lie in further panels of 64 rows. Shifts and
// masks rather than quotients: these have more instructions for numbers that may be negative.
template <class E>
struct Panel {
  static constexpr int kColumns = 64, kRowBytes = 128, kAlignment = 1024;

  int offset;  // bytes from the start of the block's shared memory, a multiple of kAlignment
  int filled;  // rows that a stream fills: those behind stay what they were

  SPARC_DEVICE device::Shared<E> at(int row, int column) const {
    return device::shared_at<E>(piece(row, column)) + (column & 7);
  }
  // Two elements from an even column on.
  SPARC_DEVICE device::Shared<uint32_t> word_at(int row, int column) const {
    return device::shared_at<uint32_t>(piece(row, column)) + (column & 7) / 2;
  }
  SPARC_DEVICE int rows_for(int) const { return filled; }
  SPARC_DEVICE static int rows_apart(int rows) { return rows * kColumns; }
  SPARC_DEVICE void set(int row, int column, float value) const {
    *at(row, column) = device::from_float<E>(value);
  }
  SPARC_DEVICE float get(int row, int column) const {
    return device::to_float(static_cast<E>(*at(row, column)));
  }

  // The matrix that begins there, as it lies or transposed: row a multiple of 8, column of 16.
  SPARC_DEVICE uint64_t operand(int row, int column) const {
    const int at =
        offset + panel(column) * device::kPanelBytes + row * kRowBytes + (column & (kColumns - 1)) * 2;
    return device::panel_operand(device::address_of(device::shared_at<E>(at)));
  }

  // The operand `rows` (a multiple of 8) further down, or `columns` (of 16) to the right in the same panel.
  SPARC_DEVICE static uint64_t below(uint64_t operand, int rows) {
    return device::operand_behind(operand, rows * kRowBytes);
  }
  SPARC_DEVICE static uint64_t beside(uint64_t operand, int columns) {
    return device::operand_behind(operand, columns * 2);
  }

  // Where the 16 bytes lie that hold it.
  SPARC_DEVICE int piece(int row, int column) const {
    return offset + panel(column) * device::kPanelBytes + row * kRowBytes + ((column >> 3 ^ row) & 7) * 16;
  }

 private:
  SPARC_DEVICE static int panel(int column) { return column >> 6; }
};

// Strips of 16 image rows that each of a block's two warpgroups holds.
SPARC_HOST_DEVICE int warpgroup_strips(int image_rows) {
#define SPARC_PICK_STRIPS(strips_) \
  if (at_most(image_rows, kPairImageRows) <= 32 * strips_) return strips_;
  SPARC_WARPGROUP_STRIPS(SPARC_PICK_STRIPS)
#undef SPARC_PICK_STRIPS
  return 0;
}

// Shared memory with panels. Products read all rows of a panel: those that no chunk fills are zeros.
template <class E>
struct PanelLayout : PairPlaces {
  int weights;                   // U [64, P] E
  int stage_bytes, stages;       // V, T and, in a backward pass, a second [64, 64]
  int stage_text, stage_second;  // within a stage
  int image_rows, image_filled, text_filled;

  // `second`: whether a backward pass streams a second matrix of the shape of T.
  SPARC_HOST_DEVICE PanelLayout(const PairInputs& in, const Streaming& streaming, bool second)
      : PairPlaces(in) {
    image_rows = 32 * warpgroup_strips(in.image_rows);
    image_filled = round_up(at_most(in.image_rows, kPairImageRows), 16);
    text_filled = round_up(at_most(in.text_rows, kPairTextRows), 16);
    weights = take_panels(weights_panels() * kPairTextRows);
    stage_text = image_rows * Panel<E>::kRowBytes;
    stage_second = stage_text + device::kPanelBytes;
    stage_bytes = stage_second + (second ? device::kPanelBytes : 0);
    stages = take_panels(stage_bytes / Panel<E>::kRowBytes * streaming.stages);
  }

  // Panels of 64 tokens with so many columns as there are image rows.
  SPARC_HOST_DEVICE int weights_panels() const { return (image_rows + 63) / 64; }
  SPARC_HOST_DEVICE int take_panels(int rows) {
    plan.used = round_up(plan.used, Panel<E>::kAlignment);
    return plan.take(rows * Panel<E>::kRowBytes);
  }

  SPARC_DEVICE Panel<E> weights_tile() const { return {weights, kPairTextRows}; }
  SPARC_DEVICE Panel<E> image_tile(int stage) const { return {stages + stage * stage_bytes, image_filled}; }
  SPARC_DEVICE Panel<E> text_tile(int stage) const {
    return {stages + stage * stage_bytes + stage_text, text_filled};
  }
  SPARC_DEVICE Panel<E> second_tile(int stage) const {
    return {stages + stage * stage_bytes + stage_second, text_filled};
  }

  // Before anything is streamed.
  SPARC_DEVICE void clear_tails(const Streaming& streaming, bool second) const {
    for (int stage = 0; stage < streaming.stages; ++stage) {
      clear_rows(image_tile(stage), image_rows);
      clear_rows(text_tile(stage), kPairTextRows);
      if (second) clear_rows(second_tile(stage), kPairTextRows);
    }
    device::block_barrier();
  }

 private:
  SPARC_DEVICE static void clear_rows(const Panel<E>& panel, int rows) {
    const device::Shared<uint32_t> words = device::shared_at<uint32_t>(panel.offset);
    constexpr int kWords = Panel<E>::kRowBytes / 4;
    for (int i = panel.filled * kWords + device::thread_index(); i < rows * kWords; i += kThreads)
      words[i] = 0;
  }
};

// A stream whose products compute(chunk, stage) issues as one group or more, and leaves the last of them
// under way: it may read the chunk until the next one's products have been issued. At least three stages.
struct PanelStream {
  template <class Load>
  SPARC_DEVICE static void start(const Streaming& streaming, int chunks, const Load& load) {
    start_stream(streaming.stages - 2, chunks, load);
  }

  // Calls it for every chunk of a started stream; all stages are free and all products done when it returns.
  template <class Load, class Compute>
  SPARC_DEVICE static void run(const Streaming& streaming, int chunks, const Load& load,
                               const Compute& compute) {
    int stage = 0;
    SPARC_NO_UNROLL
    for (int c = 0; c < chunks; ++c) {
      wait_for_copies(streaming.stages - 3);
      device::async_proxy_fence();
      // the chunk is there for all, and the products of the chunk before the last one are done
      device::block_barrier();
      compute(c, stage);
      if (c + streaming.stages - 2 < chunks) {
        load(c + streaming.stages - 2, stage < 2 ? stage + streaming.stages - 2 : stage - 2);
      }
      device::copy_async_commit();
      device::warpgroup_wait<1>();
      stage = stage + 1 == streaming.stages ? 0 : stage + 1;
    }
    device::warpgroup_wait<0>();
    device::block_barrier();
  }

  SPARC_DEVICE static void wait_for_copies(int pending) {
    if (pending >= 2) {
      device::copy_async_wait<2>();
    } else if (pending == 1) {
      device::copy_async_wait<1>();
    } else {
      device::copy_async_wait<0>();
    }
  }
};

// The same where the products of a chunk are done before the next one is begun: more is on its way to fewer
// stages. At least two.
struct FinishedPanelStream {
  template <class Load>
  SPARC_DEVICE static void start(const Streaming& streaming, int chunks, const Load& load) {
    start_stream(streaming.stages - 1, chunks, load);
  }
  template <class Load, class Compute>
  SPARC_DEVICE static void run(const Streaming& streaming, int chunks, const Load& load,
                               const Compute& compute) {
    int stage = 0;
    SPARC_NO_UNROLL
    for (int c = 0; c < chunks; ++c) {
      PanelStream::wait_for_copies(streaming.stages - 2);
      device::async_proxy_fence();
      // the chunk is there for all, and the products of the one before are done
      device::block_barrier();
      const int next = c + streaming.stages - 1;
      if (next < chunks) load(next, stage == 0 ? streaming.stages - 1 : stage - 1);
      device::copy_async_commit();
      compute(c, stage);
      device::warpgroup_wait<0>();
      stage = stage + 1 == streaming.stages ? 0 : stage + 1;
    }
    device::block_barrier();
  }
};

}  // namespace sparc

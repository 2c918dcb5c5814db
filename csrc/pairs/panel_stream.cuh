// The rows of one pair through shared memory as operands of a warpgroup's products (common/warpgroup.cuh):
// panels of 64 channels, and a stream whose products run on while the next copies are queued.
#pragma once

#include "common/warpgroup.cuh"
#include "pairs/launch_plan.h"
#include "pairs/pair_work.cuh"

namespace sparc {

// Sixteen bytes of a panel's row.
struct alignas(16) Piece {
  uint32_t words[4];
};

// Rows of 64 columns, 128 bytes each, swizzled; more columns lie in further panels of 64 rows. Shifts and
// masks rather than quotients: these have more instructions for numbers that may be negative.
template <class E>
struct Panel {
  static constexpr int kColumns = 64, kRowBytes = 128, kBoundary = 1024;

  int offset;  // bytes from the start of the block's shared memory, a multiple of kBoundary
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

// Shared memory with panels. Products read all rows of a panel; copies fill them all.
template <class E>
struct PanelLayout : PairPlaces {
  int weights;                   // U [64, P] E
  int stage_bytes, stages;       // V, T and, in a backward pass, a second [64, 64]
  int stage_text, stage_second;  // within a stage
  int image_rows, image_filled, text_filled;

  // `second`: whether a backward pass streams a second matrix of the shape of T.
  SPARC_HOST_DEVICE PanelLayout(const PairInputs& in, const Streaming& streaming, bool second)
      : PairPlaces(in) {
    image_rows = 32 * warpgroup_instance(in.image_rows).strips;
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
    plan.used = round_up(plan.used, Panel<E>::kBoundary);
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
};

// load_rows of at most 32 kCount rows into panels, from rows of whole pieces. A thread copies the same
// columns of the same rows in every chunk: where they begin is found once, and kept.
template <int kCount>
struct HeldCopies {
  static constexpr int kApart = kThreads / 8;  // rows of one thread
  int at[kCount];                              // in pieces from the matrix's first row; negative: zeros

  template <class E>
  SPARC_DEVICE HeldCopies(const InputRows<E>& from, const device::Shared<int>* index, int count) {
    const int row_pieces = static_cast<int>(from.row_stride / 8), first = device::thread_index() >> 3;
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int row = first + i * kApart;
      at[i] = -1;
      if (row < count) {
        at[i] = (index == nullptr ? row : static_cast<int>((*index)[row])) * row_pieces +
                (device::thread_index() & 7);
      }
    }
  }

  template <class E>
  SPARC_DEVICE void load(const InputRows<E>& from, const device::Shared<int>*, int, int first, int channels,
                         const Panel<E>& to) const {
    const int column = (device::thread_index() & 7) * 8;
    const E* const begin = from.data + first;
    const bool inside = first + column < channels;
    const device::Shared<Piece> target =
        device::shared_at<Piece>(to.piece(device::thread_index() >> 3, column));
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      device::copy_async_if(inside & (at[i] >= 0),
                            device::address_of(target + i * kApart * (Panel<E>::kRowBytes / 16)),
                            device::further(begin, at[i], 16u));
    }
  }
};

// Passes over the chunks of a pair turn round: each begins where the one before has ended, with chunks that
// are still in shared memory.
enum class Way { kFirst, kBack, kForth };  // from chunk 0 on with nothing there, to chunk 0, from it again

// The visits of a pass, in order. Chunk c lies in stage c % stages in all passes, so that a chunk comes to
// where the one `stages` visits before it lay.
template <Way kWay>
struct Visits {
  int stages, chunks;

  SPARC_DEVICE int chunk(int visit) const { return kWay == Way::kBack ? chunks - 1 - visit : visit; }
  SPARC_DEVICE int first_stage() const { return kWay == Way::kBack ? (chunks - 1) % stages : 0; }
  // The stage of so many visits later, or earlier: at most `stages`.
  SPARC_DEVICE int later(int stage, int visits) const {
    return kWay == Way::kBack ? lower(stage, visits) : higher(stage, visits);
  }
  SPARC_DEVICE int earlier(int stage, int visits) const {
    return kWay == Way::kBack ? higher(stage, visits) : lower(stage, visits);
  }
  // Whether the pass before has left that chunk in its stage.
  SPARC_DEVICE bool is_there(int visit) const { return kWay != Way::kFirst && visit < stages; }

 private:
  SPARC_DEVICE int higher(int stage, int by) const {
    return stage + by < stages ? stage + by : stage + by - stages;
  }
  SPARC_DEVICE int lower(int stage, int by) const { return stage < by ? stage + stages - by : stage - by; }
};

// copy_async_wait for as many groups as a stream has under way, or, beyond three, for somewhat fewer.
SPARC_DEVICE void wait_for_copies(int pending) {
  if (pending >= 3) {
    if (pending >= 5) {
      device::copy_async_wait<5>();
    } else {
      device::copy_async_wait<3>();
    }
  } else if (pending == 2) {
    device::copy_async_wait<2>();
  } else if (pending == 1) {
    device::copy_async_wait<1>();
  } else {
    device::copy_async_wait<0>();
  }
}

// A stream of two passes over a pair, there and back, that goes on from one to the other and to the next
// pair. compute(chunk, stage, copy) issues products as one group or more, and calls copy() behind the first
// ones; it may leave the last groups under way, kUnderWay of them until the next chunk's products have been
// issued: until then a chunk that they read stays. Copies are queued stages - 1 - kUnderWay visits ahead, no
// more than there are chunks. At least two stages more than kUnderWay.
//
// The way back ends in the stage where the pair began, and the next pair's chunks follow where the next ones
// would lie: every other pair (`mirrored`) counts the stages from the last one.
template <int kUnderWay>
struct TurningStream {
  template <class Load>
  SPARC_DEVICE static void start(const Streaming& streaming, int chunks, const Load& load) {
    start_stream(stages_of(streaming, chunks) - (1 + kUnderWay), chunks, load);
  }

  // The way there; load(chunk, stage).
  template <class Load, class Compute>
  SPARC_DEVICE static void there(const Streaming& streaming, bool mirrored, int chunks, const Load& load,
                                 const Compute& compute) {
    const Visits<Way::kFirst> visits = {stages_of(streaming, chunks), chunks};
    const auto queue = [&](int visit, int stage) {
      if (visit < chunks) load(visit, stage);  // else the way back begins with what is there
    };
    run(visits, mirrored, queue, compute);
  }
  // The way back; load_next(chunk, stage) for the next pair.
  template <class Load, class LoadNext, class Compute>
  SPARC_DEVICE static void back(const Streaming& streaming, bool mirrored, int chunks, const Load& load,
                                const LoadNext& load_next, const Compute& compute) {
    const Visits<Way::kBack> visits = {stages_of(streaming, chunks), chunks};
    const auto queue = [&](int visit, int stage) {
      if (visit >= chunks) {
        load_next(visit - chunks, stage);
      } else if (!visits.is_there(visit)) {
        load(visits.chunk(visit), stage);
      }
    };
    run(visits, mirrored, queue, compute);
  }

 private:
  // plan_launch leaves no stage too many where products are under way.
  SPARC_DEVICE static int stages_of(const Streaming& streaming, int chunks) {
    return kUnderWay > 0 ? streaming.stages : at_most(streaming.stages, chunks + 1);
  }
  // All products are done when it returns.
  template <Way kWay, class Queue, class Compute>
  SPARC_DEVICE static void run(const Visits<kWay>& visits, bool mirrored, const Queue& queue,
                               const Compute& compute) {
    const int stages = visits.stages;
    const auto place = [&](int stage) { return mirrored ? stages - 1 - stage : stage; };
    int stage = visits.first_stage();
    SPARC_NO_UNROLL
    for (int visit = 0; visit < visits.chunks; ++visit) {
      wait_for_copies(stages - (2 + kUnderWay));
      device::async_proxy_fence();
      // the chunk is there for all, and the products of all chunks but the kUnderWay last ones are done
      device::block_barrier();
      compute(visits.chunk(visit), place(stage), [&] {
        queue(visit + stages - (1 + kUnderWay), place(visits.earlier(stage, 1 + kUnderWay)));
        device::copy_async_commit();  // of nothing, too: groups are counted by visits
      });
      device::warpgroup_wait<kUnderWay>();
      stage = visits.later(stage, 1);
    }
    device::warpgroup_wait<0>();
  }
};
using PanelStream = TurningStream<1>;

// A stream whose products of a chunk are done before the next one is begun: more is on its way to fewer
// stages. At least two. Passes over a pair, of which the first is kFirst, then kBack and kForth by turns, are
// started one by one: load(chunk, stage, there) starts the copies of what the pass needs; `there`: V and T
// are.
struct FinishedPanelStream {
  template <Way kWay, class Load>
  SPARC_DEVICE static void start(const Streaming& streaming, int chunks, const Load& load) {
    const Visits<kWay> visits = {streaming.stages, chunks};
    int stage = visits.first_stage();
    SPARC_NO_UNROLL
    for (int visit = 0; visit < streaming.stages - 1; ++visit) {
      if (visit < chunks) load(visits.chunk(visit), stage, visits.is_there(visit));
      device::copy_async_commit();
      stage = visits.later(stage, 1);
    }
  }
  template <Way kWay, class Load, class Compute>
  SPARC_DEVICE static void run(const Streaming& streaming, int chunks, const Load& load,
                               const Compute& compute) {
    const Visits<kWay> visits = {streaming.stages, chunks};
    int stage = visits.first_stage();
    SPARC_NO_UNROLL
    for (int visit = 0; visit < chunks; ++visit) {
      wait_for_copies(streaming.stages - 2);
      device::async_proxy_fence();
      // the chunk is there for all, and the products of the one before are done
      device::block_barrier();
      const int next = visit + streaming.stages - 1;
      if (next < chunks) load(visits.chunk(next), visits.earlier(stage, 1), visits.is_there(next));
      device::copy_async_commit();
      compute(visits.chunk(visit), stage);
      device::warpgroup_wait<0>();
      stage = visits.later(stage, 1);
    }
    device::block_barrier();
  }
};

}  // namespace sparc

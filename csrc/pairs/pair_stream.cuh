// The rows of one pair through shared memory, a chunk of channels at a time, and the layout of that memory.
// V [P, D] is the image, T [L, D] the text.
#pragma once

#include "common/products.cuh"
#include "pairs/pair_inputs.h"
#include "pairs/rows.cuh"

namespace sparc {

constexpr int kRowWarps = kPairTextRows / 16;
constexpr int kColumnWarps = kWarps / kRowWarps;
constexpr int kTextSteps = kPairTextRows / 16;   // of products over the text rows
constexpr int kChannelStep = 16 * kColumnWarps;  // channels that the warps of a row take at a time

// What every layout of a block's shared memory begins with. The host makes it and passes it as a kernel
// argument: offsets then come from the constant bank and take no registers.
struct PairPlaces {
  Plan<int> plan;
  int counts, parts;                  // [kWarps] int, float
  int text_index[2], image_index[2];  // of this pair and of the next
  int partial[2];                     // [kColumnWarps, 64] float, twice

  SPARC_HOST_DEVICE explicit PairPlaces(const PairInputs& in) {
    counts = plan.take(kWarps * 4);
    parts = plan.take(kWarps * 4);
    for (int i = 0; i < 2; ++i) {
      text_index[i] = plan.take(in.text_rows * 4);
      image_index[i] = plan.take(in.image_rows * 4);
      partial[i] = plan.take(kColumnWarps * kPairTextRows * 4);
    }
  }
};

// With padded tiles for the operands of a warp's products; kChunk is that of the streaming.
template <class E, int kChunk>
struct PairLayout : PairPlaces {
  static constexpr int kPad = Tile<E>::kPad, kChunkPitch = kChunk + kPad;
  using ChunkTile = Tile<E, kChunkPitch>;

  int weights;                   // U [64, P] E
  int stage_bytes, stages;       // V, T and, in a backward pass, a second [64, chunk]
  int stage_text, stage_second;  // within a stage
  int weights_pitch;

  // `second`: whether a backward pass streams a second matrix of the shape of T.
  SPARC_HOST_DEVICE PairLayout(const PairInputs& in, const Streaming& streaming, bool second)
      : PairPlaces(in) {
    const int text = round_up(at_most(in.text_rows, kPairTextRows), 16),
              image = round_up(at_most(in.image_rows, kPairImageRows), 16);
    weights_pitch = image + kPad;
    weights = plan.take(text * weights_pitch * sizeof(E));
    const int row = kChunkPitch * static_cast<int>(sizeof(E));
    stage_text = image * row;
    stage_second = stage_text + text * row;
    stage_bytes = stage_second + (second ? text * row : 0);
    stages = plan.take(stage_bytes * streaming.stages);
  }

  SPARC_DEVICE Tile<E> weights_tile() const { return {weights, weights_pitch}; }
  SPARC_DEVICE ChunkTile image_tile(int stage) const { return ChunkTile(stages + stage * stage_bytes); }
  SPARC_DEVICE ChunkTile text_tile(int stage) const {
    return ChunkTile(stages + stage * stage_bytes + stage_text);
  }
  SPARC_DEVICE ChunkTile second_tile(int stage) const {
    return ChunkTile(stages + stage * stage_bytes + stage_second);
  }
};

// Copies whose rows' numbers a thread asks for before it waits for one of them.
constexpr int kCopiesTogether = 2;

// load_rows of rows that can be copied 16 bytes at a time: a thread has one column of such pieces, and every
// `step`th row.
template <int kChunk, class E, class To>
SPARC_DEVICE void copy_rows(const InputRows<E>& from, const device::Shared<int>* index, int count, int first,
                            int channels, const To& to) {
  constexpr int kPieces = kChunk / 8, step = kThreads / kPieces;
  const int column = device::thread_index() % kPieces * 8, left = (channels - first - column) * 2;
  const int bytes = left < 0 ? 0 : at_most(left, 16);
  const E* const piece = from.data + (bytes > 0 ? first + column : 0);
  const uint32_t row_bytes = static_cast<uint32_t>(from.row_stride) * static_cast<uint32_t>(sizeof(E));
  const auto source = [&](int row) {
    return device::further(piece, index == nullptr ? row : static_cast<int>((*index)[row]), row_bytes);
  };
  int row = device::thread_index() / kPieces;
  E* target = device::address_of(to.at(row, column));
  const int apart = to.rows_apart(step);
  if (bytes == 16) {
    SPARC_NO_UNROLL
    for (; row + (kCopiesTogether - 1) * step < count; row += kCopiesTogether * step) {
      const E* sources[kCopiesTogether];
      SPARC_UNROLL
      for (int i = 0; i < kCopiesTogether; ++i) sources[i] = source(row + i * step);
      SPARC_UNROLL
      for (int i = 0; i < kCopiesTogether; ++i) device::copy_async(target + i * apart, sources[i]);
      target += kCopiesTogether * apart;
    }
  }
  SPARC_NO_UNROLL
  for (; row < count; row += step) {
    device::copy_async(target, source(row), bytes);
    target += apart;
  }
  SPARC_NO_UNROLL
  for (; row < to.rows_for(count); row += step) {
    device::copy_async(target, from.data, 0);
    target += apart;
  }
}

// Rows `index[0..count)` of a matrix, kChunk channels from `first` on, into the rows of a tile that products
// read; zeros beyond. Without an index, the rows 0..count.
template <int kChunk, class E, class To>
SPARC_DEVICE void load_rows(const InputRows<E>& from, const device::Shared<int>* index, int count, int first,
                            int channels, const To& to) {
  if (from.wide) return copy_rows<kChunk>(from, index, count, first, channels, to);
  const int column = device::thread_index() % kChunk;
  SPARC_NO_UNROLL
  for (int row = device::thread_index() / kChunk; row < to.rows_for(count); row += kThreads / kChunk) {
    E value{};
    if (row < count && first + column < channels) {
      const int at = index == nullptr ? row : static_cast<int>((*index)[row]);
      value = from.data[at * from.row_stride + (first + column) * from.column_stride];
    }
    *to.at(row, column) = value;
  }
}

// load_rows, chunk by chunk, of the rows of one matrix.
template <int kChunk>
struct RowCopies {
  template <class E>
  SPARC_DEVICE RowCopies(const InputRows<E>&, const device::Shared<int>*, int) {}

  template <class E, class To>
  SPARC_DEVICE void load(const InputRows<E>& from, const device::Shared<int>* index, int count, int first,
                         int channels, const To& to) const {
    load_rows<kChunk>(from, index, count, first, channels, to);
  }
};

// Queues the first loads of a stream of chunks. `load(chunk, stage)` starts copies of one of them.
template <class Load>
SPARC_DEVICE void start_stream(int ahead, int chunks, const Load& load) {
  SPARC_NO_UNROLL
  for (int c = 0; c < ahead; ++c) {
    if (c < chunks) load(c, c);
    device::copy_async_commit();
  }
}

// The oldest chunk that this thread waits for has come.
SPARC_DEVICE void wait_for_chunk(const Streaming& streaming) {
  if (streaming.stages == 3) {
    device::copy_async_wait<1>();
  } else {
    device::copy_async_wait<0>();
  }
}

// A stream whose products are done when compute(chunk, stage) returns.
struct PairStream {
  template <class Load>
  SPARC_DEVICE static void start(const Streaming& streaming, int chunks, const Load& load) {
    start_stream(streaming.stages > 1 ? streaming.stages - 1 : 1, chunks, load);
  }

  // Calls it for every chunk of a started stream; all stages are free when it returns.
  template <class Load, class Compute>
  SPARC_DEVICE static void run(const Streaming& streaming, int chunks, const Load& load,
                               const Compute& compute) {
    int stage = 0;
    SPARC_NO_UNROLL
    for (int c = 0; c < chunks; ++c) {
      const bool ahead = streaming.stages > 1;
      if (ahead) wait_for_chunk(streaming);
      // the chunk is there for all, or the only stage is free; and so is the stage of the chunk before
      if (ahead || c > 0) device::block_barrier();
      const int next = ahead ? c + streaming.stages - 1 : c;
      if (next < chunks && (ahead || c > 0)) load(next, stage == 0 ? streaming.stages - 1 : stage - 1);
      device::copy_async_commit();
      if (!ahead) {
        wait_for_chunk(streaming);
        device::block_barrier();
      }
      compute(c, stage);
      stage = stage + 1 == streaming.stages ? 0 : stage + 1;
    }
    device::block_barrier();
  }
};

}  // namespace sparc
